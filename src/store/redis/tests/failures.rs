//! What goes wrong with a server, and what the store makes of it: typed errors, nothing lost, nothing double.

use super::*;
use crate::clock::unix_ms;
use crate::store::redis::keys::slot_of;
use crate::store::{PROFILE_CAP, Queue, Record, RecordBody, StoreError};

fn batch(user: &str, records: &[Record]) -> UserBatch {
    UserBatch { user: user.into(), records: records.to_vec() }
}

fn click(n: i64, id: &str) -> Record {
    conformance::engagement(n, id, "item")
}

async fn open(url: &str) -> StoreResult<Arc<RedisStore>> {
    let timeouts = Timeouts { connect: Duration::from_secs(2), response: Duration::from_secs(5), retries: 8 };
    let options = RedisOptions { timeouts, ..options(2) };
    RedisStore::open(Address::parse(url).unwrap(), options).await
}

async fn refusal(url: &str) -> StoreError {
    open(url).await.err().expect("a refusal")
}

#[tokio::test]
async fn any_user_id_is_kept_apart_and_found_again() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    let long = "é".repeat(64);
    let users = ["{}", "{", "}", "a{b}", "%", "%7B", " ", "a b", "😀 👩‍👩‍👧", "u:st", long.as_str()].map(String::from);
    let batches: Vec<UserBatch> = users.iter().map(|user| batch(user, &[click(1, user)])).collect();
    assert!(store.append(&["s".into()], &batches).await.unwrap().iter().all(|outcome| outcome.accepted == 1));
    let histories = store.histories(&users).await.unwrap();
    for (user, history) in users.iter().zip(histories) {
        assert_eq!(history.unwrap().engagements[0].event_id, *user);
    }
    assert_eq!(store.sweep(&["s".into()]).await.unwrap(), users.len());
    let claims = store.claim(Queue::Due, 100, Duration::from_secs(9)).await.unwrap();
    assert!(users.iter().all(|user| claims.iter().any(|claim| claim.user == *user)));
}

#[tokio::test]
async fn a_full_profile_drops_its_oldest_attribute_but_never_an_opt_out() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    let profile = |ts_ms: i64, name: &str| Record {
        ts_ms,
        event_id: format!("p{ts_ms}"),
        former_id: None,
        weight: 1.0,
        body: RecordBody::Profile([(name.to_string(), serde_json::json!(true))].into()),
    };
    let append =
        async |record: Record| store.append(&["s".into()], &[batch("u", &[record])]).await.unwrap()[0].accepted;
    assert_eq!(append(profile(1, crate::event::OPT_OUT_ATTRIBUTE)).await, 1);
    for ts_ms in 2..=(PROFILE_CAP as i64 + 1) {
        assert_eq!(append(profile(ts_ms, &format!("a{ts_ms}"))).await, 1);
    }
    let kept = store.histories(&["u".into()]).await.unwrap().remove(0).unwrap().profile;
    assert_eq!(kept.len(), PROFILE_CAP);
    assert!(kept.contains_key("cross_opt_out") && !kept.contains_key("a2"));
    assert_eq!(append(profile(2, "a2")).await, 0, "what was dropped is no news when it comes again");
}

#[tokio::test]
async fn what_was_before_an_erasure_is_refused() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    store.append(&["s".into()], &[batch("u", &[click(10, "e")])]).await.unwrap();
    server.command(&["HSET", "taiji:{u}:st", "era", "1", "erased_before_ms", "50"]);
    let outcome =
        store.append(&["s".into()], &[batch("u", &[click(10, "x"), click(50, "y"), click(51, "z")])]).await.unwrap();
    assert_eq!((outcome[0].accepted, outcome[0].duplicates, outcome[0].state.seq), (1, 2, 2));
    let put = conformance::write_put("u", Default::default(), 1, 1, vec![]);
    let refused = crate::store::PutRefusal::Era;
    assert_eq!(store.put("s", put).await.unwrap(), PutOutcome::Refused(refused));
}

