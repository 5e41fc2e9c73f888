//! A Redis that comes back without the end of its append-only file: readers of its feeds must not stand beyond what is there.

use super::*;
use crate::catalogue::Catalogue;
use crate::event::Item;
use crate::feature::Version;
use crate::retrieve::{FaissUserIndex, UserIndex, VectorTail, encode_f16};

fn vector(user: &str) -> FreshVector {
    let vector = Some(encode_f16(&[1.0, 0.0, 0.0, 0.0]));
    FreshVector { user: user.into(), era: 0, version: Version { seq: 1, turn: 0 }, vector }
}

fn item(id: &str) -> Item {
    serde_json::from_value(serde_json::json!({ "id": id, "title": id })).unwrap()
}

#[tokio::test]
async fn ids_that_are_given_out_again_are_read_again() {
    let mut server = RedisServer::start();
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(1)).await.unwrap();
    let index = Arc::new(FaissUserIndex::empty(4).unwrap());
    let mut tail = VectorTail::new(store.clone(), index.clone(), "s".into());
    let catalogue = Catalogue::from_rows(Vec::new());
    store.append_vector("s", &vector("a")).await.unwrap();
    store.put_items(&[item("i1")]).await.unwrap();
    let whole = server.log_length();
    store.append_vector("s", &vector("b")).await.unwrap();
    store.put_items(&[item("i2")]).await.unwrap();
    assert_eq!((tail.catch_up().await.unwrap(), catalogue.catch_up(store.as_ref()).await.unwrap()), (2, 2));
    assert_eq!((tail.catch_up().await.unwrap(), catalogue.catch_up(store.as_ref()).await.unwrap()), (0, 0));
    let before = last_ids(&server);

    server.lose_tail(whole);
    store.append_vector("s", &vector("c")).await.unwrap();
    store.put_items(&[item("i3")]).await.unwrap();
    assert_eq!(last_ids(&server), before, "the ids of the lost entries are these entries' now");
    assert_eq!((tail.catch_up().await.unwrap(), catalogue.catch_up(store.as_ref()).await.unwrap()), (2, 2));
    let found = index.search(&[1.0, 0.0, 0.0, 0.0], 9, "").unwrap();
    assert!(found.iter().any(|neighbour| neighbour.user == "c"), "{found:?}");
    assert!(catalogue.get("i3").is_some());
    assert_eq!(tail.catch_up().await.unwrap(), 0, "once is enough");
}

#[tokio::test]
async fn a_feed_that_was_emptied_is_read_from_its_start() {
    let server = RedisServer::start();
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(2)).await.unwrap();
    let mut tail = VectorTail::new(store.clone(), Arc::new(FaissUserIndex::empty(4).unwrap()), "s".into());
    for user in ["a", "b", "c", "d", "e", "f", "g"] {
        store.append_vector("s", &vector(user)).await.unwrap();
    }
    assert_eq!(tail.catch_up().await.unwrap(), 7);
    // The same server of the same lineage.
    server.command(&["FLUSHALL"]);
    store.append_vector("s", &vector("h")).await.unwrap();
    assert_eq!(tail.catch_up().await.unwrap(), 1);
}

fn last_ids(server: &RedisServer) -> [String; 2] {
    ["taiji:vec:{0}:s:n", "taiji:items:{items}:n"].map(|key| server.command(&["GET", key]))
}
