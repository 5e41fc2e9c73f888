//! `taiji backfill`: a killed run goes on, nothing is lost or counted twice, and the users are refreshed when served.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use testkit::TAIJI;
use testkit::process::{SOON, Server, Setup, command, run_with, wait_until};
use testkit::redis::RedisServer;

const USERS: usize = 20;

/// User k has 40 + k clicks, mixed with the others'; two lines are bad.
fn write_history(path: &Path) -> Vec<String> {
    let start = now_ms() - 10_000_000;
    let mut lines = Vec::new();
    for place in 0..40 + USERS {
        for user in (0..USERS).filter(|user| place < 40 + user) {
            lines
                .push(click(&format!("u{user}"), &format!("u{user}-{place}"), start + place as i64 * 1000).to_string());
        }
    }
    lines.insert(3, "{\"user_id\": ".into());
    lines.push("{\"user_id\": \"u1\", \"action\": \"stare\", \"ts_ms\": 1700000000000}".into());
    std::fs::write(path, lines.join("\n")).expect("events");
    lines
}

#[test]
fn a_killed_backfill_goes_on_and_its_users_are_refreshed() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let file = folder.path().join("events.jsonl");
    let lines = write_history(&file);
    let good = lines.len() - 2;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (file, store, rejected) = (path("events.jsonl"), format!("embedded:{}", path("store")), path("rejected.jsonl"));
    let bundle_path = bundle.display().to_string();
    let arguments = ["backfill", "--file", &file, "--store", &store, "--bundle", &bundle_path, "--batch", "20"];
    let more = ["--rejected", &rejected, "--refresh-rate", "1000"];

    let mut first = command(&TAIJI, &arguments).args(more).args(["--rate", "300"]).spawn().expect("backfill");
    wait_until("a checkpoint", SOON, || Path::new(&path("events.jsonl.checkpoint")).exists().then_some(()));
    first.kill().expect("kill -9");
    assert!(!first.wait().expect("end").success(), "it was killed before its end");

    let second = run_with(&TAIJI, &[&arguments[..], &more].concat(), &[]).expect_code(0);
    assert!(second.stdout.contains("rows were done before"), "{}", second.stdout);
    assert!(second.stdout.contains(&format!("users: {USERS} in the file, {USERS} became due")), "{}", second.stdout);
    let reasons: Vec<Value> = std::fs::read_to_string(&rejected)
        .expect("rejected rows")
        .lines()
        .map(|line| serde_json::from_str(line).expect("json"))
        .collect();
    let last = reasons.last().expect("a rejection");
    assert_eq!((last["row"].as_u64(), last["field"].as_str()), (Some(lines.len() as u64), Some("action")));

    let third = run_with(&TAIJI, &[&arguments[..], &["--checkpoint", &path("other")]].concat(), &[]).expect_code(0);
    assert!(third.stdout.contains(" 0 accepted (") && third.stdout.contains(&format!("{good} duplicates")));

    let server = Setup::canned(&bundle, &folder.path().join("store")).start();
    let users: Vec<String> = (0..USERS).map(|user| format!("u{user}")).collect();
    for (user, name) in users.iter().enumerate() {
        let history = server.history(name).expect("history");
        assert_eq!(history["seq"].as_u64(), Some(40 + user as u64), "{name}");
        assert_eq!(history["engagements"].as_array().expect("list").len(), 40 + user, "{name}");
    }
    server.wait_for_features(&users, Duration::from_secs(60));

    let held = run_with(&TAIJI, &arguments, &[]).expect_code(69);
    assert!(held.stderr.contains("store"), "a store in use is named: {}", held.stderr);
    let elsewhere = format!("embedded:{}", path("other-store"));
    let foreign = ["backfill", "--file", &file, "--store", &elsewhere, "--bundle", &bundle_path];
    let foreign = run_with(&TAIJI, &foreign, &[]).expect_code(64);
    assert!(foreign.stderr.contains("of another store or space"), "{}", foreign.stderr);
}

/// Beside a replica that refreshes and sweeps all the time, also while the history is being read.
#[test]
fn audit_12_a_backfill_keeps_its_budget_beside_a_running_replica() {
    const BUDGET: usize = 3;
    let (folder, redis) = (tempfile::tempdir().expect("tempdir"), RedisServer::start());
    let bundle = data_plane_bundle(folder.path());
    let setup = Setup::canned(&bundle, folder.path()).on(&redis.url());
    let setup = setup.env("TAIJI__REFRESH__SWEEP_INTERVAL_MS", "200");
    let running = setup.start();
    let file = folder.path().join("events.jsonl").display().to_string();
    write_history(Path::new(&file));
    let (url, bundle) = (redis.url(), bundle.display().to_string());
    let common = ["--store", &url, "--bundle", &bundle];
    // Some seconds, in which sweeps find users half read.
    let limits = ["--refresh-rate", "1000", "--refresh-users", &BUDGET.to_string(), "--rate", "300", "--batch", "20"];
    let told = run_with(&TAIJI, &[&["backfill", "--file", &file][..], &common, &limits].concat(), &[]).expect_code(0);
    assert!(told.stdout.contains(&format!("{BUDGET} became due")), "{}", told.stdout);
    let users: Vec<String> = (0..USERS).map(|user| format!("u{user}")).collect();
    let refreshed = |server: &Server| {
        let columns = server.columns(&users);
        columns["status"].as_array().expect("status").iter().filter(|status| *status == "PRESENT").count()
    };
    wait_until("the users of the budget", SOON, || (refreshed(&running) == BUDGET).then_some(()));
    // (A sweep may look at one of the budget just before it is refreshed.)
    let swept = running.metric("taiji_queue_swept_total");
    assert!(swept <= BUDGET as f64, "{swept} users were marked while the history was read");
    drop(running);

    // The first sweep of a new process counts whom it passes over.
    let sweeping = setup.start();
    let held = || sweeping.metric("taiji_queue_held_users") as usize;
    wait_until("a sweep", SOON, || (held() == USERS - BUDGET).then_some(()));
    let swept = sweeping.metric("taiji_queue_swept_total");
    assert_eq!((refreshed(&sweeping), swept), (BUDGET, 0.0), "nobody beyond the budget");
    // An event of now takes the mark off one of them.
    let left =
        users.iter().find(|user| sweeping.row(user, "intra")["status"] != "PRESENT").expect("a user without features");
    let event = click(left, "of now", now_ms());
    sweeping.post("/v1/events", &serde_json::json!({ "events": [event] })).expect_status(202);
    wait_until("the user of the event", SOON, || (refreshed(&sweeping) == BUDGET + 1).then_some(()));
    wait_until("one fewer is held back", SOON, || (held() == USERS - BUDGET - 1).then_some(()));

    let release = [&["backfill", "release"][..], &common, &["--rate", "1000"]].concat();
    let told = run_with(&TAIJI, &[&release[..], &["--users", "4"]].concat(), &[]).expect_code(0).stdout;
    assert!(told.contains("4 users became due"), "{told}");
    wait_until("the users released", SOON, || (refreshed(&sweeping) == BUDGET + 5).then_some(()));
    let told = run_with(&TAIJI, &release, &[]).expect_code(0).stdout;
    assert!(told.contains(&format!("{} users became due", USERS - BUDGET - 5)), "{told}");
    wait_until("all", SOON, || (refreshed(&sweeping) == USERS && held() == 0).then_some(()));
    println!("audit 12: users held back by a backfill of {USERS} with a budget of {BUDGET}: {}", USERS - BUDGET);
}
