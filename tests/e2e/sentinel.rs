//! A Redis master behind sentinels that dies or freezes, as clients of the service and its operators meet it.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::process::{SOON, Server, Setup, call, percent, wait_until};
use testkit::sentinel::{DOWN_AFTER_MS, RedisSentinels, SENTINEL_PASSWORD, SENTINEL_USER, SERVICE};

/// Below the 100 that a history keeps.
const EVENTS_OF_A_USER: usize = 50;
const WRITERS: usize = 2;
/// Acknowledged before the master goes, and once another has taken over.
const SOME: usize = 200;
/// What a fail-over may cost callers: the sentinels' own patience, an election, and a few seconds of ours.
const BAR: Duration = Duration::from_millis(DOWN_AFTER_MS + 5000);

/// What callers know.
#[derive(Default)]
struct Book {
    acknowledged: Mutex<Vec<(String, String)>>,
    count: AtomicUsize,
    reads: Mutex<Duration>,
    writes: Mutex<Duration>,
    /// What `/readyz` said while it was 503.
    reasons: Mutex<BTreeSet<String>>,
    ended: AtomicBool,
}

/// Longest time of one caller without an answer that is a success.
#[derive(Default)]
struct Gaps {
    last: Option<Instant>,
    longest: Duration,
}

impl Gaps {
    fn success(&mut self) {
        let now = Instant::now();
        let since = self.last.replace(now).map_or(Duration::ZERO, |last| now - last);
        self.longest = self.longest.max(since);
    }
}

