//! A Redis that comes back without the end of its append-only file: readers of its feeds must not stand beyond what is there.

use super::*;
use crate::catalogue::Catalogue;
use crate::retrieve::{FaissUserIndex, UserIndex, VectorTail, encode_f16};
use crate::store::Version;
use std::path::PathBuf;

fn vector(user: &str) -> FreshVector {
    let vector = Some(encode_f16(&[1.0, 0.0, 0.0, 0.0]));
    FreshVector { user: user.into(), era: 0, version: Version { seq: 1, turn: 0 }, vector }
}

fn item(id: &str) -> Item {
    serde_json::from_value(serde_json::json!({ "id": id, "title": id })).unwrap()
}

fn append_only(server: &RedisServer) -> PathBuf {
    server.folder.path().join("appendonlydir/appendonly.aof.1.incr.aof")
}

#[tokio::test]
async fn ids_that_are_given_out_again_are_read_again() {
    let mut server = RedisServer::start();
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(2)).await.unwrap();
    let index = Arc::new(FaissUserIndex::empty(4).unwrap());
    let mut tail = VectorTail::new(store.clone(), index.clone(), "s".into());
    let catalogue = Catalogue::from_rows(Vec::new());
    store.append_vector("s", &vector("a")).await.unwrap();
    store.put_items(&[item("i1")]).await.unwrap();
    let whole = std::fs::metadata(append_only(&server)).unwrap().len();
    store.append_vector("s", &vector("b")).await.unwrap();
    store.put_items(&[item("i2")]).await.unwrap();
    assert_eq!((tail.catch_up().await.unwrap(), catalogue.catch_up(store.as_ref()).await.unwrap()), (2, 2));
    assert_eq!((tail.catch_up().await.unwrap(), catalogue.catch_up(store.as_ref()).await.unwrap()), (0, 0));

    server.kill();
    std::fs::File::options().write(true).open(append_only(&server)).unwrap().set_len(whole).unwrap();
    server.restart();
    // The id of the lost entry is this one's now.
    assert_eq!(store.append_vector("s", &vector("c")).await.unwrap(), 2);
    store.put_items(&[item("i3")]).await.unwrap();
    tail.catch_up().await.unwrap();
    catalogue.catch_up(store.as_ref()).await.unwrap();
    let found = index.search(&[1.0, 0.0, 0.0, 0.0], 9, "").unwrap();
    assert!(found.iter().any(|neighbour| neighbour.user == "c"), "{found:?}");
    assert!(catalogue.get("i3").is_some());
}
