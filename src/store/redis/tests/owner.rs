//! Two clusters on one Redis: a namespace has one owner.

use super::*;
use crate::store::StoreError;

async fn open(server: &RedisServer, cluster: &str) -> StoreResult<Arc<RedisStore>> {
    let options = RedisOptions { cluster: cluster.into(), ..options(2) };
    RedisStore::open(Address::parse(&server.url()).unwrap(), options).await
}

async fn refusal(server: &RedisServer, cluster: &str) -> String {
    let error = open(server, cluster).await.err().expect("refused");
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    error.to_string()
}

fn owner(server: &RedisServer) -> String {
    let answer = server.command(&["HGET", "taiji:epoch", "cluster"]);
    answer.trim().lines().last().unwrap_or_default().to_string()
}

#[tokio::test]
async fn a_namespace_belongs_to_the_cluster_that_names_itself_first() {
    let server = RedisServer::with(&[]);
    // Nobody's until then: that is how all namespaces were before there were names.
    for cluster in ["", "", "berlin", "berlin"] {
        open(&server, cluster).await.unwrap();
    }
    assert_eq!(owner(&server), "berlin");
    for (other, says) in [("paris", "is of cluster \"paris\""), ("", "has no name")] {
        let said = refusal(&server, other).await;
        assert!(said.contains("belongs to cluster \"berlin\"") && said.contains(says), "{said}");
        assert!(said.contains("store.cluster") && said.contains("store.namespace"), "{said}");
    }
    assert_eq!(owner(&server), "berlin");
    // Who looks without starting is told the same.
    let options = RedisOptions { cluster: "paris".into(), ..options(2) };
    let address = Address::parse(&server.url()).unwrap();
    assert!(Migration::look(address.clone(), &options).await.is_err());
    assert!(Checkup::connect(address, &options).await.unwrap().layout().await.is_err());
}

#[tokio::test]
async fn of_two_that_start_at_once_one_has_it_and_a_new_namespace_keeps_its_owner() {
    let server = RedisServer::with(&[]);
    let (one, other) = tokio::join!(open(&server, "berlin"), open(&server, "paris"));
    assert!(one.is_ok() != other.is_ok(), "{:?} {:?}", one.err(), other.err());
    let store = one.or(other).unwrap();
    let had = owner(&server);
    // A server that lost everything is a new namespace, of whoever is there.
    server.command(&["FLUSHALL"]);
    let member = crate::store::Member { id: "00ff".into(), roles: "api".into(), epochs: vec![] };
    crate::store::Members::announce(store.as_ref(), &member).await.unwrap();
    assert_eq!(owner(&server), had);
}
