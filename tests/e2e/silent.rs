//! A Redis that takes commands and answers none, as readers and operators meet it.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::process::{SOON, Server, Setup, call, wait_until};
use testkit::proxy::Proxy;
use testkit::redis::{RedisCluster, RedisServer};

/// How long Redis says nothing.
const SILENCE: Duration = Duration::from_secs(5);
/// From then on reads must be refused soon.
const SETTLED: Duration = Duration::from_secs(1);
/// The bar of the audit, and its share of the reads.
const BAR: Duration = Duration::from_millis(300);
const SHARE: f64 = 0.99;
/// What the operators' port may take.
const OPERATORS_BAR: Duration = Duration::from_millis(100);

/// A bar, or what is left of it on a machine that does other things, too.
fn limit(bar: Duration) -> Duration {
    if testkit::is_audit() { bar } else { 8 * bar }
}

/// One call: when it began, how long it took, its status.
struct Sighting {
    began: Instant,
    took: Duration,
    status: u16,
}

/// Calls a path again and again until told to end.
fn call_on(address: &str, path: &str, pause: Duration, ended: &AtomicBool) -> Vec<Sighting> {
    let mut seen = Vec::new();
    while !ended.load(Ordering::SeqCst) {
        let began = Instant::now();
        let status = call(address, "GET", path, &[], b"").map_or(0, |answer| answer.status);
        seen.push(Sighting { began, took: began.elapsed(), status });
        std::thread::sleep(pause);
    }
    seen
}

/// What readers and operators saw while Redis was silent.
fn watch(server: &Server, begin: impl FnOnce()) -> (Instant, Vec<Sighting>, Vec<Sighting>) {
    let ended = AtomicBool::new(false);
    let pause = Duration::from_millis(10);
    begin();
    let began = Instant::now();
    let (reads, asked) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|n| {
                let path = format!("/v1/users/u{n}/features");
                let ended = &ended;
                scope.spawn(move || call_on(server.public(), &path, pause, ended))
            })
            .collect();
        let operators = ["/metrics", "/readyz"].map(|path| {
            let ended = &ended;
            scope.spawn(move || call_on(server.admin(), path, 10 * pause, ended))
        });
        std::thread::sleep(SILENCE);
        ended.store(true, Ordering::SeqCst);
        let all = |threads: Vec<std::thread::ScopedJoinHandle<'_, Vec<Sighting>>>| -> Vec<Sighting> {
            threads.into_iter().flat_map(|thread| thread.join().expect("a caller")).collect()
        };
        (all(readers), all(operators.into_iter().collect()))
    });
    (began, reads, asked)
}

fn check(kind: &str, server: &Server, (began, reads, asked): (Instant, Vec<Sighting>, Vec<Sighting>)) {
    let settled: Vec<&Sighting> = reads.iter().filter(|read| read.began >= began + SETTLED).collect();
    assert!(settled.len() > 100, "{kind}: only {} reads", settled.len());
    assert!(settled.iter().all(|read| read.status == 503), "{kind}: a read was not refused");
    let within = settled.iter().filter(|read| read.took <= limit(BAR)).count() as f64 / settled.len() as f64;
    let in_bar = settled.iter().filter(|read| read.took <= BAR).count() as f64 / settled.len() as f64;
    let slowest = reads.iter().map(|read| read.took).max().unwrap_or_default();
    let operators = asked.iter().map(|asked| asked.took).max().unwrap_or_default();
    println!(
        "audit 03: {kind}: {:.1} % of {} reads from the second second on refused in {} ms; slowest of all {} ms; /metrics and \
         /readyz at most {} ms",
        100.0 * in_bar,
        settled.len(),
        BAR.as_millis(),
        slowest.as_millis(),
        operators.as_millis()
    );
    assert!(within >= SHARE, "{kind}: {:.1} % within {:?}", 100.0 * within, limit(BAR));
    assert!(asked.iter().all(|asked| asked.status == 200 || asked.status == 503), "{kind}: an operator got no answer");
    assert!(operators <= limit(OPERATORS_BAR), "{kind}: {operators:?}");
    let told = call(server.admin(), "GET", "/readyz", &[], b"").expect("readyz").expect_status(503).json();
    let latches = told["latches"].as_array().expect("latches").clone();
    let store = latches.iter().find(|latch| latch["latch"] == "store").expect("the latch of the store");
    assert!(store["reason"].as_str().is_some_and(|reason| reason.contains("PING")), "{kind}: {told}");
    assert!(server.metric("taiji_store_gauges_age_seconds") > 1.0, "{kind}: the age of the numbers is told");
}

/// Tells Redis to answer nobody for so long. (It would not answer what comes behind either.)
fn pause(redis: &RedisServer, time: Duration) {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port)).expect("connect");
    stream.write_all(format!("CLIENT PAUSE {} ALL\r\n", time.as_millis()).as_bytes()).expect("write");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("answer");
    assert_eq!(&answer, b"+OK\r\n");
}

