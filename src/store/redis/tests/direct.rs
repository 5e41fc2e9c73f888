//! Serving reads over connections of their own: they say what whole records say, on one server, over TLS and on a cluster, and nobody
//! notices when such a connection breaks.

use super::reads::{USERS, fill};
use super::*;
use crate::feature::Group;
use crate::store::StoreError;
use std::time::Instant;

const SOON: Duration = Duration::from_secs(20);
const GROUPS: [Group; 2] = [Group::Intra, Group::Cross];

/// Reads until every master has a connection for reads; no read may fail meanwhile.
async fn until_direct(store: &RedisStore, users: &[String]) {
    let until = Instant::now() + SOON;
    let stands = |node: &_| store.link.reads().standing(node, || store.link.pace_of(node)).is_some();
    while !store.link.masters().iter().all(stands) {
        assert!(Instant::now() < until, "no connection for reads");
        store.feature_groups("s", users, &GROUPS).await.unwrap();
    }
}

/// Both ways must say the same.
async fn compare(store: &RedisStore, users: &[String]) {
    let direct = store.feature_groups("s", users, &GROUPS).await.unwrap();
    let whole = store.features("s", users).await.unwrap();
    let wanted: Vec<_> = whole.into_iter().map(|features| features.map(|features| features.only(&GROUPS))).collect();
    assert_eq!(direct, wanted);
    assert_eq!(direct.iter().flatten().count(), USERS);
}

/// Ids of the server's clients whose last command was HMGET.
fn readers(server: &RedisServer) -> Vec<String> {
    let list = server.command(&["CLIENT", "LIST"]);
    let of_reads = list.lines().filter(|line| line.contains(" cmd=hmget "));
    of_reads.filter_map(|line| Some(line.split_once("id=")?.1.split_once(' ')?.0.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_have_a_connection_of_their_own_that_may_break() {
    let server = RedisServer::with(&[]);
    let store = RedisStore::open(Address::parse(&format!("{}/3", server.url())).unwrap(), options(1)).await.unwrap();
    let mut users = fill(&store).await;
    users.extend(["nobody".to_string(), "{odd}%".to_string()]);
    for _ in 0..3 {
        until_direct(&store, &users).await;
        compare(&store, &users).await;
        // The shared connection may have read, too: its last command is another one now.
        store.link.one("check", Call::beside("PING", "")).await.unwrap();
        let [reader] = &readers(&server)[..] else { panic!("{:?}", readers(&server)) };
        server.command(&["CLIENT", "KILL", "ID", reader]);
        compare(&store, &users).await;
    }
    assert_eq!(store.trouble(), None);
}

#[tokio::test]
async fn reads_go_directly_over_tls_with_a_user_and_on_a_cluster() {
    let secured = RedisServer::with_tls_and_users();
    let authority = std::fs::read(secured.folder.path().join("ca.pem")).unwrap();
    let url = format!("rediss://taiji:p%40ss_word@127.0.0.1:{}", secured.port);
    let cluster = RedisCluster::start();
    let addresses = [Address::parse(&url).unwrap().with_authority(authority), Address::parse(&cluster.url()).unwrap()];
    for address in addresses {
        let store = RedisStore::open(address, options(1)).await.unwrap();
        let users = fill(&store).await;
        until_direct(&store, &users).await;
        compare(&store, &users).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_of_another_type_fails_alone_and_a_frozen_server_costs_the_deadline() {
    let server = RedisServer::with(&[]);
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(1)).await.unwrap();
    let mut users = fill(&store).await;
    until_direct(&store, &users).await;
    users.insert(7, "misused".to_string());
    server.command(&["SET", "taiji:{misused}:f:s", "no hash"]);
    let answers = store.feature_groups_each("s", &users, &GROUPS).await.unwrap();
    let failed: Vec<usize> = (0..users.len()).filter(|index| answers[*index].is_err()).collect();
    assert_eq!(failed, [7]);
    assert!(matches!(answers[7], Err(StoreError::Corrupt { .. })), "{:?}", answers[7]);
    assert_eq!(store.unreadable.met(), [("features", 1)].into(), "it is counted, whichever way it was found");

    until_direct(&store, &users[..3]).await;
    server.signal("STOP");
    let started = Instant::now();
    let error = store.feature_groups("s", &users[..3], &GROUPS).await.unwrap_err();
    assert!(error.to_string().contains("read_deadline_ms"), "{error}");
    let deadline = options(1).assurance.read_deadline;
    assert!((deadline..8 * deadline).contains(&started.elapsed()), "{:?}", started.elapsed());
    server.signal("CONT");
    let until = Instant::now() + SOON;
    while store.feature_groups("s", &users[..3], &GROUPS).await.is_err() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until_direct(&store, &users[..3]).await;
}

/// Behind one name another server may be the master now: reads go where writes go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_a_master_no_more_loses_the_connection_for_reads_too() {
    let server = RedisServer::with(&[]);
    let timeouts = Timeouts { retries: 1, ..options(1).timeouts };
    let options = RedisOptions { timeouts, ..options(1) };
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options).await.unwrap();
    let users = fill(&store).await;
    until_direct(&store, &users).await;
    let before = readers(&server);
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let batch = UserBatch { user: "u0".into(), records: vec![conformance::engagement(9, "e9", "item")] };
    assert!(matches!(store.append(&["s".into()], &[batch]).await, Err(StoreError::Denied { .. })));
    server.command(&["REPLICAOF", "NO", "ONE"]);
    until_direct(&store, &users).await;
    compare(&store, &users).await;
    assert!(readers(&server).iter().all(|reader| !before.contains(reader)), "{before:?}");
}
