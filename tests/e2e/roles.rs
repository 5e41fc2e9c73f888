//! Processes with one role each share the work; they wait for a Redis that is away and leave without failing a read.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::kafka::Broker;
use testkit::process::{SOON, Server, Setup, call, connect, wait_until};
use testkit::redis::RedisServer;

/// A process with some roles on a Redis.
fn member(bundle: &Path, redis: &RedisServer, roles: &str) -> Setup {
    Setup::canned(bundle, bundle).on(&redis.url()).flag("--roles", roles)
}

fn clicks(users: &[String]) -> Vec<Value> {
    let start = now_ms() - 100_000;
    users.iter().flat_map(|user| (0..4).map(move |n| click(user, &format!("{user} {n}"), start + n))).collect()
}

fn users(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("user-{n}")).collect()
}

fn readyz(server: &Server) -> Value {
    call(server.admin(), "GET", "/readyz", &[], b"").expect("readyz").json()
}

#[test]
fn one_role_each_they_bring_an_event_from_kafka_to_a_read_and_two_infer_replicas_share_the_users() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, redis, broker) = (data_plane_bundle(folder.path()), RedisServer::start(), Broker::shared());
    for (topic, partitions) in [("roles.events", 4), ("roles.dlq", 1)] {
        broker.create_topic(topic, partitions, &[]);
    }
    let config = folder.path().join("taiji.toml");
    let text = "[kafka]\ngroup = \"roles\"\nevents_topic = \"roles.events\"\nitems_topic = \"\"\n\
                dead_letter_topic = \"roles.dlq\"\n";
    std::fs::write(&config, text).expect("config");
    let config = config.display().to_string();
    let on_kafka = |roles| member(&bundle, &redis, roles).flag("--kafka", broker.address()).flag("--config", &config);
    let api = on_kafka("api").start();
    let ingest = on_kafka("ingest").start();
    // Each answer takes a while, so that no replica is done before the other has begun.
    let slow = |setup: Setup| {
        setup.env("TAIJI__ENGINE__NULL_LATENCY_MS", "50").env("TAIJI__REFRESH__CONCURRENCY", "4").start()
    };
    let infer = [slow(on_kafka("infer")), slow(on_kafka("infer"))];

    let users = users(120);
    let file = folder.path().join("events.jsonl");
    crate::worlds::write_lines(&file, clicks(&users));
    let file = file.display().to_string();
    let arguments = ["feed", "--file", &file, "--kafka", broker.address(), "--config", &config];
    testkit::process::run_with(&testkit::TAIJI, &arguments, &[]).expect_code(0);
    wait_until("all events", SOON, || (ingest.metric("taiji_kafka_records_total") >= 480.0).then_some(()));
    let columns = api.wait_for_features(&users, SOON);
    assert_eq!(columns["status"], json!(vec!["PRESENT"; users.len()]));

    let written = |server: &Server| server.metric("taiji_refreshes_total{result=\"written\"}");
    assert!(infer.iter().all(|server| written(server) > 10.0), "{:?}", infer.each_ref().map(written));
    assert_eq!((written(&api), written(&ingest)), (0.0, 0.0));
    assert!(!api.metrics().contains("taiji_kafka_records_total{"), "the api reads no kafka");
    assert_eq!(readyz(&api)["engine"], "none");
    for without_port in [&ingest, &infer[0]] {
        assert!(connect(without_port.public()).is_err(), "only the role api has a public port");
    }
}

#[test]
fn a_process_without_the_role_infer_needs_no_models_and_one_with_it_does() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, redis) = (data_plane_bundle(folder.path()), RedisServer::start());
    let index = bundle.join("generations/1/users.faiss");
    std::fs::remove_file(&index).expect("an index to take away");
    let api = member(&bundle, &redis, "api,ingest").start();
    assert_eq!(api.row("nobody", "intra")["status"], "MISSING");
    let refused = member(&bundle, &redis, "infer").run().expect_code(69);
    assert!(refused.stderr.contains("users.faiss"), "{}", refused.stderr);
    for (roles, part) in [("ingest", "needs kafka.brokers"), ("", "server.roles"), ("api,cook", "server.roles[1]")] {
        let refused = member(&bundle, &redis, roles).run().expect_code(64);
        assert!(refused.stderr.contains(part), "{roles}: {}", refused.stderr);
    }
}

#[test]
fn a_redis_that_is_away_at_the_start_is_waited_for() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, mut redis) = (data_plane_bundle(folder.path()), RedisServer::start());
    redis.kill();
    let hasty = |setup: Setup| setup.env("TAIJI__STORE__RETRIES", "1");
    let (mut gives_up, _) = hasty(member(&bundle, &redis, "api,infer")).start_waiting("store", "waiting");
    assert_eq!(gives_up.stop(), Some(0), "{}", gives_up.stderr());

    let (server, _) = hasty(member(&bundle, &redis, "api,infer")).start_waiting("store", "waiting");
    let told = server.post("/v1/features", &json!({ "users": ["u"] }));
    assert_eq!((told.status, told.error().1.as_str()), (503, "starting"));
    redis.restart();
    wait_until("the start", SOON, || (readyz(&server)["ready"] == true).then_some(()));
    server.post("/v1/events", &json!({ "events": clicks(&users(3)) })).expect_status(202);
    server.wait_for_features(&users(3), SOON);
}