/// Lines of the log about failed calls, by part.
fn lines_by_part(log: &str) -> BTreeMap<String, usize> {
    let mut parts = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("store call failed") || line.contains("failed; tried again")) {
        let part = line.split(' ').find(|word| word.starts_with("operation=") || word.starts_with("what="));
        *parts.entry(part.unwrap_or(line).to_string()).or_insert(0) += 1;
    }
    parts
}

#[test]
fn audit_03_a_silent_redis_refuses_reads_soon_and_hides_nothing_from_operators() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, redis) = (data_plane_bundle(folder.path()), RedisServer::with(&[]));
    let proxy = Proxy::to(&format!("127.0.0.1:{}", redis.port));
    let setup = Setup::canned(&bundle, folder.path()).on(&format!("redis://{}", proxy.address()));
    let server = setup.flag("--roles", "api,infer").start();
    let users: Vec<String> = (0..4).map(|n| format!("u{n}")).collect();
    let events: Vec<Value> = users.iter().map(|user| click(user, "e", now_ms())).collect();
    server.post("/v1/events", &json!({ "events": events })).expect_status(202);
    server.wait_for_features(&users, SOON);
    let started = Instant::now();
    let is_back = |kind: &str| {
        wait_until(kind, SOON, || {
            let read = call(server.public(), "GET", "/v1/users/u0/features", &[], b"").ok()?;
            let ready = call(server.admin(), "GET", "/readyz", &[], b"").ok()?;
            (read.status == 200 && ready.status == 200).then_some(())
        });
    };

    check("SIGSTOP", &server, watch(&server, || redis.signal("STOP")));
    redis.signal("CONT");
    is_back("a Redis that goes on");
    check("CLIENT PAUSE", &server, watch(&server, || pause(&redis, SILENCE + Duration::from_secs(2))));
    is_back("a Redis that is no longer paused");
    check("packets dropped", &server, watch(&server, || proxy.pause()));
    proxy.restore();
    is_back("a network that is whole again");

    let minutes = 1 + started.elapsed().as_secs() as usize / 60;
    let lines = lines_by_part(&server.stderr());
    println!("audit 03: log lines of three outages in {minutes} min, by part: {lines:?}");
    assert!(lines.values().all(|count| *count <= minutes), "{lines:?}");
    assert!(!lines.is_empty(), "an outage is told");
}

#[test]
fn audit_03_a_node_that_is_away_harms_its_own_users_only() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, cluster) = (data_plane_bundle(folder.path()), RedisCluster::start());
    for node in &cluster.nodes {
        // Else the others refuse everything soon after.
        node.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let server = Setup::canned(&bundle, folder.path()).on(&cluster.url()).flag("--roles", "api,infer").start();
    let users: Vec<String> = (0..60).map(|n| format!("u{n}")).collect();
    let events: Vec<Value> = users.iter().map(|user| click(user, "e", now_ms())).collect();
    server.post("/v1/events", &json!({ "events": events })).expect_status(202);
    server.wait_for_features(&users, SOON);
    let node_of = |user: &String| {
        let answer = cluster.nodes[0].command(&["CLUSTER", "KEYSLOT", &format!("taiji:{{{user}}}:st")]);
        let slot: usize = answer.trim_start_matches(':').trim().parse().expect("a slot");
        slot / 5461
    };
    let nodes: Vec<usize> = users.iter().map(node_of).collect();
    for away in 0..3 {
        cluster.nodes[away].signal("STOP");
        let lost: Vec<bool> = nodes.iter().map(|node| *node == away).collect();
        assert!(lost.contains(&true) && lost.contains(&false), "users on every node");
        // At first for its deadline's time, then at once.
        for _ in 0..20 {
            let columns = server.columns(&users);
            for (place, lost) in lost.iter().enumerate() {
                let (status, reason) = if *lost { ("MISSING", json!("unreachable")) } else { ("PRESENT", Value::Null) };
                assert_eq!(columns["status"][place], status, "{} of node {}", users[place], nodes[place]);
                assert_eq!(columns["groups"]["intra"]["reason"][place], reason);
            }
        }
        assert_eq!(call(server.admin(), "GET", "/readyz", &[], b"").expect("readyz").status, 200, "others are served");
        let only_lost: Vec<&String> =
            users.iter().zip(&lost).filter(|(_, lost)| **lost).map(|(user, _)| user).collect();
        let told = server.post("/v1/features", &json!({ "users": only_lost })).expect_status(503);
        assert_eq!(told.error().1, "store_unavailable");
        server.get(&format!("/v1/users/{}/features", only_lost[0])).expect_status(503);
        cluster.nodes[away].signal("CONT");
        wait_until("everybody", SOON, || {
            let columns = server.post("/v1/features", &json!({ "users": users }));
            (columns.status == 200 && columns.json()["status"] == json!(vec!["PRESENT"; users.len()])).then_some(())
        });
    }
    println!("audit 03: of 60 users on three nodes those of the one away are `unreachable`, the others served");
}
