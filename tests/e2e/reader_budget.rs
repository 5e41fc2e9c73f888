//! Refreshes asked for by readers draw on a budget of their own, by key and in all.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use testkit::process::{Answer, SOON, Server, Setup, call};

const READ: &str = "read-key-read-key-1";
const WRITE: &str = "write-key-write-key";
const ADMIN: &str = "admin-key-admin-key";

/// Nobody becomes due by themselves; three refreshes a minute with one key, five in all.
fn server(folder: &tempfile::TempDir) -> Server {
    Setup::canned(&data_plane_bundle(folder.path()), &folder.path().join("store"))
        .env("TAIJI__AUTH__READ_KEYS", READ)
        .env("TAIJI__AUTH__WRITE_KEYS", WRITE)
        .env("TAIJI__AUTH__ADMIN_KEYS", ADMIN)
        .env("TAIJI__REFRESH__READER_REFRESHES", "5")
        .env("TAIJI__REFRESH__READER_REFRESHES_PER_KEY", "3")
        .env("TAIJI__REFRESH__TOKENS_PER_DAY", "1")
        .start()
}

fn post(server: &Server, key: &str, path: &str, body: &Value) -> Answer {
    let key = format!("Bearer {key}");
    call(server.public(), "POST", path, &[("authorization", &key)], body.to_string().as_bytes()).expect("answer")
}

fn read(server: &Server, key: &str, users: &[&str]) -> Answer {
    let body = json!({ "users": users, "groups": ["intra"], "max_staleness_ms": 0, "deadline_ms": 20_000 });
    post(server, key, "/v1/features", &body).expect_status(200)
}

#[test]
fn audit_06_a_read_refreshes_whom_the_budget_holds_and_a_refresh_over_it_is_refused() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = server(&folder);
    let users = ["e", "d", "c", "b", "a"];
    for user in ["spender"].iter().chain(&users) {
        post(&server, WRITE, "/v1/events", &click(user, "e1", now_ms() - 1000)).expect_status(202);
    }
    // The token budget of a day goes to the first who was due; from then on only readers have anybody refreshed.
    testkit::process::wait_until("the day's tokens to be spent", SOON, || {
        (server.metric("taiji_refresh_budget_left_tokens") <= 0.0).then_some(())
    });
    let answer = read(&server, READ, &users);
    let shown = answer.json()["groups"]["intra"]["status"].clone();
    let over: usize = answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix("x-refreshes-over-budget: ")?.parse().ok())
        .expect("how many were over");
    assert!((1..=2).contains(&over), "three of those behind were held: {}", answer.head);
    let present = |status: &Value| status == "PRESENT";
    let statuses = shown.as_array().expect("statuses");
    assert!(statuses[..3].iter().all(present), "in the order given: {shown}");
    let refused = post(&server, READ, "/v1/users/a/refresh", &json!({})).expect_status(401);
    assert_eq!(refused.error().1, "unauthorized");
    // The write key has three of its own, but only two are left of all.
    for _ in 0..2 {
        post(&server, WRITE, "/v1/users/a/refresh", &json!({})).expect_status(202);
    }
    for body in [json!({}), json!({ "wait_ms": 1000 })] {
        let answer = post(&server, ADMIN, "/v1/users/a/refresh", &body).expect_status(429);
        let error = answer.json()["error"].clone();
        assert_eq!(
            (&error["code"], &error["details"]["all"]["left"]),
            (&json!("refresh_budget"), &json!(0)),
            "{error}"
        );
        assert_eq!(error["details"]["key"]["per_minute"], json!(3), "{error}");
        let after_ms = error["details"]["retry_after_ms"].as_u64().expect("when");
        assert!((1..=12_000).contains(&after_ms), "{error}");
        let seconds = answer.head.lines().find_map(|line| line.strip_prefix("retry-after: ")?.parse::<u64>().ok());
        assert_eq!(seconds, Some(after_ms.div_ceil(1000)), "{}", answer.head);
    }
    // A read over the budget is answered from the store.
    let answer = read(&server, ADMIN, &users);
    assert!(over == 0 || answer.head.contains("x-refreshes-over-budget: "), "{}", answer.head);
    assert_eq!(server.metric("taiji_reader_refreshes_total{result=\"granted\"}"), 5.0);
    println!("audit 06: of 5 users behind a read with 3 refreshes left shows {} refreshed, {over} over", 5 - over);
}