#[tokio::test]
async fn wrong_types_under_our_namespace_are_named_and_nothing_is_written() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    server.command(&["SET", "taiji:{u}:st", "theirs"]);
    server.command(&["SET", "taiji:{v}:q", "theirs"]);
    server.command(&["SET", "taiji:{x}:prof", "theirs"]);
    for user in ["u", "v", "x"] {
        let records = [click(1, "e"), conformance::profile(2, "p", &[("age", 1)])];
        let error = store.append(&["s".into()], &[batch(user, &records)]).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Corrupt { message, .. } if message.contains("store.namespace")),
            "{error}"
        );
        assert!(matches!(store.histories(&[user.into()]).await, Err(StoreError::Corrupt { .. })), "{user}");
    }
    let written = ["EXISTS", "taiji:{v}:st", "taiji:{v}:h:e", "taiji:{x}:st", "taiji:{x}:h:e"];
    assert_eq!(server.command(&written), ":0\r\n");
    server.command(&["SET", "taiji:{w}:h:e", "not a list"]);
    server.command(&["RPUSH", "taiji:{y}:h:e", "their", "list"]);
    for user in ["w", "y"] {
        let refused = store.append(&["s".into()], &[batch(user, &[click(1, "e")])]).await;
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    }
    server.command(&["SET", "other:epoch", "theirs"]);
    let timeouts = Timeouts { connect: Duration::from_secs(2), response: Duration::from_secs(5), retries: 1 };
    let options = RedisOptions { namespace: "other".into(), timeouts, ..options(2) };
    let taken = RedisStore::open(Address::parse(&server.url()).unwrap(), options).await.err().unwrap();
    assert!(matches!(taken, StoreError::Corrupt { .. }), "{taken}");
}

#[tokio::test]
async fn another_schema_is_refused_and_missing_functions_are_loaded() {
    let server = RedisServer::start();
    drop(open(&server.url()).await.unwrap());
    server.command(&["FUNCTION", "FLUSH"]);
    let address = || Address::parse(&server.operators_url()).unwrap();
    let migration = Migration::look(address(), &options(2)).await.unwrap();
    assert_eq!(migration.steps.len(), 1);
    migration.apply().await.unwrap();
    assert!(Migration::look(address(), &options(2)).await.unwrap().steps.is_empty());
    drop(open(&server.url()).await.unwrap());
    server.command(&["HSET", "taiji:epoch", "schema", "99"]);
    assert!(matches!(refusal(&server.url()).await, StoreError::Open { .. }));
}

