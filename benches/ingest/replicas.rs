//! Refreshes a second of one infer replica and of two, with an engine that takes a fixed time for each answer.
//!
//! In: a bundle. Out: rates by round. Caller: `main`. All users are due from the start; the rate is that of a window in which
//! there is always somebody due.

use super::REDIS;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::process::{Server, Setup, wait_until};
use testkit::redis::RedisServer;

/// What the engine takes for an answer, and how many it works on at once: 160 a second.
const LATENCY_MS: &str = "100";
const ROWS: &str = "16";
const USERS: usize = 6000;
/// Users of one call.
const BATCH: usize = 500;

/// `[{"one": refreshes/s, "two": refreshes/s}, …]`; which goes first alternates.
pub fn measure(bundle: &Path, rounds: usize, window: Duration) -> Vec<Value> {
    let round = |round: usize| {
        let (one, two) = match round.is_multiple_of(2) {
            true => {
                let one = rate(bundle, 1, window);
                (one, rate(bundle, 2, window))
            }
            false => {
                let two = rate(bundle, 2, window);
                (rate(bundle, 1, window), two)
            }
        };
        let both = json!({"one": one, "two": two});
        eprintln!("bench-replicas: round {}: {both}", round + 1);
        both
    };
    (0..rounds).map(round).collect()
}

fn rate(bundle: &Path, replicas: usize, window: Duration) -> f64 {
    let server = RedisServer::with(&REDIS);
    let folder = tempfile::tempdir().expect("folder");
    let member = |roles: &str| Setup::canned(bundle, folder.path()).on(&server.url()).flag("--roles", roles);
    let api = member("api").start();
    let now_ms = taiji::clock::unix_ms();
    for first in (0..USERS).step_by(BATCH) {
        let event = |user: usize| {
            json!({"event_id": format!("e{user}"), "user_id": format!("u{user}"), "item_id": "i1", "action": "click",
                "ts_ms": now_ms})
        };
        let events: Vec<Value> = (first..first + BATCH).map(event).collect();
        api.post("/v1/events", &json!({ "events": events })).expect_status(202);
    }
    let slow = |setup: Setup| {
        setup.env("TAIJI__ENGINE__NULL_LATENCY_MS", LATENCY_MS).env("TAIJI__ENGINE__MAX_ROWS", ROWS).start()
    };
    let infer: Vec<Server> = (0..replicas).map(|_| slow(member("infer"))).collect();
    let written = || infer.iter().map(|one| one.metric("taiji_refreshes_total{result=\"written\"}")).sum::<f64>();
    wait_until("every replica at work", Duration::from_secs(60), || {
        infer.iter().all(|one| one.metric("taiji_refreshes_total{result=\"written\"}") > 30.0).then_some(())
    });
    let (before, started) = (written(), Instant::now());
    // A measurement's length, not a wait for something to happen.
    std::thread::sleep(window);
    let (after, seconds) = (written(), started.elapsed().as_secs_f64());
    assert!(after < USERS as f64, "all users were refreshed before the window ended");
    (after - before) / seconds
}
