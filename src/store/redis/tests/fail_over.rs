//! Masters of a cluster that are replaced: calls get through, and the store says that it may have lost writes.

use super::*;
use crate::feature::Version;
use crate::retrieve::{FaissUserIndex, VectorTail, encode_f16};
use crate::store::StoreError;

const USERS: usize = 60;

/// Long enough for an election on a busy machine.
async fn open(cluster: &RedisCluster) -> Arc<RedisStore> {
    let timeouts = Timeouts { connect: Duration::from_secs(2), response: Duration::from_secs(5), retries: 60 };
    let options = RedisOptions { timeouts, ..options(8) };
    RedisStore::open(Address::parse(&cluster.url()).unwrap(), options).await.unwrap()
}

fn users() -> Vec<String> {
    (0..USERS).map(|user| format!("u{user}")).collect()
}

/// One event and one vector of each user, on all masters.
async fn write(store: &RedisStore, n: u64) {
    let record = conformance::engagement(n as i64, &format!("e{n}"), "item");
    let batches: Vec<UserBatch> =
        users().into_iter().map(|user| UserBatch { user, records: vec![record.clone()] }).collect();
    let outcomes = store.append(&["s".into()], &batches).await.unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.accepted + outcome.duplicates == 1 && outcome.state.seq == n));
    for user in users() {
        let vector = Some(encode_f16(&[n as f32, 1.0, 0.0, 0.0]));
        let fresh = FreshVector { user, era: 0, version: Version { seq: n, turn: 0 }, vector };
        store.append_vector("s", &fresh).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_master_is_replaced_without_a_failed_call() {
    let mut cluster = RedisCluster::start_with_replicas();
    let store = open(&cluster).await;
    let mut tail = VectorTail::new(store.clone(), Arc::new(FaissUserIndex::empty(4).unwrap()), "s".into());
    write(&store, 1).await;
    assert_eq!(tail.catch_up().await.unwrap(), USERS);
    let before = store.incarnation().await.unwrap();
    assert_eq!(store.incarnation().await.unwrap(), before, "nothing happened");
    cluster.wait_for_replicas();
    cluster.nodes[1].kill();

    write(&store, 2).await;
    assert_ne!(store.incarnation().await.unwrap(), before, "a replica may lack the last moments of its master");
    assert!(tail.catch_up().await.unwrap() >= USERS);
    let histories = store.histories(&users()).await.unwrap();
    assert!(histories.iter().flatten().filter(|history| history.engagements.len() == 2).count() == USERS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_went_to_another_master_is_noticed_before_any_call_goes_there() {
    let cluster = RedisCluster::start_with_replicas();
    let store = open(&cluster).await;
    write(&store, 1).await;
    let before = store.incarnation().await.unwrap();
    cluster.hand_over(2);
    // No call was sent elsewhere yet, and the other masters may not have heard of it.
    let after = store.incarnation().await.unwrap();
    assert_ne!(after, before);
    write(&store, 2).await;
    assert_eq!(store.incarnation().await.unwrap(), after, "and only then");
    assert_eq!(store.link.masters().len(), 3);
    let owner = ("127.0.0.1".to_string(), cluster.replicas[2].port);
    assert!(store.link.masters().contains(&owner));
}

#[tokio::test]
async fn a_single_master_that_became_a_replica_is_refused_in_plain_words() {
    let server = RedisServer::start();
    let timeouts = Timeouts { connect: Duration::from_secs(2), response: Duration::from_secs(5), retries: 2 };
    let options = RedisOptions { timeouts, ..options(2) };
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options).await.unwrap();
    let before = store.incarnation().await.unwrap();
    let batch = [UserBatch { user: "u".into(), records: vec![conformance::engagement(1, "e", "i")] }];
    store.append(&["s".into()], &batch).await.unwrap();
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let refused = store.append(&["s".into()], &batch).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Busy { message, .. } if message.contains("min-replicas-to-write")),
        "{refused}"
    );
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    // Nothing answers there, so its data stay.
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let refused = store.append(&["s".into()], &batch).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Denied { message, .. } if message.contains("read-only replica")),
        "{refused}"
    );
    server.command(&["REPLICAOF", "NO", "ONE"]);
    assert_ne!(store.incarnation().await.unwrap(), before, "it may hold another's data now");
}
