//! The service on Redis: events in, features out, a restart of the service, two services on one store.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use testkit::TAIJI;
use testkit::process::{SOON, Setup, command, run};
use testkit::redis::{RedisCluster, RedisServer};

fn events(users: &[String]) -> Value {
    let start = now_ms() - 100_000;
    let clicks = |user: &String| (0..5).map(|n| click(user, &format!("{user} {n}"), start + n)).collect::<Vec<_>>();
    json!({ "events": users.iter().flat_map(clicks).collect::<Vec<_>>() })
}

fn users() -> Vec<String> {
    ["plain", "with {braces}", "100 %", "\u{1F600} emoji"].map(String::from).to_vec()
}

/// Serves on a store, and again after a restart.
fn serves_and_keeps(url: &str) {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let setup = Setup::canned(&bundle, folder.path()).on(url);
    let mut server = setup.start();
    let told = server.post("/v1/events", &events(&users())).expect_status(202).json();
    assert_eq!((told["accepted"].as_u64(), told["duplicates"].as_u64()), (Some(20), Some(0)));
    let before = server.wait_for_features(&users(), SOON);
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());

    let again = setup.start();
    let after = again.columns(&users());
    assert_eq!(after["groups"]["intra"]["seq"], before["groups"]["intra"]["seq"]);
    assert_eq!(after["features"]["intra.sparse_ids"], before["features"]["intra.sparse_ids"]);
    let told = again.post("/v1/events", &events(&users())).expect_status(202).json();
    assert_eq!(told["duplicates"].as_u64(), Some(20), "{told}");
    // A second service on the same store answers the same.
    let second = Setup::canned(&bundle, folder.path()).on(url).start();
    assert_eq!(second.columns(&users())["features"], again.columns(&users())["features"]);
}

#[test]
fn a_restart_of_the_service_keeps_everything_on_redis() {
    serves_and_keeps(&RedisServer::start().url());
}

#[test]
fn a_restart_of_the_service_keeps_everything_on_a_cluster() {
    serves_and_keeps(&RedisCluster::start().url());
}

#[test]
fn migrate_plans_applies_and_checks() {
    let server = RedisServer::start();
    let url = server.operators_url();
    let migrate = |action: &str| run(command(&TAIJI, &["migrate", "--store", &url, action]));
    assert!(migrate("plan").expect_code(0).stdout.contains("load the functions"));
    migrate("check").expect_code(69);
    assert!(migrate("apply").expect_code(0).stdout.contains("done"));
    assert!(migrate("check").expect_code(0).stdout.contains("up to date"));
    server.command(&["FUNCTION", "FLUSH"]);
    migrate("check").expect_code(69);
    let folder = tempfile::tempdir().expect("tempdir");
    drop(Setup::canned(&data_plane_bundle(folder.path()), folder.path()).on(&server.url()).start());
    assert!(migrate("check").expect_code(0).stdout.contains("up to date"));
    let embedded = run(command(&TAIJI, &["migrate", "--store", "embedded:data"])).expect_code(0);
    assert!(embedded.stdout.contains("nothing to migrate"));
    let typo = run(command(&TAIJI, &["migrate", "--store", "redis://:topsecret@host:port"])).expect_code(64);
    assert!(!typo.stderr.contains("topsecret"), "{}", typo.stderr);
}
