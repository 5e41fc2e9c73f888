//! Erasing users over HTTP: what reads show at once, what others are shown, kill -9 in the middle, and restarts.

use crate::worlds::{click, data_plane_bundle, now_ms, small_catalogue};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use taiji::bundle::{self, Bundle, Engine, LoadOptions};
use taiji::config;
use taiji::erase::carry_out;
use taiji::event::{ActionClass, Item};
use taiji::live::Live;
use taiji::proto::Behaviour;
use taiji::refresh::{Refreshed, Refresher, shown_neighbour};
use taiji::retrieve::VectorTail;
use taiji::store::{EmbeddedOptions, EmbeddedStore, FeatureStore, Record, RecordBody, UserBatch};
use taiji::telemetry::Metrics;
use testkit::process::{Answer, SOON, Server, Setup, call, percent, wait_until};

/// So many that each hub is shown to some 300.
const USERS: usize = 900;
/// Everybody has the same history, so all vectors are equal. Nobody else may be shown, so everybody shows one of these.
const HUBS: [&str; 3] = ["a hub {1}", "b hub", "c hub"];

fn delete(server: &Server, user: &str) -> Answer {
    call(server.public(), "DELETE", &format!("/v1/users/{}", percent(user)), &[], b"").expect("answer")
}

fn history_of(user: &str, items: &[Item]) -> Vec<Value> {
    // One time for all: of equals who did something later is shown first.
    static START: OnceLock<i64> = OnceLock::new();
    let start = START.get_or_init(|| now_ms() - 3_600_000);
    let event = |(place, item): (usize, &Item)| {
        let ts_ms = start + place as i64 * 1000;
        json!({ "event_id": format!("{user} {place}"), "user_id": user, "item_id": item.id, "action": "click", "ts_ms": ts_ms })
    };
    items.iter().take(4).enumerate().map(event).collect()
}

/// Says that nobody may be shown this user.
fn opt_out(user: &String) -> Value {
    json!({ "user_id": user, "action": "profile", "ts_ms": now_ms() - 7_200_000, "context": { "cross_opt_out": true } })
}

fn post(server: &Server, events: &[Value]) {
    for chunk in events.chunks(500) {
        server.post("/v1/events", &json!({ "events": chunk })).expect_status(202);
    }
}

/// Who is shown to each of these users; empty = nobody.
fn neighbours(server: &Server, users: &[String]) -> Vec<String> {
    let body = json!({ "users": users, "groups": ["cross", "text"] });
    let columns = server.post("/v1/features", &body).expect_status(200).json();
    let names = columns["features"]["text.neighbour_user_id"].as_array().expect("names").clone();
    let items = columns["features"]["cross.item_ids"].as_array().expect("items");
    for (name, items) in names.iter().zip(items) {
        assert_eq!(name == "", items.as_array().expect("items").is_empty(), "{name} with {items}");
    }
    names.iter().map(|name| name.as_str().expect("name").to_string()).collect()
}

/// Waits until each of these users shows one of these hubs; returns to how many the first of them is shown.
fn wait_for_hubs(server: &Server, users: &[String], hubs: &[&str]) -> usize {
    wait_until(&format!("everybody shows one of {hubs:?}"), SOON, || {
        let shown = neighbours(server, users);
        let is_hub = |name: &String| hubs.contains(&name.as_str());
        shown.iter().all(is_hub).then(|| shown.iter().filter(|name| *name == hubs[0]).count())
    })
}

/// Three hubs in the index, and everybody else showing them.
fn start_world(folder: &Path) -> (Server, Vec<String>, Vec<Item>) {
    let bundle = data_plane_bundle(folder);
    let server = Setup::canned(&bundle, &folder.join("store")).start();
    let items = small_catalogue();
    let hubs: Vec<Value> = HUBS.iter().flat_map(|hub| history_of(hub, &items)).collect();
    post(&server, &hubs);
    server.wait_for_features(&HUBS.map(String::from), SOON);
    let fresh = "taiji_index_vectors{part=\"fresh\"} 3";
    wait_until("the hubs in the index", SOON, || server.metrics().contains(fresh).then_some(()));
    let users: Vec<String> = (0..USERS).map(|place| format!("user {place:03}")).collect();
    post(&server, &users.iter().map(opt_out).collect::<Vec<_>>());
    let events: Vec<Value> = users.iter().flat_map(|user| history_of(user, &items)).collect();
    post(&server, &events);
    server.wait_for_features(&users, SOON);
    (server, users, items)
}

