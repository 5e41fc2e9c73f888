//! SIGTERM and Ctrl-C: what is under way ends well, and then the process.

use crate::worlds::{click, data_plane_bundle, now_ms, read_events, users_of};
use serde_json::json;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::demo_bundle;
use testkit::process::synth_files;
use testkit::process::{Server, Setup, call, connect, head, read_answer, wait_until};

/// A post whose second half is still to be sent.
struct Half {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Half {
    fn post(server: &Server, body: &str) -> Half {
        let mut stream = connect(server.public()).expect("connect");
        let (first, rest) = body.as_bytes().split_at(body.len() / 2);
        stream.write_all(&head(server.public(), "POST", "/v1/events", &[], body.len())).expect("head");
        stream.write_all(first).expect("first half");
        Half { stream, rest: rest.to_vec() }
    }

    fn finish(mut self) -> u16 {
        self.stream.write_all(&self.rest).expect("second half");
        read_answer(&mut self.stream).expect("answer").status
    }
}

/// Starts a signal's drain with requests half-way in, and readers and writers around; then lets all of it end.
fn drains_on(signal: &str) {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let mut server = Setup::canned(&bundle, &folder.path().join("store")).start();
    let (signalled, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = server.public().to_string();
    let halves: Vec<Half> = (0..8)
        .map(|n| Half::post(&server, &click(&format!("half-{n}"), &format!("e{n}"), now_ms()).to_string()))
        .collect();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (signalled, answered, address) = (&signalled, &answered, &address);
            scope.spawn(move || keep_asking(worker, address, signalled, answered));
        }
        wait_until("requests under way", Duration::from_secs(30), || {
            (answered.load(Ordering::SeqCst) > 50 && server.metric("taiji_http_requests_in_flight") >= 8.0)
                .then_some(())
        });
        signalled.store(true, Ordering::SeqCst);
        server.signal(signal);
        wait_until("the public port to close", Duration::from_secs(10), || connect(&address).err());
        for half in halves {
            assert_eq!(half.finish(), 202, "a request from before the drain");
        }
    });
    let started = Instant::now();
    assert_eq!(server.wait(Duration::from_secs(20)), Some(0), "{}", server.stderr());
    assert!(started.elapsed() < Duration::from_secs(5), "nothing was left to wait for");
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
    let again = server.start_again();
    for n in 0..8 {
        let history = again.history(&format!("half-{n}")).expect("the event of a drained request");
        assert_eq!(history["engagements"][0]["event_id"], json!(format!("e{n}")));
    }
}

/// Reads or writes until the signal came and the port is closed. Before the signal nothing may fail; after it a
/// connection may be refused, but a request that is answered is answered well.
fn keep_asking(worker: usize, address: &str, signalled: &AtomicBool, answered: &AtomicUsize) {
    for turn in 0.. {
        let user = format!("w{worker}");
        let (path, body) = match worker % 2 {
            0 => ("/v1/events", click(&user, &format!("{worker}-{turn}"), now_ms())),
            _ => ("/v1/features", json!({ "users": [user] })),
        };
        let before = signalled.load(Ordering::SeqCst);
        match call(address, "POST", path, &[], body.to_string().as_bytes()) {
            Ok(answer) => {
                assert!(answer.status < 300, "{path}: {} {}", answer.status, answer.text());
                answered.fetch_add(1, Ordering::SeqCst);
            }
            Err(_) if before => return,
            // The signal may have come while this request was on its way to the port.
            Err(error) => assert!(signalled.load(Ordering::SeqCst), "{path}: {error}"),
        }
    }
}

#[test]
fn sigterm_lets_requests_under_way_finish_and_ends_with_0() {
    drains_on("TERM");
}

#[test]
fn ctrl_c_lets_requests_under_way_finish_and_ends_with_0() {
    drains_on("INT");
}

#[test]
fn a_busy_llm_does_not_hold_the_drain_and_what_was_left_is_done_after_the_restart() {
    let folder = tempfile::tempdir().expect("tempdir");
    synth_files(folder.path(), 40, 4244);
    let events = read_events(&folder.path().join("events.jsonl"));
    let mut server = Setup::onnx(&demo_bundle(), &folder.path().join("store")).start();
    for batch in events.chunks(500) {
        server.post("/v1/events", &json!({ "events": batch })).expect_status(202);
    }
    // The engine's own number: those of the store are a second old.
    wait_until("refreshes under way", Duration::from_secs(30), || {
        (server.metric("taiji_llm_rows") > 0.0).then_some(())
    });
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
    let users = users_of(&events);
    let columns = server.start_again().wait_for_features(&users, Duration::from_secs(120));
    assert_eq!(columns["status"], json!(vec!["PRESENT"; users.len()]));
}

#[test]
fn a_client_that_never_finishes_does_not_hold_the_drain_beyond_its_limit() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let mut server =
        Setup::canned(&bundle, &folder.path().join("store")).env("TAIJI__SERVER__DRAIN_TIMEOUT_MS", "1000").start();
    let stuck = Half::post(&server, &click("u", "e", now_ms()).to_string());
    wait_until("the request", Duration::from_secs(10), || {
        (server.metric("taiji_http_requests_in_flight") >= 1.0).then_some(())
    });
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    drop(stuck);
}

#[test]
fn an_operator_who_never_finishes_does_not_hold_the_drain() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let mut server =
        Setup::canned(&bundle, &folder.path().join("store")).env("TAIJI__SERVER__DRAIN_TIMEOUT_MS", "1000").start();
    let mut stuck = connect(server.admin()).expect("connect");
    stuck.write_all(b"GET /metrics HTTP/1.1\r\nhost: operators\r\nx-part").expect("half a request");
    // The server took that connection before this one.
    assert!(server.metric("taiji_ready") == 1.0);
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    drop(stuck);
}
