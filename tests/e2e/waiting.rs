//! Requests that wait for a refresh: `wait_ms`, and `max_staleness_ms` with `deadline_ms`.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::process::{Answer, SOON, Server, Setup, call, connect, head, read_answer, wait_until};
use testkit::redis::RedisServer;

/// One event does not make a user due again for an hour.
fn patient(folder: &Path) -> Setup {
    Setup::canned(&data_plane_bundle(folder), &folder.join("store"))
        .env("TAIJI__REFRESH__WEIGHT_THRESHOLD", "1000")
        .env("TAIJI__REFRESH__MAX_INTERVAL_MS", "3600000")
        .env("TAIJI__REFRESH__SPARSE_EVENTS", "0")
}

/// Stores and serves, and refreshes nobody.
fn without_worker(folder: &Path) -> Setup {
    patient(folder).env("TAIJI__REFRESH__ENABLED", "false")
}

fn refresh(server: &Server, user: &str, wait_ms: u64) -> Answer {
    server.post(&format!("/v1/users/{user}/refresh"), &json!({ "wait_ms": wait_ms }))
}

/// Reads `intra` of users.
fn read(server: &Server, users: &[&str], max_staleness_ms: u64, deadline_ms: Option<u64>) -> Answer {
    let mut body = json!({ "users": users, "groups": ["intra"], "max_staleness_ms": max_staleness_ms });
    if let Some(deadline_ms) = deadline_ms {
        body["deadline_ms"] = json!(deadline_ms);
    }
    server.post("/v1/features", &body)
}

fn seqs(answer: Answer) -> Value {
    answer.expect_status(200).json()["groups"]["intra"]["seq"].clone()
}

fn has_line(server: &Server, line: &str) -> bool {
    server.metrics().lines().any(|found| found == line)
}

fn wait_for_line(server: &Server, line: &str) {
    wait_until(line, SOON, || has_line(server, line).then_some(()));
}

/// A user with features of their first event, and a second event that waits for an hour.
fn with_a_user_behind(setup: Setup) -> Server {
    let server = setup.start();
    let start = now_ms() - 10_000;
    server.post("/v1/events", &click("u", "e1", start)).expect_status(202);
    server.wait_for_features(&["u".to_string()], SOON);
    server.post("/v1/events", &click("u", "e2", start + 1)).expect_status(202);
    wait_for_line(&server, "taiji_queue_users{class=\"3\"} 1");
    server
}

/// A post whose answer is taken later.
fn begin(server: &Server, path: &str, body: &Value) -> std::net::TcpStream {
    let body = body.to_string();
    let mut stream = connect(server.public()).expect("connect");
    stream.write_all(&head(server.public(), "POST", path, &[], body.len())).expect("head");
    stream.write_all(body.as_bytes()).expect("body");
    stream
}

#[test]
fn a_refresh_that_is_waited_for_answers_with_the_row() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = with_a_user_behind(patient(folder.path()));
    let row = refresh(&server, "u", 20_000).expect_status(200).json();
    assert_eq!(row["groups"]["intra"]["meta"]["seq"], json!(2), "every event of before: {row}");
    assert_eq!(row, server.get("/v1/users/u/features").expect_status(200).json(), "the row of a read");
    let again = refresh(&server, "u", 20_000).expect_status(200).json();
    assert_eq!(again, row, "nothing new is found quickly, and is an answer, too");
    // The worker tells those who wait before it counts.
    wait_for_line(&server, "taiji_refresh_skips_total{reason=\"unchanged\"} 1");
    assert!(has_line(&server, "taiji_waits_total{result=\"fresh\"} 2"));
    assert_eq!(refresh(&server, "nobody", 50).error().0, 404);
    for (body, words) in [
        (json!({ "wait_ms": 0 }), "wait_ms: must be 1 to 30000"),
        (json!({ "wait_ms": 30_001 }), "wait_ms: must be 1 to 30000"),
        (json!({ "wait_ms": -1 }), "wait_ms"),
        (json!({ "wait_ms": "5" }), "wait_ms"),
        (json!({ "wait": 5 }), "wait"),
        (json!([]), "body"),
    ] {
        let (status, code, message) = server.post("/v1/users/u/refresh", &body).error();
        assert!(status == 400 && code == "bad_request" && message.contains(words), "{body}: {message}");
    }
    assert_eq!(server.post("/v1/users/u/refresh", &json!({ "wait_ms": null })).status, 202, "no wait");
}