#[test]
fn while_redis_is_away_reads_are_refused_at_once_and_the_process_is_unready_until_it_is_back() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, mut redis) = (data_plane_bundle(folder.path()), RedisServer::start());
    let server = member(&bundle, &redis, "api,infer").env("TAIJI__STORE__RETRIES", "2").start();
    server.post("/v1/events", &json!({ "events": clicks(&users(2)) })).expect_status(202);
    server.wait_for_features(&users(2), SOON);
    redis.kill();
    wait_until("the latch", SOON, || {
        let answer = readyz(&server);
        let store = answer["latches"].as_array()?.iter().find(|latch| latch["latch"] == "store")?.clone();
        (store["ready"] == false).then_some(())
    });
    assert_eq!(server.metric("taiji_store_reachable"), 0.0);
    // With the circuit open no call goes out.
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..40 {
        let started = Instant::now();
        let answer = server.post("/v1/features", &json!({ "users": ["user-0"] }));
        assert_eq!((answer.status, answer.error().1.as_str()), (503, "store_unavailable"));
        times.push(started.elapsed());
    }
    times.sort();
    assert!(times[20] < Duration::from_millis(100), "{times:?}");
    redis.restart();
    wait_until("ready again", SOON, || (readyz(&server)["ready"] == true).then_some(()));
    wait_until("a read", SOON, || (server.row("user-0", "intra")["status"] == "PRESENT").then_some(()));
}

/// What a load balancer does: it looks at `/readyz` and sends reads to those that are ready. Each replica leaves and comes
/// back under load, and no read fails: neither on connections that stay open nor on new ones.
#[test]
fn replicas_that_leave_one_after_the_other_fail_no_read() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, redis) = (data_plane_bundle(folder.path()), RedisServer::start());
    let start = || member(&bundle, &redis, "api,infer").env("TAIJI__SERVER__DRAIN_DELAY_MS", "1500").start();
    let mut replicas = [start(), start()];
    replicas[0].post("/v1/events", &json!({ "events": clicks(&users(20)) })).expect_status(202);
    replicas[0].wait_for_features(&users(20), SOON);
    let addresses = replicas.each_ref().map(|server| (server.public().to_string(), server.admin().to_string()));
    let ready = [AtomicBool::new(true), AtomicBool::new(true)];
    let (ended, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                for ((_, admin), ready) in addresses.iter().zip(&ready) {
                    let is_ready = call(admin, "GET", "/readyz", &[], b"").is_ok_and(|answer| answer.status == 200);
                    ready.store(is_ready, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        for reader in 0..4 {
            let (addresses, ready, ended, reads) = (&addresses, &ready, &ended, &reads);
            scope.spawn(move || read_on(reader, addresses, ready, ended, reads));
        }
        for turn in 0..4 {
            let replica = &mut replicas[turn % 2];
            let before = reads.load(Ordering::SeqCst);
            assert_eq!(replica.stop(), Some(0), "{}", replica.stderr());
            assert!(reads.load(Ordering::SeqCst) > before + 100, "reads went on while it left");
            *replica = replica.start_again();
            wait_until("traffic again", SOON, || ready.iter().all(|ready| ready.load(Ordering::SeqCst)).then_some(()));
        }
        ended.store(true, Ordering::SeqCst);
    });
    assert!(reads.load(Ordering::SeqCst) > 1000);
}

/// Reads until told to end; half of the readers keep their connections. A read that fails ends the test.
fn read_on(
    reader: usize,
    addresses: &[(String, String); 2],
    ready: &[AtomicBool; 2],
    ended: &AtomicBool,
    reads: &AtomicUsize,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let kept = if reader.is_multiple_of(2) { 8 } else { 0 };
    taiji::tls::choose_provider();
    let client = reqwest::Client::builder().pool_max_idle_per_host(kept).build().expect("client");
    for turn in reader.. {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        let replica = [turn % 2, (turn + 1) % 2].into_iter().find(|n| ready[*n].load(Ordering::SeqCst));
        let replica = replica.expect("a ready replica");
        let url = format!("http://{}/v1/users/user-{}/features", addresses[replica].0, turn % 20);
        let status = runtime.block_on(async {
            let answer = client.get(&url).send().await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
            let status = answer.status().as_u16();
            let row: Value = serde_json::from_slice(&answer.bytes().await.expect("body")).expect("json");
            assert_eq!(row["status"], "PRESENT");
            status
        });
        assert_eq!(status, 200);
        reads.fetch_add(1, Ordering::SeqCst);
    }
}
