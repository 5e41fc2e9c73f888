//! A master that sentinels watch, and that is replaced.

use super::*;
use crate::store::StoreError;
use std::time::Instant;
use testkit::sentinel::{RedisSentinels, SENTINEL_PASSWORD, SENTINEL_USER, SERVICE, sentinel_with_tls};

fn address(url: &str) -> Address {
    Address::parse(url).unwrap().with_sentinel_login(SENTINEL_USER, SENTINEL_PASSWORD)
}

/// Long enough for an election on a busy machine.
fn patient() -> RedisOptions {
    let timeouts = Timeouts { connect: Duration::from_secs(2), response: Duration::from_secs(5), retries: 60 };
    RedisOptions { timeouts, ..options(2) }
}

async fn opening(address: Address) -> String {
    let mut options = options(2);
    options.timeouts.retries = 2;
    match RedisStore::open(address, options).await {
        Ok(_) => panic!("it opened"),
        Err(error) => {
            assert!(!error.may_pass(), "no waiting cures it: {error}");
            error.to_string()
        }
    }
}

async fn append(store: &RedisStore, n: i64) -> u32 {
    let record = conformance::engagement(n, &format!("e{n}"), "item");
    let outcomes = store.append(&["s".into()], &[UserBatch { user: "u".into(), records: vec![record] }]).await.unwrap();
    outcomes[0].accepted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_10_sentinel_store_conforms_migrates_and_says_what_is_wrong() {
    let rig = RedisSentinels::start();
    conformance::check_all(&subject(address(&rig.url()), 3).await).await;
    assert!(Migration::look(address(&rig.operators_url()), &options(3)).await.unwrap().steps.is_empty());

    let wrong = rig.url().replace(SERVICE, "mymaster");
    let said = opening(address(&wrong)).await;
    assert!(said.contains("no sentinel knows") && said.contains("\"mymaster\"") && said.contains(SERVICE), "{said}");
    let said = opening(Address::parse(&rig.url()).unwrap().with_sentinel_login(SENTINEL_USER, "secret")).await;
    assert!(said.contains("store.sentinel_password") && !said.contains("secret"), "{said}");
    let said = opening(address(&rig.url().replace(":pw@", ":secret@"))).await;
    assert!(said.contains("store.url") && !said.contains("secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_10_sentinel_hand_over_costs_no_call_and_functions_are_loaded_on_the_new_master() {
    let mut rig = RedisSentinels::start();
    let store = RedisStore::open(address(&rig.url()), patient()).await.unwrap();
    assert_eq!(append(&store, 1).await, 1);
    let before = store.incarnation().await.unwrap();
    let first = rig.master_port();
    // Whoever takes over lacks our functions.
    for replica in &rig.servers[1..] {
        assert!(replica.command(&["CONFIG", "SET", "replica-read-only", "no"]).starts_with("+OK"));
        assert!(replica.command(&["FUNCTION", "FLUSH"]).starts_with("+OK"));
        assert!(replica.command(&["CONFIG", "SET", "replica-read-only", "yes"]).starts_with("+OK"));
    }
    let second = rig.hand_over();
    assert_ne!(rig.servers[second].port, first);
    let handed_over = Instant::now();
    // The old master goes on taking writes, which will be gone.
    let master = [("127.0.0.1".to_string(), rig.servers[second].port)];
    while store.link.masters() != master {
        assert!(handed_over.elapsed() < Duration::from_secs(20), "{:?}", store.link.masters());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = handed_over.elapsed().as_millis();
    println!(
        "audit 10: sentinel, a hand-over between living masters is followed within {took} ms of all sentinels' agreement"
    );
    assert_eq!(append(&store, 2).await, 1);
    assert_ne!(store.incarnation().await.unwrap(), before, "a replica may lack the last moments of its master");
    rig.wait_until_it_follows(0);

    rig.servers[second].kill();
    assert_eq!(append(&store, 3).await, 1, "it waits for the election");
    assert_ne!(store.link.masters(), [("127.0.0.1".to_string(), rig.servers[second].port)]);
    assert_eq!(append(&store, 2).await, 0, "what was acknowledged is there");
    // Sentinels that are gone harm nobody who has found the master.
    for sentinel in &mut rig.sentinels {
        sentinel.kill();
    }
    assert_eq!(append(&store, 4).await, 1);
    let away = RedisStore::open(address(&rig.url()), RedisOptions { timeouts: options(2).timeouts, ..options(2) });
    let error = away.await.err().unwrap();
    assert!(matches!(&error, StoreError::Unreachable { message, .. } if message.contains("sentinels 127")), "{error}");
}

/// With the README's rights, which have no ROLE.
#[tokio::test]
async fn audit_10_sentinel_and_master_are_reached_over_tls() {
    let master = RedisServer::with_tls_and_users();
    let sentinel = sentinel_with_tls(&master);
    let authority = std::fs::read(master.folder.path().join("ca.pem")).unwrap();
    let url = format!("rediss+sentinel://taiji:p%40ss_word@127.0.0.1:{}/{SERVICE}", sentinel.port);
    let trusted = Address::parse(&url).unwrap().with_authority(authority);
    let store = RedisStore::open(trusted, options(2)).await.unwrap();
    assert_eq!(append(&store, 1).await, 1);
    assert_eq!(store.link.masters(), [("127.0.0.1".to_string(), master.port)]);
    let mut options = options(2);
    options.timeouts.retries = 1;
    let error = RedisStore::open(Address::parse(&url).unwrap(), options).await.err().unwrap();
    assert!(matches!(error, StoreError::Unreachable { .. }), "an authority that is not trusted: {error}");
}