#[test]
fn a_wait_whose_time_is_over_says_that_the_user_is_queued() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = without_worker(folder.path()).start();
    server.post("/v1/events", &click("u", "e1", now_ms() - 5000)).expect_status(202);
    let started = Instant::now();
    let answer = refresh(&server, "u", 300).expect_status(202).json();
    assert_eq!(answer, json!({ "queued": true, "seq": 1 }));
    assert!(started.elapsed() >= Duration::from_millis(300) && started.elapsed() < Duration::from_secs(5));
    // Nobody waits any more, so the user stands where a new user stands.
    wait_for_line(&server, "taiji_queue_users{class=\"1\"} 1");
    let started = Instant::now();
    let columns = read(&server, &["u", "nobody"], 60_000, Some(300)).expect_status(200).json();
    assert_eq!(columns["status"], json!(["MISSING", "MISSING"]), "what there is");
    assert!(started.elapsed() >= Duration::from_millis(300) && started.elapsed() < Duration::from_secs(5));
    assert!(has_line(&server, "taiji_waits_total{result=\"late\"} 2"));
    let started = Instant::now();
    read(&server, &["nobody"], 0, Some(20_000)).expect_status(200);
    assert!(started.elapsed() < Duration::from_secs(5), "nobody to wait for");
}

#[test]
fn a_read_waits_for_users_who_are_behind_and_for_no_others() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = with_a_user_behind(patient(folder.path()));
    assert_eq!(seqs(read(&server, &["u"], 3_600_000, Some(20_000))), json!([1]), "young enough");
    // And not moved.
    wait_for_line(&server, "taiji_queue_users{class=\"3\"} 1");
    assert_eq!(seqs(read(&server, &["u", "nobody", "u"], 0, Some(20_000))), json!([2, 0, 2]));
    assert_eq!(seqs(read(&server, &["u"], 0, Some(20_000))), json!([2]), "nothing to wait for");
    assert!(has_line(&server, "taiji_waits_total{result=\"fresh\"} 1"), "one of the three waited");

    server.post("/v1/events", &click("u", "e3", now_ms())).expect_status(202);
    wait_for_line(&server, "taiji_queue_users{class=\"3\"} 1");
    let at_once = seqs(read(&server, &["u"], 0, None));
    assert!(at_once == json!([2]) || at_once == json!([3]), "without a deadline it is only queued: {at_once}");
    wait_until("the refresh", SOON, || {
        (server.columns(&["u".into()])["groups"]["intra"]["seq"] == json!([3])).then_some(())
    });
    assert!(has_line(&server, "taiji_waits_total{result=\"fresh\"} 1"));

    for (fields, words) in [
        (json!({ "deadline_ms": 50 }), "deadline_ms: goes with max_staleness_ms"),
        (json!({ "deadline_ms": 0, "max_staleness_ms": 5 }), "deadline_ms: must be 1 to 30000"),
        (json!({ "deadline_ms": 30_001, "max_staleness_ms": 5 }), "deadline_ms: must be 1 to 30000"),
        (json!({ "deadline_ms": 50, "max_staleness_ms": -5 }), "max_staleness_ms"),
        (json!({ "deadline_ms": 50, "max_staleness_ms": 0.5 }), "max_staleness_ms"),
        (json!({ "deadline_ms": 50, "max_staleness_ms": 5, "users": [] }), "users: is empty"),
    ] {
        let mut body = json!({ "users": ["u"] });
        body.as_object_mut().expect("object").extend(fields.as_object().expect("object").clone());
        let (status, code, message) = server.post("/v1/features", &body).error();
        assert!(status == 400 && code == "bad_request" && message.contains(words), "{body}: {message}");
    }
}

