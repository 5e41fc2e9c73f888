//! kill -9 while feeding: what was acknowledged is there exactly once, and everybody is refreshed.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;
use testkit::process::{SOON, Server, Setup, call, wait_until};

const USERS: usize = 24;
/// Below the 100 that a history keeps.
const CLICKS: usize = 60;
const IMPRESSIONS: usize = 24;
const SEARCHES: usize = 6;
const BATCH: usize = 7;
const KILLS: usize = 4;
const FEEDERS: usize = 3;

/// User → names of events (of searches: the query).
type Events = BTreeMap<String, BTreeSet<String>>;

/// What the feeders know.
#[derive(Default)]
struct Book {
    sent: Mutex<Events>,
    acknowledged: Mutex<Events>,
    /// Sum of `accepted` over all 202s.
    accepted: Mutex<u64>,
}

impl Book {
    fn note(events: &Mutex<Events>, batch: &[Value]) {
        let mut events = events.lock().expect("book");
        for event in batch {
            let user = event["user_id"].as_str().expect("user").to_string();
            events.entry(user).or_default().insert(name_of(event));
        }
    }

    fn acknowledged_count(&self) -> usize {
        self.acknowledged.lock().expect("book").values().map(BTreeSet::len).sum()
    }
}

fn name_of(event: &Value) -> String {
    let query = &event["context"]["query"];
    query.as_str().or(event["event_id"].as_str()).expect("name").to_string()
}

/// Everybody's events, mixed, so that one batch holds several users.
fn all_events() -> Vec<Value> {
    let start = now_ms() - 10_000_000;
    let mut events = Vec::new();
    for place in 0..CLICKS + IMPRESSIONS + SEARCHES {
        for user in 0..USERS {
            let (name, ts_ms) = (format!("u{user}-{place}"), start + (place * 1000) as i64);
            let mut event = click(&format!("u{user}"), &name, ts_ms);
            if place >= CLICKS {
                event["action"] = json!("impression");
            }
            if place >= CLICKS + IMPRESSIONS {
                event["action"] = json!("search");
                event["context"] = json!({ "query": format!("query {name}") });
            }
            events.push(event);
        }
    }
    events
}

/// Posts batches one after the other; one that was not acknowledged is sent again, as a client would.
fn feed(address: &str, batches: &[&[Value]], book: &Book) {
    for batch in batches {
        let body = json!({ "events": batch }).to_string();
        Book::note(&book.sent, batch);
        wait_until("an acknowledgement", SOON, || {
            let answer = call(address, "POST", "/v1/events", &[], body.as_bytes()).ok()?;
            // The port answers already while the store opens.
            if answer.status == 503 && answer.error().1 == "starting" {
                return None;
            }
            let answer = answer.expect_status(202).json();
            let count = |name: &str| answer[name].as_u64().expect("count");
            assert_eq!(count("accepted") + count("duplicates"), batch.len() as u64, "{answer}");
            *book.accepted.lock().expect("book") += count("accepted");
            Book::note(&book.acknowledged, batch);
            Some(())
        });
    }
}

/// The kept events of a user by name, each once; and `seq`.
fn kept(server: &Server, user: &str) -> (BTreeSet<String>, u64) {
    let Some(history) = server.history(user) else { return (BTreeSet::new(), 0) };
    let rows = ["engagements", "impressions", "queries"].map(|list| history[list].as_array().expect("list").clone());
    let names: Vec<String> = rows
        .iter()
        .flatten()
        .map(|row| row["query"].as_str().or(row["event_id"].as_str()).expect("name").into())
        .collect();
    let distinct: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(distinct.len(), names.len(), "{user} has an event twice");
    let seq = history["seq"].as_u64().expect("seq");
    assert_eq!(seq, names.len() as u64, "{user}: seq must count the kept events");
    (distinct, seq)
}

/// Everything acknowledged is kept, nothing is kept that was never sent.
fn check(server: &Server, acknowledged: &Events, book: &Book) {
    for (user, wanted) in acknowledged {
        let (kept, _) = kept(server, user);
        let lost: Vec<_> = wanted.difference(&kept).collect();
        assert!(lost.is_empty(), "{user} lost acknowledged events: {lost:?}");
        let sent = book.sent.lock().expect("book")[user].clone();
        assert!(kept.is_subset(&sent), "{user} has events nobody sent");
    }
}

#[test]
fn after_kill_9_every_acknowledged_event_is_there_once_and_every_user_is_refreshed() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let mut server = Setup::canned(&bundle, &folder.path().join("store")).start();
    let address = server.public().to_string();
    let events = all_events();
    let batches: Vec<&[Value]> = events.chunks(BATCH).collect();
    let shares: Vec<Vec<&[Value]>> =
        (0..FEEDERS).map(|feeder| batches.iter().skip(feeder).step_by(FEEDERS).copied().collect()).collect();
    let book = Book::default();
    let refreshed_at_kill = std::thread::scope(|scope| {
        let feeders: Vec<_> = shares.iter().map(|share| scope.spawn(|| feed(&address, share, &book))).collect();
        let mut refreshed_at_kill = 0.0;
        for kill in 1..=KILLS {
            let goal = events.len() * kill / (KILLS + 2);
            let running = || feeders.iter().any(|feeder| !feeder.is_finished());
            wait_until("acknowledgements", SOON, || (book.acknowledged_count() >= goal || !running()).then_some(()));
            refreshed_at_kill += server.metric("taiji_refreshes_total");
            let acknowledged = book.acknowledged.lock().expect("book").clone();
            assert!(running(), "the feed ended before kill {kill}");
            server.kill();
            server = server.start_again();
            check(&server, &acknowledged, &book);
        }
        for feeder in feeders {
            feeder.join().expect("feeder");
        }
        refreshed_at_kill
    });
    assert!(refreshed_at_kill > 0.0, "no refresh was under way in any of the lives");

    let all = book.acknowledged.lock().expect("book").clone();
    assert_eq!(book.acknowledged_count(), events.len());
    check(&server, &all, &book);
    // A batch that was stored but not acknowledged counts as duplicates when it is sent again.
    assert!(*book.accepted.lock().expect("book") <= events.len() as u64);
    let users: Vec<String> = all.keys().cloned().collect();
    let columns = server.wait_for_features(&users, Duration::from_secs(60));
    assert_eq!(columns["status"], json!(vec!["PRESENT"; USERS]));
    for (place, user) in users.iter().enumerate() {
        let (_, seq) = kept(&server, user);
        assert_eq!(columns["groups"]["intra"]["seq"][place], json!(seq), "{user}");
        assert_eq!(columns["groups"]["cross"]["seq"][place], json!(seq), "{user}");
    }

    // The same file once more: all duplicates.
    for batch in &batches {
        let answer = server.post("/v1/events", &json!({ "events": batch })).expect_status(202).json();
        assert_eq!(answer["duplicates"], json!(batch.len()), "{answer}");
    }
    assert_eq!(server.stop(), Some(0));
}