#[tokio::test]
async fn passwords_permissions_replicas_and_memory_are_told_apart() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    store.append(&["s".into()], &[batch("u", &[click(1, "e")])]).await.unwrap();
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = store.append(&["s".into()], &[batch("u", &[click(2, "f")])]).await.unwrap_err();
    assert!(matches!(full, StoreError::Full { .. }) && full.is_transient(), "{full}");
    assert_eq!(store.histories(&["u".into()]).await.unwrap()[0].as_ref().unwrap().state.seq, 1, "reads go on");
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(store.append(&["s".into()], &[batch("u", &[click(2, "f")])]).await.unwrap()[0].accepted, 1);
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let replica = store.append(&["s".into()], &[batch("u", &[click(3, "g")])]).await.unwrap_err();
    assert!(matches!(replica, StoreError::Denied { .. }), "{replica}");
    server.command(&["REPLICAOF", "NO", "ONE"]);

    let secured = RedisServer::with_tls_and_users();
    let authority = std::fs::read(secured.folder.path().join("ca.pem")).unwrap();
    let open_as = async |login: &str, trusted: bool| {
        let address = Address::parse(&format!("rediss://{login}@127.0.0.1:{}", secured.port)).unwrap();
        let address = if trusted { address.with_authority(authority.clone()) } else { address };
        RedisStore::open(address, options(1)).await.err().map(|error| (error.to_string(), error))
    };
    let (text, error) = open_as("taiji:secret", true).await.unwrap();
    assert!(matches!(error, StoreError::Denied { .. }) && !text.contains("secret"), "{text}");
    let (text, error) = open_as("reader:reader", true).await.unwrap();
    assert!(matches!(error, StoreError::Denied { .. }), "{text}");
    let (text, error) = open_as("taiji:p%40ss_word", false).await.unwrap();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_loses_nothing_and_doubles_nothing() {
    let mut server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    let before = store.incarnation().await.unwrap();
    let appends = {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..40i64 {
                let batches: Vec<UserBatch> =
                    (0..50).map(|user| batch(&format!("u{user}"), &[click(round, &format!("e{round}"))])).collect();
                // The client's way: repeat until it is acknowledged.
                while store.append(&["s".into()], &batches).await.is_err() {}
            }
        })
    };
    for _ in 0..3 {
        let seen = store.histories(&["u49".into()]).await.ok().and_then(|mut found| found.remove(0));
        server.restart();
        // Each kill comes after some progress.
        let floor = seen.map_or(0, |history| history.state.seq);
        while store
            .histories(&["u49".into()])
            .await
            .map_or(true, |found| found[0].as_ref().map_or(0, |history| history.state.seq) <= floor.min(38))
        {}
    }
    appends.await.unwrap();
    let users: Vec<String> = (0..50).map(|user| format!("u{user}")).collect();
    for history in store.histories(&users).await.unwrap().into_iter().flatten() {
        assert_eq!((history.state.seq, history.engagements.len()), (40, 40));
    }
    assert_ne!(store.incarnation().await.unwrap(), before, "a restarted server is another incarnation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_appends_without_an_error() {
    let cluster = RedisCluster::start();
    let store = open(&cluster.url()).await.unwrap();
    let slot = slot_of("taiji:{mover}:st");
    let from = if slot <= 5460 {
        0
    } else if slot <= 10922 {
        1
    } else {
        2
    };
    store.append(&["s".into()], &[batch("mover", &[click(0, "e0")])]).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let appends = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut sent = 1i64;
            while !*stopped.borrow() && sent < 90 {
                let all = [batch("mover", &[click(sent, &format!("e{sent}"))]), batch("rest", &[click(sent, "once")])];
                // Half a user's keys here and half there is answered TRYAGAIN until the move is over.
                while store.append(&["s".into()], &all).await.is_err() {}
                sent += 1;
            }
            sent as u64
        })
    };
    tokio::task::spawn_blocking(move || {
        cluster.move_slot(slot, from, (from + 1) % 3, || {});
        stop.send_replace(true);
        cluster
    })
    .await
    .map(|cluster| async move {
        let sent = appends.await.unwrap();
        let history = store.histories(&["mover".into()]).await.unwrap().remove(0).unwrap();
        assert_eq!((history.state.seq, history.engagements.len() as u64), (sent, sent));
        drop(cluster);
    })
    .unwrap()
    .await;
}

#[tokio::test]
async fn features_expire_with_their_last_group() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    store.append(&["s".into()], &[batch("u", &[click(1, "e")])]).await.unwrap();
    let version = crate::feature::Version { seq: 1, turn: 0 };
    let group = |ends| conformance::blob(crate::feature::Group::Intra, 1, version, 1, ends);
    let ends = unix_ms() + 60_000;
    store.put("s", conformance::write_put("u", version, 1, 1, vec![group(ends)])).await.unwrap();
    let expiry = server.command(&["PEXPIRETIME", "taiji:{u}:f:s"]);
    assert_eq!(expiry, format!(":{}\r\n", ends + 3_600_000));
    store.put("s", conformance::write_put("u", version, 1, 1, vec![group(0)])).await.unwrap();
    assert_eq!(server.command(&["PEXPIRETIME", "taiji:{u}:f:s"]), ":-1\r\n");
}