#[test]
fn requests_that_wait_are_few_and_give_their_place_back() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = without_worker(folder.path()).env("TAIJI__SERVER__MAX_WAITING", "1").start();
    server.post("/v1/events", &click("u", "e1", now_ms() - 5000)).expect_status(202);
    let waiting = begin(&server, "/v1/users/u/refresh", &json!({ "wait_ms": 30_000 }));
    wait_for_line(&server, "taiji_waiting_requests 1");
    for answer in [refresh(&server, "u", 50), read(&server, &["u"], 0, Some(50))] {
        assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
        let (status, code, message) = answer.error();
        assert!(status == 429 && code == "overloaded" && message.contains("1 requests wait"), "{message}");
    }
    read(&server, &["u"], 0, None).expect_status(200);
    server.get("/v1/users/u/features").expect_status(200);
    assert!(has_line(&server, "taiji_waits_total{result=\"refused\"} 2"));
    drop(waiting);
    wait_for_line(&server, "taiji_waiting_requests 0");
    assert_eq!(refresh(&server, "u", 50).status, 202, "the place is free again");
}

#[test]
fn a_drain_ends_every_wait_at_once() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut server = without_worker(folder.path()).start();
    server.post("/v1/events", &click("u", "e1", now_ms() - 5000)).expect_status(202);
    let mut refresh = begin(&server, "/v1/users/u/refresh", &json!({ "wait_ms": 30_000 }));
    let body = json!({ "users": ["u"], "max_staleness_ms": 0, "deadline_ms": 30_000 });
    let mut read = begin(&server, "/v1/features", &body);
    wait_for_line(&server, "taiji_waiting_requests 2");
    let started = Instant::now();
    server.signal("TERM");
    let answer = read_answer(&mut refresh).expect("answer").expect_status(202).json();
    assert_eq!(answer, json!({ "queued": true, "seq": 1 }));
    assert_eq!(read_answer(&mut read).expect("answer").expect_status(200).json()["status"], json!(["MISSING"]));
    assert_eq!(server.wait(Duration::from_secs(20)), Some(0), "{}", server.stderr());
    assert!(started.elapsed() < Duration::from_secs(5), "nothing was left to wait for");
}

#[test]
fn a_wait_needs_the_right_to_read_what_it_answers_with() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = without_worker(folder.path())
        .env("TAIJI__AUTH__WRITE_KEYS", "write-key-of-sixteen,both-key-of-sixteen")
        .env("TAIJI__AUTH__READ_KEYS", "both-key-of-sixteen")
        .start();
    let post = |key: &str, path: &str, body: Value| {
        let header = format!("Bearer {key}");
        call(server.public(), "POST", path, &[("authorization", &header)], body.to_string().as_bytes()).expect("answer")
    };
    post("write-key-of-sixteen", "/v1/events", click("u", "e1", now_ms() - 5000)).expect_status(202);
    let path = "/v1/users/u/refresh";
    post("write-key-of-sixteen", path, json!({})).expect_status(202);
    assert_eq!(post("write-key-of-sixteen", path, json!({ "wait_ms": 50 })).error().0, 401);
    post("both-key-of-sixteen", path, json!({ "wait_ms": 50 })).expect_status(202);
}

#[test]
fn a_wait_ends_when_another_process_has_refreshed_the_user() {
    let redis = RedisServer::start();
    let folder = tempfile::tempdir().expect("tempdir");
    let asked = without_worker(folder.path()).on(&redis.url()).start();
    let _works = patient(folder.path()).on(&redis.url()).start();
    asked.post("/v1/events", &click("u", "e1", now_ms() - 5000)).expect_status(202);
    let row = refresh(&asked, "u", 20_000).expect_status(200).json();
    assert_eq!(row["groups"]["intra"]["meta"]["seq"], json!(1), "{row}");
    asked.post("/v1/events", &click("u", "e2", now_ms())).expect_status(202);
    assert_eq!(seqs(read(&asked, &["u"], 0, Some(20_000))), json!([2]));
    refresh(&asked, "u", 20_000).expect_status(200);
    assert!(has_line(&asked, "taiji_waits_total{result=\"late\"} 0"));
    assert!(has_line(&asked, "taiji_refreshes_total{result=\"written\"} 0"), "it refreshes nobody itself");
}
