//! Items that are posted and deleted, on every replica.

use crate::worlds::data_plane_bundle;
use serde_json::{Value, json};
use testkit::process::{SOON, Server, Setup, call, free_address, wait_until};
use testkit::redis::RedisServer;

fn overlay(server: &Server) -> f64 {
    server.metric("taiji_catalogue_items{part=\"overlay\"}")
}

fn delete(server: &Server, id: &str) -> Value {
    call(server.public(), "DELETE", &format!("/v1/items/{id}"), &[], b"").expect("answer").expect_status(202).json()
}

fn post(server: &Server, ids: &[&str]) -> Value {
    let items: Vec<Value> = ids.iter().map(|id| json!({ "id": id, "title": format!("Lamp {id}") })).collect();
    server.post("/v1/items", &json!({ "items": items })).json()
}

#[test]
fn audit_08_a_deleted_item_is_gone_from_every_replica_also_after_a_restart() {
    let (folder, redis) = (tempfile::tempdir().expect("tempdir"), RedisServer::start());
    let setup = Setup::canned(&data_plane_bundle(folder.path()), folder.path()).on(&redis.url());
    let elsewhere = || setup.clone().at(&free_address(), &free_address());
    let (first, second) = (setup.start(), elsewhere().start());
    assert_eq!(post(&first, &["a", "b"])["accepted"], 2);
    wait_until("both replicas know both items", SOON, || {
        (overlay(&first) == 2.0 && overlay(&second) == 2.0).then_some(())
    });
    assert_eq!(delete(&first, "a"), json!({ "deleted": true }));
    wait_until("both replicas forget one", SOON, || (overlay(&first) == 1.0 && overlay(&second) == 1.0).then_some(()));
    // Who asks again hears that it is gone; an item of the bundle can be deleted as well, and comes back when it is posted.
    assert_eq!(delete(&second, "a"), json!({ "deleted": false }));
    assert_eq!(delete(&second, "never-heard-of"), json!({ "deleted": false }));
    let bundled = crate::worlds::small_catalogue()[0].id.clone();
    assert_eq!(delete(&second, &bundled), json!({ "deleted": true }));
    let third = elsewhere().start();
    assert_eq!(delete(&third, &bundled), json!({ "deleted": false }));
    assert_eq!(post(&third, &[&bundled])["accepted"], 1);
    assert_eq!(delete(&first, &bundled), json!({ "deleted": true }));
}

#[test]
fn audit_08_the_catalogue_has_room_for_so_many_items() {
    let folder = tempfile::tempdir().expect("tempdir");
    let setup = Setup::canned(&data_plane_bundle(folder.path()), &folder.path().join("store"));
    let server = setup.env("TAIJI__CATALOGUE__MAX_ITEMS", "2").start();
    let told = post(&server, &["a", "b", "c", "a"]);
    assert_eq!((&told["accepted"], &told["rejected"][0]["index"]), (&json!(3), &json!(2)), "{told}");
    assert!(told["rejected"][0]["reason"].as_str().expect("reason").contains("catalogue.max_items"), "{told}");
    assert_eq!(post(&server, &["d"])["accepted"], 0);
    assert_eq!(delete(&server, "a"), json!({ "deleted": true }));
    assert_eq!(post(&server, &["b", "d"])["accepted"], 2);
}
