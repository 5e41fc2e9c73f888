//! Acknowledged means kept: what replicas or the disk do not have is not acknowledged, however often it is sent.

use super::*;
use crate::event::{Item, ItemState};
use crate::store::{AppendOutcome, StoreError};
use std::time::Instant;

/// Long enough for a replica on a busy machine, short enough for a test that waits for it in vain.
const LIMIT: Duration = Duration::from_millis(700);

async fn open(server: &RedisServer, assurance: Assurance) -> StoreResult<Arc<RedisStore>> {
    let options = RedisOptions { assurance, ..options(2) };
    RedisStore::open(Address::parse(&server.url()).unwrap(), options).await
}

fn asking_for(ack: Ack) -> Assurance {
    Assurance { ack, ack_timeout: LIMIT, ..Assurance::default() }
}

fn batches(users: usize, n: i64) -> Vec<UserBatch> {
    let record = conformance::engagement(n, &format!("e{n}"), "item");
    (0..users).map(|user| UserBatch { user: format!("u{user}"), records: vec![record.clone()] }).collect()
}

fn item() -> Item {
    let (id, title, state) = ("i".to_string(), "a title".to_string(), ItemState::Active);
    Item { id, title, categories: Vec::new(), brand: None, price: None, state }
}

/// (accepted, duplicates) of a call that is acknowledged.
async fn acknowledged(store: &RedisStore, batches: &[UserBatch]) -> (u32, u32) {
    let outcomes = store.append(&["s".into()], batches).await.unwrap();
    let sum = |count: fn(&AppendOutcome) -> u32| outcomes.iter().map(count).sum();
    (sum(|outcome| outcome.accepted), sum(|outcome| outcome.duplicates))
}

async fn refused(store: &RedisStore, batches: &[UserBatch]) -> String {
    let started = Instant::now();
    let error = store.append(&["s".into()], batches).await.unwrap_err();
    assert!(started.elapsed() >= LIMIT, "it was waited for");
    assert!(error.is_transient(), "{error}");
    match error {
        StoreError::NotDurable { message, .. } => message,
        other => panic!("{other}"),
    }
}

