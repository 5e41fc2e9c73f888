//! A model call that never returns: the probes say it, and what it held is taken up elsewhere.

use crate::worlds::{click, data_plane_bundle};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::process::{SOON, Setup, call, wait_until};

const USERS: usize = 5;
const STALL: Duration = Duration::from_secs(3);

fn users() -> Vec<String> {
    (0..USERS).map(|user| format!("u{user}")).collect()
}

#[test]
fn audit_04_a_model_that_hangs_turns_the_process_unready_then_dead_and_lets_its_users_go() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, store) = (data_plane_bundle(folder.path()), folder.path().join("store"));
    let hanging = Setup::canned(&bundle, &store)
        .env("TAIJI__ENGINE__NULL_HANGS_AFTER", "2")
        .env("TAIJI__ENGINE__STALL_MS", &STALL.as_millis().to_string())
        .env("TAIJI__REFRESH__DEADLINE_MS", "1000")
        .env("TAIJI__REFRESH__LEASE_MS", "1000");
    let mut server = hanging.start();
    let events: Vec<Value> = users().iter().map(|user| click(user, &format!("{user}-1"), 1_700_000_000_000)).collect();
    server.post("/v1/events", &json!({ "events": events })).expect_status(202);
    let probe = |path: &str| call(server.admin(), "GET", path, &[], b"").expect("probe");
    let begun = Instant::now();
    let unready = wait_until("unready", SOON, || Some(probe("/readyz")).filter(|answer| answer.status == 503));
    let after = begun.elapsed();
    let said = unready.text();
    assert!(said.contains("the llm has had work and made no step for"), "{said}");
    let dead = wait_until("dead", SOON, || Some(probe("/livez")).filter(|answer| answer.status == 503));
    let dead_after = begun.elapsed();
    println!("audit 04: a hung model call: unready after {after:.1?}, dead after {dead_after:.1?} (limit {STALL:.0?})");
    assert!(dead.text().contains("replace this process"), "{}", dead.text());
    assert!(after >= STALL / 2 && dead_after >= STALL * 2 - STALL / 2, "{after:?}, {dead_after:?}");
    // Reads go on, and nobody is leased any more.
    server.post("/v1/features", &json!({ "users": users(), "groups": ["intra"] })).expect_status(200);
    wait_until("leases end", SOON, || probe("/metrics").text().contains("taiji_queue_leased 0\n").then_some(()));
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    drop(server);

    let server = Setup::canned(&bundle, &store).start();
    server.wait_for_features(&users(), SOON);
}
