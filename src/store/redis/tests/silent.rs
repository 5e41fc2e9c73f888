//! A Redis that takes commands and answers none, and one that is only slow.

use super::*;
use crate::feature::Group;
use crate::store::StoreError;
use std::time::Instant;

/// As the default has it: its tests run beside many others.
const DEADLINE: Duration = Duration::from_millis(250);
const SOON: Duration = Duration::from_secs(20);

async fn open(server: &RedisServer) -> Arc<RedisStore> {
    let timeouts = Timeouts { connect: Duration::from_secs(2), response: Duration::from_secs(5), retries: 6 };
    let options = RedisOptions { timeouts, ..options(2) };
    RedisStore::open(Address::parse(&server.url()).unwrap(), options).await.unwrap()
}

async fn read(store: &RedisStore) -> StoreResult<()> {
    store.feature_groups("s", &["u".to_string()], &[Group::Intra]).await.map(|_| ())
}

fn batch(n: i64) -> Vec<UserBatch> {
    vec![UserBatch { user: "u".into(), records: vec![conformance::engagement(n, &format!("e{n}"), "item")] }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_03_a_stopped_redis_costs_a_read_its_deadline_and_then_nothing() {
    let server = RedisServer::with(&[]);
    let store = open(&server).await;
    read(&store).await.unwrap();
    server.signal("STOP");
    let started = Instant::now();
    let error = read(&store).await.unwrap_err();
    let first = started.elapsed();
    assert!(
        matches!(error, StoreError::Unreachable { .. }) && error.to_string().contains("read_deadline_ms"),
        "{error}"
    );
    assert!(first >= DEADLINE && first < 8 * DEADLINE, "{first:?}");
    // A write that had begun is given up when the node is found away, not after its own time-out.
    let started = Instant::now();
    assert!(matches!(store.append(&["s".into()], &batch(1)).await, Err(StoreError::Unreachable { .. })));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let why = store.trouble().expect("the circuit is open");
    assert!(why.contains("PING"), "{why}");
    let started = Instant::now();
    for _ in 0..100 {
        assert!(read(&store).await.unwrap_err().to_string().contains("not asked until it answers"));
        assert!(store.append(&["s".into()], &batch(1)).await.is_err());
    }
    let refused = started.elapsed() / 200;
    assert!(refused < DEADLINE / 10, "{refused:?} a call");
    println!("audit 03: a call to a node known to be away is refused in {:.3} ms", refused.as_secs_f64() * 1000.0);

    server.signal("CONT");
    let until = Instant::now() + SOON;
    while let Err(error) = read(&store).await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.trouble(), None);
    store.append(&["s".into()], &batch(2)).await.unwrap();
}

/// `CLIENT PAUSE … WRITE` holds writes back and lets reads and PING through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_03_a_slow_answer_opens_no_circuit() {
    let server = RedisServer::with(&[]);
    let store = open(&server).await;
    server.command(&["CLIENT", "PAUSE", "2000", "WRITE"]);
    let started = Instant::now();
    let slow = tokio::spawn({
        let store = store.clone();
        async move { store.append(&["s".into()], &batch(1)).await.map(|outcomes| outcomes[0].accepted) }
    });
    let mut reads = 0;
    while !slow.is_finished() {
        // On the connection of the write they stand behind it, and fail alone.
        let _ = read(&store).await;
        assert_eq!(store.trouble(), None, "after {:?}", started.elapsed());
        reads += 1;
    }
    assert_eq!(slow.await.unwrap().unwrap(), 1, "it was waited for");
    assert!(started.elapsed() > 4 * DEADLINE && reads > 2, "{:?}, {reads} reads", started.elapsed());
    read(&store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_03_a_closed_connection_is_made_anew_and_opens_no_circuit() {
    let server = RedisServer::with(&[]);
    let store = open(&server).await;
    server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let until = Instant::now() + SOON;
    while read(&store).await.is_err() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(store.trouble(), None);
}