#[test]
fn an_erasure_that_kill_9_interrupts_is_finished_by_the_next_start() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (mut server, users, items) = start_world(folder.path());
    let mut interrupted = false;
    for (place, hub) in HUBS.into_iter().enumerate() {
        let shows = wait_for_hubs(&server, &users, &HUBS[place..]);
        assert!(shows >= USERS / HUBS.len() / 2, "{hub} is shown to {shows}");
        let answer = delete(&server, hub).expect_status(202).json();
        assert_eq!(answer["erased"], json!(true));
        assert!(answer["referrers"].as_u64().expect("referrers") >= shows as u64, "{answer}");
        server.kill();
        server = server.start_again();
        wait_until("nobody shows the erased user", SOON, || {
            let shown = neighbours(&server, &users);
            shown.iter().all(|name| name != hub && !name.is_empty()).then_some(())
        });
        check_gone(&server, hub);
        // Only a job that the kill interrupted is left to this process.
        interrupted = finishes_an_erasure(&server);
        if interrupted {
            check_return(&server, hub, &items);
            break;
        }
    }
    assert!(interrupted, "every job had ended before the kill: more referrers are needed");
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
}

/// Whether this process ends a job soon.
fn finishes_an_erasure(server: &Server) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if server.metrics().contains("taiji_erasures_total{result=\"finished\"} 1") {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn check_gone(server: &Server, user: &str) {
    let row = server.row(user, "intra,cross,text");
    assert_eq!(row["status"], json!("MISSING"), "{row}");
    assert_eq!(row["groups"]["intra"]["reason"], json!("no_features"));
    assert!(server.history(user).is_none(), "no history");
}

/// What was sent before counts as duplicate; an event after the erasure starts anew.
fn check_return(server: &Server, user: &str, items: &[Item]) {
    let old = server.post("/v1/events", &json!({ "events": history_of(user, items) })).expect_status(202).json();
    assert_eq!((&old["accepted"], &old["duplicates"]), (&json!(0), &json!(4)));
    check_gone(server, user);
    let mut event = history_of(user, items).remove(0);
    event["ts_ms"] = json!(now_ms());
    let new = server.post("/v1/events", &event).expect_status(202).json();
    assert_eq!(new["accepted"], json!(1), "{new}");
    server.wait_for_features(&[user.to_string()], SOON);
    assert_eq!(server.history(user).expect("history")["engagements"].as_array().expect("list").len(), 1);
}

#[test]
fn reads_show_nothing_at_once_and_no_restart_brings_a_user_back() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (mut server, users, items) = start_world(folder.path());
    let first = HUBS[0];
    wait_for_hubs(&server, &users, &HUBS);
    let shown = neighbours(&server, &HUBS.map(String::from));
    let known: Vec<String> =
        (0..10).map(|place| format!("known-{place}")).filter(|user| !shown.contains(user)).collect();
    let known = known[0].as_str();
    // Users of the bundle alone whom nobody shows, one nobody knows, and one who shows somebody.
    for user in [known, "nobody", users[7].as_str()] {
        let answer = delete(&server, user).expect_status(202).json();
        assert_eq!(answer, json!({ "erased": true, "referrers": 0 }), "{user}");
        check_gone(&server, user);
    }
    delete(&server, first).expect_status(202);
    check_gone(&server, first);
    let again = delete(&server, first).expect_status(202).json();
    assert_eq!(again["erased"], json!(true), "asked twice");
    let left: Vec<String> = users.iter().filter(|user| **user != users[7]).cloned().collect();
    wait_for_hubs(&server, &left, &HUBS[1..]);

    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    server = server.start_again();
    // A purchase of everybody's is a new prompt, and with it a new search.
    let purchase =
        |user: &String| json!({ "user_id": user, "item_id": items[5].id, "action": "purchase", "ts_ms": now_ms() });
    post(&server, &left.iter().map(purchase).collect::<Vec<_>>());
    server.wait_for_features(&left, SOON);
    let gone = [first, known, "nobody", users[7].as_str()];
    let shown = neighbours(&server, &left);
    assert!(shown.iter().all(|name| !gone.contains(&name.as_str())), "{shown:?}");
    gone.iter().for_each(|user| check_gone(&server, user));
}

#[test]
fn what_cannot_be_a_user_is_refused() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let server = Setup::canned(&bundle, &folder.path().join("store")).start();
    assert_eq!(delete(&server, &"x".repeat(129)).error().0, 400);
    assert_eq!(delete(&server, "a\nb").error().0, 400);
    let answer = call(server.public(), "DELETE", "/v1/users/u/features", &[], b"").expect("answer");
    assert_eq!(answer.error().1, "method_not_allowed");
}

