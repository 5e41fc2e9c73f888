//! A replica of a Redis Cluster that is cut off, lags, and takes over: Kafka's events survive it.

use crate::kafka::{Topics, records};
use crate::worlds::{click, write_lines};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::process::{SOON, wait_until};
use testkit::redis::RedisCluster;

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
    let history = |user: usize| server.history(&format!("u{user}"));
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
