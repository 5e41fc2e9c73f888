//! The refresh policy from outside: who waits, who goes first, and what the token budget holds back.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::json;
use std::path::Path;
use testkit::process::{SOON, Server, Setup, call, free_address, wait_until};
use testkit::redis::RedisServer;

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

/// Gauges mirror the shared store, so every replica shows the same; counters count what their own process did.
#[test]
fn replicas_on_one_redis_show_one_queue_and_count_their_own_work() {
    let redis = RedisServer::start();
    let folder = tempfile::tempdir().expect("tempdir");
    let setup = patient(folder.path()).on(&redis.url());
    let idle = setup.clone().env("TAIJI__REFRESH__ENABLED", "false");
    let readers = [idle.start(), idle.at(&free_address(), &free_address()).start()];
    let events: Vec<_> = (0..3).map(|user| click(&format!("u{user}"), "e", now_ms() - 5000)).collect();
    readers[0].post("/v1/events", &json!({ "events": events })).expect_status(202);
    readers[0].post("/v1/users/u0/refresh", &json!({})).expect_status(202);
    let age = |server: &Server, class: u8| -> f64 {
        let name = format!("taiji_queue_oldest_age_seconds{{class=\"{class}\"}} ");
        let metrics = server.metrics();
        let line = metrics.lines().find(|line| line.starts_with(&name)).expect("age").to_string();
        line[name.len()..].parse().expect("number")
    };
    for server in &readers {
        for line in ["taiji_queue_users{class=\"0\"} 1", "taiji_queue_users{class=\"1\"} 2", "taiji_store_users 3"] {
            wait_for_line(server, line);
        }
        wait_until("the queue to grow old", SOON, || (age(server, 0) > 0.05 && age(server, 1) > 0.05).then_some(()));
        assert_eq!((age(server, 2), age(server, 3)), (0.0, 0.0), "nobody is there");
    }
    let accepted = readers.each_ref().map(|server| server.metric("taiji_events_total"));
    assert_eq!(accepted, [3.0, 0.0], "counted where they came");

    let worker = setup.at(&free_address(), &free_address()).start();
    wait_for_line(&worker, "taiji_refreshes_total{result=\"written\"} 3");
    worker.post("/v1/users/u1/refresh", &json!({ "wait_ms": 20_000 })).expect_status(200);
    assert!(worker.metrics().contains("taiji_refresh_skips_total{reason=\"unchanged\"} 1"));
    call(readers[0].public(), "DELETE", "/v1/users/u2", &[], b"").expect("answer").expect_status(202);
    for server in readers.iter().chain([&worker]) {
        for class in 0..=3 {
            wait_for_line(server, &format!("taiji_queue_users{{class=\"{class}\"}} 0"));
        }
        wait_for_line(server, "taiji_queue_leased 0");
        wait_for_line(server, "taiji_queue_fast_users 0");
    }
    for server in &readers {
        for metric in ["taiji_refreshes_total", "taiji_refresh_skips_total", "taiji_queue_swept_total"] {
            assert_eq!(server.metric(metric), 0.0, "{metric} is the worker's");
        }
    }
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
    let held = || server.metric("taiji_refresh_budget_held_seconds_total");
    wait_until("time held back", SOON, || (held() > 0.1).then_some(()));
    let seen: Vec<bool> = (0..5).map(|user| server.row(&format!("u{user}"), "intra")["status"] == "PRESENT").collect();
    assert_eq!(seen, [true, false, false, false, true], "the oldest of its class went first");
}
