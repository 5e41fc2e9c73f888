//! Two clusters on one Redis: a namespace has one owner.

use super::*;
use crate::store::{Member, Members, StoreError};

fn named(cluster: &str) -> RedisOptions {
    RedisOptions { cluster: cluster.into(), ..options(2) }
}

async fn open(server: &RedisServer, cluster: &str) -> StoreResult<Arc<RedisStore>> {
    RedisStore::open(Address::parse(&server.url()).unwrap(), named(cluster)).await
}

async fn migration(server: &RedisServer, cluster: &str) -> StoreResult<Migration> {
    Migration::look(Address::parse(&server.operators_url()).unwrap(), &named(cluster)).await
}

fn owner(server: &RedisServer) -> String {
    let answer = server.command(&["HGET", "taiji:epoch", "cluster"]);
    answer.trim().lines().last().unwrap_or_default().to_string()
}

async fn announce(store: &RedisStore) -> StoreResult<()> {
    store.announce(&Member { id: "00ff".into(), roles: "api".into(), epochs: vec![] }).await
}

/// Others are refused, whether they start or look.
async fn must_be_of(server: &RedisServer, cluster: &str) {
    assert_eq!(owner(server), cluster);
    for (other, says) in [("paris", "is of cluster \"paris\""), ("", "has no name")] {
        let error = open(server, other).await.err().expect("refused");
        let said = error.to_string();
        assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
        assert!(said.contains(&format!("belongs to cluster {cluster:?}")) && said.contains(says), "{said}");
        assert!(said.contains("store.cluster") && said.contains("store.namespace"), "{said}");
        assert!(matches!(migration(server, other).await.err(), Some(StoreError::Open { .. })));
        let checkup = Checkup::connect(Address::parse(&server.url()).unwrap(), &named(other)).await.unwrap();
        assert!(matches!(checkup.layout().await, Err(StoreError::Open { .. })));
    }
    open(server, cluster).await.unwrap();
    assert_eq!(owner(server), cluster);
}

#[tokio::test]
async fn an_empty_namespace_belongs_to_the_cluster_that_starts_first() {
    let server = RedisServer::with(&[]);
    let store = open(&server, "berlin").await.unwrap();
    must_be_of(&server, "berlin").await;
    // A server that lost everything is a new namespace, of whoever is there.
    server.command(&["FLUSHALL"]);
    announce(&store).await.unwrap();
    must_be_of(&server, "berlin").await;
}

#[tokio::test]
async fn one_in_use_is_named_by_migrate_and_who_runs_goes_on() {
    let server = RedisServer::with(&[]);
    let nameless = open(&server, "").await.unwrap();
    // All processes get the name, one by one: nobody is refused meanwhile.
    let berlin = open(&server, "berlin").await.unwrap();
    assert_eq!((open(&server, "").await.is_ok(), owner(&server).as_str()), (true, "$-1"));
    let steps = migration(&server, "berlin").await.unwrap();
    assert!(steps.steps.iter().any(|step| step.to_string().contains("give the namespace to cluster berlin")));
    steps.apply().await.unwrap();
    assert!(migration(&server, "berlin").await.unwrap().steps.is_empty());
    must_be_of(&server, "berlin").await;
    announce(&nameless).await.unwrap();
    announce(&berlin).await.unwrap();
    // Of another name: not even its entry is written.
    server.command(&["HSET", "taiji:epoch", "cluster", "paris"]);
    server.command(&["DEL", "taiji:member:00ff"]);
    assert!(matches!(announce(&berlin).await, Err(StoreError::Open { .. })));
    assert!(server.command(&["EXISTS", "taiji:member:00ff"]).contains(":0"));
}

#[tokio::test]
async fn of_two_that_start_at_once_one_has_it() {
    let server = RedisServer::with(&[]);
    let (one, other) = tokio::join!(open(&server, "berlin"), open(&server, "paris"));
    assert!(one.is_ok() != other.is_ok(), "{:?} {:?}", one.err(), other.err());
    assert_eq!(owner(&server), if one.is_ok() { "berlin" } else { "paris" });
}
