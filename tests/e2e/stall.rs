//! The worst legal inputs, and what everybody else who uses the same Redis notices of them.

use crate::kafka::Topics;
use crate::worlds::{click, data_plane_bundle, now_ms, write_lines};
use serde_json::{Map, Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::process::{Server, call};
use testkit::redis::RedisServer;

/// How long one run sends the worst inputs.
const RUN: Duration = Duration::from_secs(5);
/// Bars of a PING on a connection of its own: the 99.9th percentile, and the worst.
const BARS: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(40));
/// Leases that end while the inputs come.
const LEASES: usize = 8000;

fn factor() -> u32 {
    if testkit::is_audit() { 1 } else { 20 }
}

fn bytes_of(events: &[Value]) -> Vec<u8> {
    json!({ "events": events }).to_string().into_bytes()
}

/// Profile events of one user, each with 64 attributes that nobody has seen before.
fn profiles(user: &str, first: usize, count: usize) -> Vec<Value> {
    let event = |nth: usize| {
        let attributes: Map<String, Value> = (0..64).map(|k| (format!("{}", nth * 64 + k), json!(1))).collect();
        json!({"user_id": user, "event_id": format!("p{nth}"), "action": "profile", "ts_ms": now_ms(), "context": attributes})
    };
    (first..first + count).map(event).collect()
}

/// Events of one user and one time whose long ids begin alike, so that each has its place among those kept.
fn late(user: &str, first: usize, count: usize) -> Vec<Value> {
    let ts_ms = now_ms() / 3_600_000 * 3_600_000;
    (first..first + count).map(|nth| click(user, &format!("{nth:0120}"), ts_ms)).collect()
}

/// One event each of so many users, all of whom become due.
fn marks(nth: usize, count: usize) -> Vec<Value> {
    (0..count).map(|user| click(&format!("m{user}"), &format!("m{nth}"), now_ms())).collect()
}

/// Writes leases of another process that have ended.
fn plant_leases(redis: &RedisServer, space: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port)).expect("connect");
    let mut commands = String::new();
    for user in 0..LEASES {
        commands += &format!("ZADD taiji:lease:{{0}}:{space} 1 planted{user}\r\n");
        commands += &format!("HSET taiji:leased:{{0}}:{space} planted{user} \"1 3 1\"\r\n");
    }
    commands += "ECHO done\r\n";
    stream.write_all(commands.as_bytes()).expect("write");
    let (mut seen, mut part) = (Vec::new(), [0; 4096]);
    while !seen.ends_with(b"done\r\n") {
        let length = stream.read(&mut part).expect("answers");
        assert!(length > 0, "the connection stays");
        seen.extend_from_slice(&part[..length]);
    }
}

/// Answer times of a PING every ms until told to end, sorted.
fn ping(redis: &RedisServer, ended: &AtomicBool) -> Vec<Duration> {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port)).expect("connect");
    stream.set_nodelay(true).expect("no delay");
    let (mut times, mut answer) = (Vec::new(), [0; 7]);
    while !ended.load(Ordering::SeqCst) {
        let began = Instant::now();
        stream.write_all(b"PING\r\n").and_then(|()| stream.read_exact(&mut answer)).expect("an answer");
        times.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    times.sort();
    times
}

/// Posts what `make` makes, again and again, until told to end; how often it was taken.
fn post(server: &Server, taken: &AtomicUsize, ended: &AtomicBool, make: impl Fn(usize) -> Vec<Value>) {
    for nth in 0.. {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        let headers = [("content-type", "application/json")];
        let answer = call(server.public(), "POST", "/v1/events", &headers, &bytes_of(&make(nth)));
        match answer.map(|answer| answer.status) {
            Ok(202) => taken.fetch_add(1, Ordering::SeqCst),
            Ok(429 | 503) => 0,
            other => panic!("{other:?}"),
        };
    }
}

#[test]
fn audit_01_nobody_else_waits_while_the_worst_inputs_come() {
    let folder = tempfile::tempdir().expect("tempdir");
    let redis = RedisServer::with(&[]);
    let topics = Topics::new(folder.path(), "stall");
    let setup = topics.serve(folder.path()).on(&redis.url());
    let server = setup.start();
    let manifest = std::fs::read(data_plane_bundle(folder.path()).join("manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("json");
    let space = manifest["space"].as_str().expect("space");
    let mut good = 0;
    for run in 0..3 {
        let (ended, taken) = (AtomicBool::new(false), AtomicUsize::new(0));
        let file = folder.path().join("events.jsonl");
        let from = 1_000_000 * (run + 1);
        let lines = [profiles("kp", from, 500), late("kl", from, 2000), marks(from, 1000)].concat();
        write_lines(&file, lines.iter());
        plant_leases(&redis, space);
        let times = std::thread::scope(|scope| {
            let (server, ended, taken, redis) = (&server, &ended, &taken, &redis);
            let pings = scope.spawn(move || ping(redis, ended));
            let topics = &topics;
            let file = &file;
            let kafka = scope.spawn(move || topics.feed(file));
            scope.spawn(move || post(server, taken, ended, |nth| profiles("hp", from + nth * 1000, 1000)));
            scope.spawn(move || post(server, taken, ended, |nth| late("hl", from + nth * 1000, 1000)));
            scope.spawn(move || post(server, taken, ended, |nth| marks(from + nth, 1000)));
            std::thread::sleep(RUN);
            ended.store(true, Ordering::SeqCst);
            kafka.join().expect("the feed");
            pings.join().expect("the pings")
        });
        let (p999, worst) = (times[times.len() * 999 / 1000], times[times.len() - 1]);
        let calls = taken.load(Ordering::SeqCst);
        println!(
            "audit 01: while {calls} worst calls were taken: of {} PINGs p99.9 {p999:?}, worst {worst:?}",
            times.len()
        );
        assert!(calls >= 3 && times.len() > 100, "{calls} calls, {} PINGs", times.len());
        good += u32::from(p999 <= factor() * BARS.0 && worst <= factor() * BARS.1);
    }
    assert!(good >= 2, "in {good} of 3 runs");
}