async fn check_replicated(master: RedisServer, replica: RedisServer) {
    replica.follow(&master);
    let store = open(&master, asking_for(Ack::Replicated)).await.unwrap();
    assert_eq!(acknowledged(&store, &batches(20, 1)).await, (20, 0));
    assert_eq!(acknowledged(&store, &batches(20, 1)).await, (0, 20));
    assert_eq!(acknowledged(&store, &batches(500, 9)).await, (500, 0), "in pieces");
    assert_eq!(store.replicas().await.unwrap().lacking, None);

    replica.signal("STOP");
    let said = refused(&store, &batches(20, 2)).await;
    assert!(said.contains("0 of 1 replicas"), "{said}");
    // On its way to the replica, but not there: what is only a duplicate by now is acknowledged no sooner.
    refused(&store, &batches(20, 2)).await;
    // In pieces, and still waited for once.
    let started = Instant::now();
    refused(&store, &batches(500, 10)).await;
    assert!(started.elapsed() < 5 * LIMIT, "{:?}", started.elapsed());
    assert!(store.put_items(&[item()]).await.is_err(), "items, too");
    assert!(store.note_erasure("u0").await.is_err(), "and erasures");
    let lacking = store.replicas().await.unwrap().lacking.unwrap();
    assert!(lacking.contains("0 of 1 replicas"), "{lacking}");
    // Who reads does not stand behind who waits.
    let (live, third) = (["s".to_string()], batches(1, 3));
    let (_, read) = tokio::join!(store.append(&live, &third), async {
        let started = Instant::now();
        store.histories(&["u1".to_string()]).await.unwrap();
        started.elapsed()
    });
    assert!(read < LIMIT / 2, "a read took {read:?}");

    replica.signal("CONT");
    assert_eq!(acknowledged(&store, &batches(20, 2)).await, (0, 20), "the repeat is a duplicate, and acknowledged");
    assert_eq!(store.replicas().await.unwrap().lacking, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_11_what_no_replica_has_is_not_acknowledged_however_often_it_is_sent() {
    check_replicated(RedisServer::with(&[]), RedisServer::with(&[])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_11_the_same_on_a_newer_server_which_answers_a_connection_without_writes_at_once() {
    let Some(master) = RedisServer::valkey(&[]) else { return };
    let replica = RedisServer::valkey(&[]).unwrap();
    check_replicated(master, replica).await;
}

#[tokio::test]
async fn audit_11_a_cluster_is_asked_master_by_master() {
    let cluster = RedisCluster::start_with_replicas();
    let open = async |ack_timeout: Duration| {
        let options =
            RedisOptions { assurance: Assurance { ack_timeout, ..asking_for(Ack::Replicated) }, ..options(8) };
        RedisStore::open(Address::parse(&cluster.url()).unwrap(), options).await.unwrap()
    };
    // Six servers on a busy machine: what must be acknowledged has more time than what is waited for in vain.
    let (store, hasty) = (open(20 * LIMIT).await, open(LIMIT).await);
    assert_eq!(acknowledged(&store, &batches(60, 1)).await, (60, 0));
    assert_eq!(
        store.replicas().await.unwrap(),
        Replicas { incarnation: store.incarnation().await.unwrap(), lacking: None }
    );
    let erasure = store.note_erasure("u0").await.unwrap();
    store.finish_erasure(&erasure, 1).await.unwrap();

    cluster.replicas[1].signal("STOP");
    let said = refused(&hasty, &batches(60, 2)).await;
    let master = format!("127.0.0.1:{}", cluster.nodes[1].port);
    assert!(said.contains(&master), "{said}");
    assert!(hasty.replicas().await.unwrap().lacking.unwrap().contains(&master));
    assert!(hasty.finish_erasure(&erasure, 1).await.is_err(), "its steps went to any master");
    cluster.replicas[1].signal("CONT");
    assert_eq!(acknowledged(&store, &batches(60, 2)).await, (0, 60));
}

#[tokio::test]
async fn audit_11_a_master_without_a_replica_is_asked_for_none_until_it_has_one() {
    let (master, replica) = (RedisServer::with(&[]), RedisServer::with(&[]));
    let store = open(&master, Assurance { ack_timeout: LIMIT, ..Assurance::default() }).await.unwrap();
    assert_eq!(store.replicas().await.unwrap().lacking, None, "none was ever there");
    replica.follow(&master);
    assert_eq!(store.replicas().await.unwrap().lacking, None, "found and asked");
    drop(replica);
    let lacking = store.replicas().await.unwrap().lacking.unwrap();
    assert!(lacking.contains("0 of 1 replicas"), "one was there: {lacking}");
    assert_eq!(acknowledged(&store, &batches(1, 1)).await, (1, 0), "under `applied` only the offsets wait");

    let off = Assurance { ack_replicas: 0, ..Assurance::default() };
    assert_eq!(open(&master, off).await.unwrap().replicas().await.unwrap().lacking, None);
}

#[tokio::test]
async fn audit_11_what_is_not_on_the_disk_is_not_acknowledged() {
    let append_only = ["--appendonly", "yes", "--appendfsync", "everysec"];
    let Some(server) = RedisServer::valkey(&append_only) else { return };
    // The disk is written every second, and perhaps a little later.
    let patient = Assurance { ack_timeout: Duration::from_secs(10), ..asking_for(Ack::Synced) };
    let store = open(&server, patient).await.unwrap();
    let started = Instant::now();
    assert_eq!(acknowledged(&store, &batches(20, 1)).await, (20, 0));
    println!(
        "audit 11: an append that is acknowledged when it is on the disk (everysec): {:.2} s",
        started.elapsed().as_secs_f64()
    );

    let store = open(&server, asking_for(Ack::Synced)).await.unwrap();
    server.command(&["CONFIG", "SET", "appendfsync", "no"]);
    let said = refused(&store, &batches(20, 2)).await;
    assert!(said.contains("append-only file"), "{said}");
    refused(&store, &batches(20, 2)).await;
    server.command(&["CONFIG", "SET", "appendfsync", "always"]);
    assert_eq!(acknowledged(&store, &batches(20, 2)).await, (0, 20));

    server.command(&["CONFIG", "SET", "appendonly", "no"]);
    let error = open(&server, asking_for(Ack::Synced)).await.err().unwrap().to_string();
    assert!(error.contains("appendonly yes"), "{error}");
}

#[tokio::test]
async fn audit_11_a_server_that_cannot_keep_the_promise_is_refused_at_the_start() {
    let server = RedisServer::start();
    let error = open(&server, asking_for(Ack::Synced)).await.err().unwrap();
    assert!(matches!(&error, StoreError::Open { message, .. } if message.contains("WAITAOF")), "{error}");

    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let error = open(&server, Assurance::default()).await.err().unwrap();
    let named = |message: &str| message.contains("allkeys-lru") && message.contains("store.allow_eviction");
    assert!(matches!(&error, StoreError::Open { message, .. } if named(message)), "{error}");
    assert!(open(&server, Assurance { allow_eviction: true, ..Assurance::default() }).await.is_ok());
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    assert!(open(&server, Assurance::default()).await.is_ok());
}
