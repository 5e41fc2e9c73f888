//! Replicas that lag: Kafka's events survive one that takes over, and what is acknowledged waits for them where that is asked for.

use crate::kafka::{Topics, records};
use crate::worlds::{click, data_plane_bundle, now_ms, write_lines};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::TAIJI;
use testkit::process::{SOON, Setup, run_with, wait_until};
use testkit::redis::{RedisCluster, RedisServer};

const USERS: usize = 60;
/// Of each user; all are kept.
const EACH: usize = 80;
/// How long the replica is cut off: twice what offsets are held back anyway.
const CUT: Duration = Duration::from_secs(10);
/// Events a second, so that they come before, during and after.
const RATE: &str = "240";

#[test]
fn audit_11_a_replica_that_was_cut_off_and_takes_over_loses_no_event_of_kafka() {
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), "lagging");
    let mut cluster = RedisCluster::start_with_replicas();
    let server = topics.serve(folder.path()).on(&cluster.url()).start();
    let start_ms = 1_700_000_000_000;
    let event = |n: usize| click(&format!("u{}", n % USERS), &format!("e{n:05}"), start_ms + n as i64);
    let file = folder.path().join("events.jsonl");
    write_lines(&file, (0..USERS * EACH).map(event));
    let seen = || records(&server, &topics, "accepted") + records(&server, &topics, "duplicate");
    let committed = || -> i64 { topics.broker.committed("lagging", &topics.events, 4).into_iter().flatten().sum() };
    std::thread::scope(|scope| {
        scope.spawn(|| topics.feed_at(&file, RATE));
        wait_until("offsets that go", SOON, || (committed() > 0).then_some(()));
        cluster.cut_off(0);
        let cut = Instant::now();
        wait_until("the gauge", SOON, || (server.metric("taiji_kafka_offsets_held") == 1.0).then_some(()));
        let before = (seen(), committed());
        wait_until("ten seconds", SOON, || (cut.elapsed() >= CUT).then_some(()));
        assert!(seen() > before.0 + 500.0, "events go on being stored: {before:?}, {}", seen());
        assert!(server.stderr().contains("offsets stand still"), "the log says so");
        cluster.nodes[0].kill();
        cluster.wait_for_take_over(0);
    });
    // Not everybody can be asked before the service has heard of the new master.
    let history = |user: usize| {
        let answer = server.get(&format!("/v1/users/u{user}/history"));
        (answer.status == 200).then(|| answer.json())
    };
    let is_whole = |user: usize| history(user).is_some_and(|history| history["seq"] == json!(EACH));
    let missing = || -> usize {
        let kept = |user| history(user).and_then(|history: Value| history["seq"].as_u64()).unwrap_or(0) as usize;
        (0..USERS).map(|user| EACH - kept(user).min(EACH)).sum()
    };
    let until = Instant::now() + 2 * SOON;
    while !(0..USERS).all(is_whole) {
        assert!(Instant::now() < until, "{} of {} events are lost\n{}", missing(), USERS * EACH, server.stderr());
        std::thread::sleep(Duration::from_millis(200));
    }
    for user in 0..USERS {
        let history = history(user).expect("history");
        let found = history["engagements"].as_array().expect("engagements").iter();
        let found: Vec<&str> = found.map(|behaviour| behaviour["event_id"].as_str().expect("id")).collect();
        let wanted: Vec<String> = (0..EACH).rev().map(|n| format!("e{:05}", n * USERS + user)).collect();
        assert_eq!(found, wanted, "u{user}");
    }
    assert!(server.metric("taiji_kafka_rewinds_total") >= 1.0);
    wait_until("offsets that go on", SOON, || (server.metric("taiji_kafka_offsets_held") == 0.0).then_some(()));
    println!(
        "audit 11: events of Kafka lost when a replica that was cut off for {} s took over: 0 of {}",
        CUT.as_secs(),
        USERS * EACH
    );
}

#[test]
fn audit_11_what_replicas_do_not_confirm_is_answered_503_and_its_repeat_is_a_duplicate() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let (master, replica) = (RedisServer::with(&[]), RedisServer::with(&[]));
    replica.follow(&master);
    let setup = Setup::canned(&bundle, folder.path()).on(&master.url()).env("TAIJI__STORE__ACK", "replicated");
    let server = setup.env("TAIJI__STORE__ACK_TIMEOUT_MS", "500").start();
    let post = |id: &str| server.post("/v1/events", &click("u", id, now_ms() - 1000));
    assert_eq!(post("e1").expect_status(202).json()["accepted"], 1);

    replica.signal("STOP");
    for _ in 0..2 {
        let refused = post("e2");
        assert!(refused.head.contains("retry-after"), "{}", refused.head);
        assert_eq!((refused.status, refused.error().1.as_str()), (503, "not_durable"));
    }
    server.get("/v1/users/u/features").expect_status(200);
    replica.signal("CONT");
    let answer = wait_until("the replica", SOON, || Some(post("e2")).filter(|answer| answer.status == 202)).json();
    assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(0), &json!(1)));

    let alone = [("TAIJI__STORE__ACK", "synced"), ("TAIJI__STORE__URL", "embedded:x")];
    let refused = run_with(&TAIJI, &["check-config"], &alone).expect_code(64);
    assert!(refused.stderr.contains("store.ack other than applied needs a Redis"), "{}", refused.stderr);
    let nobody =
        [("TAIJI__STORE__ACK", "replicated"), ("TAIJI__STORE__ACK_REPLICAS", "0"), ("TAIJI__STORE__URL", "redis://h")];
    let refused = run_with(&TAIJI, &["check-config"], &nobody).expect_code(64);
    assert!(refused.stderr.contains("store.ack_replicas of at least 1"), "{}", refused.stderr);
}
