//! The refresh policy from outside: who waits, who goes first, and what the token budget holds back.

use crate::rig::{SOON, Server, Setup, wait_until};
use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::json;
use std::path::Path;

/// One event does not make a user due again for an hour.
fn patient(folder: &Path) -> Setup {
    Setup::canned(&data_plane_bundle(folder), &folder.join("store"))
        .env("TAIJI__REFRESH__WEIGHT_THRESHOLD", "1000")
        .env("TAIJI__REFRESH__MAX_INTERVAL_MS", "3600000")
        .env("TAIJI__REFRESH__SPARSE_EVENTS", "0")
}

fn wait_for_line(server: &Server, line: &str) {
    wait_until(line, SOON, || server.metrics().lines().any(|found| found == line).then_some(()));
}

#[test]
fn a_refresh_asked_for_goes_before_its_time() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = patient(folder.path()).start();
    let start = now_ms() - 10_000;
    server.post("/v1/events", &click("u", "e1", start)).expect_status(202);
    server.wait_for_features(&["u".to_string()], SOON);
    server.post("/v1/events", &click("u", "e2", start + 1)).expect_status(202);
    wait_for_line(&server, "taiji_queue_users{class=\"3\"} 1");
    assert_eq!(server.row("u", "intra")["groups"]["intra"]["meta"]["seq"], json!(1), "it waits");

    let answer = server.post("/v1/users/u/refresh", &json!({})).expect_status(202).json();
    assert_eq!(answer, json!({ "queued": true, "seq": 2 }));
    server.wait_for_features(&["u".to_string()], SOON);
    assert_eq!(server.post_bytes("/v1/users/u/refresh", b"").status, 202, "a body is not needed");
    wait_until("a skip", SOON, || (server.metric("taiji_refresh_skips_total") >= 1.0).then_some(()));
    assert_eq!(server.post("/v1/users/nobody/refresh", &json!({})).error().0, 404);
}

#[test]
fn what_the_token_budget_does_not_let_through_waits_but_not_those_asked_for() {
    let folder = tempfile::tempdir().expect("tempdir");
    // One token a day: the first refresh takes it and a debt for weeks.
    let server = patient(folder.path()).env("TAIJI__REFRESH__TOKENS_PER_DAY", "1").start();
    let events: Vec<_> = (0..5).map(|user| click(&format!("u{user}"), "e", now_ms() - 5000 + user)).collect();
    server.post("/v1/events", &json!({ "events": events })).expect_status(202);
    wait_for_line(&server, "taiji_refreshes_total{result=\"written\"} 1");
    wait_for_line(&server, "taiji_queue_users{class=\"1\"} 4");
    server.post("/v1/users/u4/refresh", &json!({})).expect_status(202);
    server.wait_for_features(&["u4".to_string()], SOON);
    wait_for_line(&server, "taiji_refreshes_total{result=\"written\"} 2");
    wait_for_line(&server, "taiji_queue_users{class=\"1\"} 3");
    assert!(server.metric("taiji_refresh_budget_left_tokens") < 0.0);
    let seen: Vec<bool> = (0..5).map(|user| server.row(&format!("u{user}"), "intra")["status"] == "PRESENT").collect();
    assert_eq!(seen, [true, false, false, false, true], "the oldest of its class went first");
}