impl Book {
    /// One event a call, each sent until it is acknowledged.
    fn write(&self, address: &str, writer: usize) {
        let mut gaps = Gaps::default();
        for n in 0.. {
            let (user, id) = (format!("w{writer}-{}", n / EVENTS_OF_A_USER), format!("e{n}"));
            let body = json!({ "events": [click(&user, &id, now_ms())] }).to_string();
            let acknowledged = loop {
                let status =
                    call(address, "POST", "/v1/events", &[], body.as_bytes()).map_or(0, |answer| answer.status);
                if status == 202 || self.ended.load(Ordering::SeqCst) {
                    break status == 202;
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            if acknowledged {
                gaps.success();
                self.acknowledged.lock().expect("book").push((user, id));
                self.count.fetch_add(1, Ordering::SeqCst);
            }
            if self.ended.load(Ordering::SeqCst) {
                break;
            }
        }
        note_longest(&self.writes, &gaps);
    }

    fn read(&self, address: &str) {
        let mut gaps = Gaps::default();
        while !self.ended.load(Ordering::SeqCst) {
            let status = call(address, "GET", "/v1/users/w0-0/features", &[], b"").map_or(0, |answer| answer.status);
            if status == 200 {
                gaps.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        note_longest(&self.reads, &gaps);
    }

    fn operate(&self, address: &str) {
        while !self.ended.load(Ordering::SeqCst) {
            let answer = call(address, "GET", "/readyz", &[], b"").expect("readyz");
            if answer.status == 503 {
                self.reasons.lock().expect("reasons").insert(answer.text());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for(&self, more: usize) {
        let wanted = self.count.load(Ordering::SeqCst) + more;
        wait_until("acknowledgements", SOON, || (self.count.load(Ordering::SeqCst) >= wanted).then_some(()));
    }
}

fn note_longest(longest: &Mutex<Duration>, gaps: &Gaps) {
    let mut longest = longest.lock().expect("a gap");
    *longest = gaps.longest.max(*longest);
}

fn serve(rig: &RedisSentinels, folder: &std::path::Path) -> Setup {
    let bundle = data_plane_bundle(folder);
    Setup::canned(&bundle, folder)
        .on(&rig.url())
        .env("TAIJI__STORE__SENTINEL_USER", SENTINEL_USER)
        .env("TAIJI__STORE__SENTINEL_PASSWORD", SENTINEL_PASSWORD)
        .env("TAIJI__STORE__ACK", "replicated")
        .flag("--roles", "api,infer")
}

/// Serves while the master goes away and comes back; returns what callers saw once another has taken over.
fn drive(
    server: &Server,
    rig: &mut RedisSentinels,
    go: impl FnOnce(&mut RedisSentinels),
    back: impl FnOnce(&mut RedisSentinels),
) -> Book {
    let book = Book::default();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let book = &book;
            scope.spawn(move || book.write(server.public(), writer));
        }
        scope.spawn(|| book.read(server.public()));
        scope.spawn(|| book.operate(server.admin()));
        // Whatever fails in here, the callers end.
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            book.wait_for(SOME);
            let first = rig.master_port();
            go(rig);
            rig.wait_for_another_than(first);
            book.wait_for(SOME);
            back(rig);
            // On a master that came back as one nothing would be acknowledged, or it would be lost.
            rig.wait_until_it_follows(0);
            book.wait_for(SOME);
        }));
        book.ended.store(true, Ordering::SeqCst);
        if let Err(panic) = told {
            std::panic::resume_unwind(panic);
        }
    });
    book
}

fn check(kind: &str, server: &mut Server, book: &Book) {
    let acknowledged = std::mem::take(&mut *book.acknowledged.lock().expect("book"));
    let users: BTreeSet<&String> = acknowledged.iter().map(|(user, _)| user).collect();
    let mut kept = BTreeSet::new();
    for user in users {
        let history: Value = server.get(&format!("/v1/users/{}/history", percent(user))).expect_status(200).json();
        let events = history["engagements"].as_array().expect("engagements").clone();
        kept.extend(events.iter().map(|event| (user.clone(), event["event_id"].as_str().expect("id").to_string())));
    }
    let lost: Vec<&(String, String)> = acknowledged.iter().filter(|event| !kept.contains(event)).collect();
    assert!(lost.is_empty(), "{kind}: {} of {} acknowledged events are gone: {lost:?}", lost.len(), acknowledged.len());
    let [reads, writes] = [&book.reads, &book.writes].map(|longest| *longest.lock().expect("a gap"));
    println!(
        "audit 10: sentinel, {kind}: {} acknowledged events, 0 lost; no read for {:.1} s, no write for {:.1} s \
         (sentinels take a master for dead after {:.1} s)",
        acknowledged.len(),
        reads.as_secs_f64(),
        writes.as_secs_f64(),
        DOWN_AFTER_MS as f64 / 1000.0
    );
    let bar = if testkit::is_audit() { BAR } else { 6 * BAR };
    assert!(reads <= bar && writes <= bar, "{kind}: reads {reads:?}, writes {writes:?}");
    let reasons = book.reasons.lock().expect("reasons");
    let says = |words: &str| reasons.iter().any(|reason| reason.contains(words));
    assert!(says("sentinels 127.0.0.1") && says(SERVICE), "{kind}: {reasons:?}");
    wait_until("readiness", SOON, || {
        (call(server.admin(), "GET", "/readyz", &[], b"").ok()?.status == 200).then_some(())
    });
    let users = vec!["w0-0".to_string()];
    server.wait_for_features(&users, SOON);
    assert_eq!(server.stop(), Some(0), "no process ended before");
}

#[test]
fn audit_10_sentinel_a_killed_master_is_replaced_and_what_was_acknowledged_is_kept() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut rig = RedisSentinels::start();
    let mut server = serve(&rig, folder.path()).start();
    let book = drive(&server, &mut rig, |rig| rig.servers[0].kill(), |rig| rig.servers[0].restart());
    check("SIGKILL", &mut server, &book);
}

#[test]
fn audit_10_sentinel_a_frozen_master_is_replaced_and_its_return_harms_nothing() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut rig = RedisSentinels::start();
    let mut server = serve(&rig, folder.path()).start();
    let book = drive(&server, &mut rig, |rig| rig.servers[0].signal("STOP"), |rig| rig.servers[0].signal("CONT"));
    check("SIGSTOP", &mut server, &book);
}

#[test]
fn audit_10_sentinel_a_start_with_a_wrong_name_or_login_fails_in_words_that_help() {
    let folder = tempfile::tempdir().expect("tempdir");
    let rig = RedisSentinels::start();
    let setup = serve(&rig, folder.path());
    let ended = setup.clone().on(&rig.url().replace(SERVICE, "mymaster")).run().expect_code(69);
    let words = ["no sentinel knows a master of that name", "\"mymaster\"", SERVICE, "store.url"];
    assert!(words.iter().all(|word| ended.stderr.contains(word)), "{}", ended.stderr);
    let ended = setup.env("TAIJI__STORE__SENTINEL_PASSWORD", "wrong-one").run().expect_code(69);
    assert!(ended.stderr.contains("store.sentinel_password"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("wrong-one"), "{}", ended.stderr);
}