/// A refresh that died between its put and its look back, after the job had passed: nobody is left to clear `cross` but the
/// refresh's repeat, and to it the prompt looks unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn the_repeat_of_a_refresh_that_died_does_not_skip_over_an_erased_neighbour() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = load_canned(&data_plane_bundle(folder.path()));
    let store: Arc<dyn FeatureStore> =
        EmbeddedStore::open(&folder.path().join("store"), EmbeddedOptions::default()).expect("store");
    let settings = config::load(None, std::iter::empty(), &[]).expect("defaults");
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let (refresh, retrieve) = (settings.refresh.clone(), settings.retrieve.clone());
    let models = bundle.inference.clone().expect("models");
    let refresher = Refresher::new(store.clone(), Live::new(bundle.clone()), metrics, refresh, retrieve);
    let space = bundle.manifest.space.clone();
    let items = small_catalogue();
    let record = |(place, item): (usize, &Item)| {
        let behaviour = Behaviour { item_id: item.id.clone(), action: "click".into(), ..Behaviour::default() };
        let body = RecordBody::Behaviour { class: ActionClass::Engagement, behaviour };
        Record { ts_ms: place as i64, event_id: format!("e{place}"), former_id: None, weight: 1.0, body }
    };
    let records: Vec<Record> = items.iter().take(4).enumerate().map(record).collect();
    let batches = ["hub", "other"].map(|user| UserBatch { user: user.into(), records: records.clone() });
    store.append(std::slice::from_ref(&space), &batches).await.expect("append");
    store.note_space(&space).await.expect("space");
    let written = Refreshed::Written { seq: 4, current_seq: 4 };
    assert_eq!(refresher.refresh("hub", 1).await.expect("refresh"), written);
    VectorTail::new(store.clone(), models.index.clone(), space.clone()).catch_up().await.expect("tail");
    assert_eq!(refresher.refresh("other", 1).await.expect("refresh"), written);
    let shown = async || {
        let stored = store.features(&space, &["other".to_string()]).await.expect("features").remove(0);
        shown_neighbour(&stored.expect("features")).map(|seen| seen.user)
    };
    assert_eq!(shown().await.as_deref(), Some("hub"));
    let skipped = Refreshed::Skipped { seq: 4, current_seq: 4 };
    assert_eq!(refresher.refresh("other", 1).await.expect("refresh"), skipped, "unchanged");

    let erasure = store.note_erasure("hub").await.expect("note");
    store.remove_referrer(&space, "hub", "other").await.expect("as if noted after the job had passed");
    carry_out(store.as_ref(), &erasure, &|| true).await.expect("job");
    assert_eq!(shown().await.as_deref(), Some("hub"), "nobody else knows");
    assert_eq!(refresher.refresh("other", 1).await.expect("refresh"), written);
    assert_ne!(shown().await.as_deref(), Some("hub"));
    assert_eq!(refresher.refresh("hub", 1).await.expect("refresh"), Refreshed::Unknown, "nothing to refresh from");
}

fn load_canned(folder: &Path) -> Arc<Bundle> {
    let engine = Engine::Canned { latency: Duration::ZERO, hangs_after: None };
    let options = LoadOptions { engine, encoder_threads: 1, nprobe: 1, ..LoadOptions::default() };
    Arc::new(bundle::load(folder, &options).expect("bundle"))
}

#[test]
fn audit_08_users_of_whom_nothing_comes_are_erased() {
    let folder = tempfile::tempdir().expect("tempdir");
    let setup = Setup::canned(&data_plane_bundle(folder.path()), &folder.path().join("store"));
    let setup = setup.env("TAIJI__STORE__USER_IDLE_TTL_MS", "3000").env("TAIJI__ERASE__INTERVAL_MS", "200");
    let server = setup.start();
    let send = |user: &str, event: String| {
        server.post("/v1/events", &json!({ "events": [click(user, &event, now_ms())] })).expect_status(202);
    };
    send("quiet", "e".into());
    let mut sent = 0;
    wait_until("the quiet user is gone", SOON, || {
        sent += 1;
        send("lively", format!("e{sent}"));
        let events = |user: &str| {
            server.history(user).map_or(0, |history| history["engagements"].as_array().expect("list").len())
        };
        (events("quiet") == 0 && events("lively") > 0).then_some(())
    });
    let row = server.row("quiet", "intra");
    assert_ne!(row["status"], "PRESENT", "{row}");
    // (On a busy machine the lively one may be idle by now, too.)
    let erased = |result: &str| server.metric(&format!("taiji_erasures_total{{result=\"{result}\"}}"));
    wait_until("counted", SOON, || (erased("idle") >= 1.0).then_some(()));
    wait_until("the job's end", SOON, || (erased("finished") >= 1.0).then_some(()));
}
