//! `make bench-ingest`: events through a real Kafka into a real Redis, by `taiji serve`, by a bare pair that does the same writes,
//! and by a plain writer; then the memory of 100,000 users.
//!
//! In: `BUNDLE [ingest|overhead|replicas] [--quick]`; for `overhead` in the environment, if wanted, an earlier release's program to
//! measure beside (`TAIJI_OLD`) and a bundle that it reads (`TAIJI_OLD_BUNDLE`). Out: one JSON object on standard output, progress on standard error. `scripts/bench_ingest.py` starts
//! it. Every run begins with an empty Redis and a fresh group over one and the same topic; histories are compared with
//! what they must be after every run that promises them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bare;
mod events;
mod memory;
mod overhead;
mod replicas;

use bare::{Target, Writer};
use events::Kept;
use overhead::{Due, Overhead, Program};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use taiji::store::redis::{Address, Timeouts};
use taiji::store::{DueQueue, Health, Histories, Queue, RedisOptions, RedisStore};
use testkit::TAIJI;
use testkit::kafka::Broker;
use testkit::process::Setup;
use testkit::redis::RedisServer;
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "bench.events";
const PARTITIONS: i32 = 8;
/// The plain writer's rate is for orientation.
const PLAIN_ROUNDS: usize = 5;
/// What `store.shards` is by default.
const SHARDS: u32 = 8;
/// What `overhead` measures: who is due, events a second, runs. DESIGN 9's first, then what one machine can do at most.
const WAYS: [(Due, f64, usize); 3] = [(Due::ByPolicy, 2000.0, 5), (Due::Always, 500.0, 1), (Due::Always, 2000.0, 1)];
/// As Redis is run where its data count.
const REDIS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "everysec"];

/// What all runs share.
struct Bench {
    broker: Broker,
    bundle: PathBuf,
    space: String,
    total: u64,
    expected: HashMap<String, Kept>,
    runtime: Runtime,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let bundle = PathBuf::from(arguments.first().expect("usage: ingest BUNDLE [ingest|overhead|replicas] [--quick]"));
    match arguments.get(1).map(String::as_str) {
        Some("overhead") => return print_overhead(&bundle, quick),
        Some("replicas") => {
            let (rounds, window) = if quick { (1, 4) } else { (5, 8) };
            return println!("{}", json!(replicas::measure(&bundle, rounds, Duration::from_secs(window))));
        }
        _ => {}
    }
    let (total, users, rounds, filled) = if quick { (60_000, 5_000, 2, 5_000) } else { (300_000, 20_000, 15, 100_000) };
    let manifest = std::fs::read_to_string(bundle.join("manifest.json")).expect("manifest.json");
    let manifest: Value = serde_json::from_str(&manifest).expect("manifest.json");
    let broker = Broker::start_if_real().expect("Apache Kafka");
    let made = events::make(total, users);
    produce(&broker, &made);
    let bench = Bench {
        broker,
        bundle,
        space: manifest["space"].as_str().expect("space").to_string(),
        total: total as u64,
        expected: events::expected(&made),
        runtime: runtime(),
    };
    let bytes = made.iter().map(|event| event.json.len()).sum::<usize>() / total;
    drop(made);
    let rounds: Vec<Value> = (0..rounds).map(|round| bench.round(round)).collect();
    let memory = memory::measure(&bench.runtime, &bench.bundle, &bench.space, filled);
    let size = json!({"events": total, "users": bench.expected.len(), "bytes": bytes, "partitions": PARTITIONS});
    println!("{}", json!({"size": size, "rounds": rounds, "memory": memory}));
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

fn print_overhead(bundle: &Path, quick: bool) {
    let broker = Broker::start_if_real().expect("Apache Kafka");
    broker.create_topic("bench.dlq", 1, &[]);
    let (ways, seconds) = if quick { (&WAYS[..1], 5) } else { (&WAYS[..], 15) };
    let (runtime, time) = (runtime(), Duration::from_secs(seconds));
    let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let earlier = set("TAIJI_OLD").map(|program| Program {
        bundle: set("TAIJI_OLD_BUNDLE").map_or(bundle.to_path_buf(), PathBuf::from),
        path: program,
    });
    let ours = Program { path: TAIJI.clone(), bundle: bundle.to_path_buf() };
    let programs = (&ours, earlier.as_ref());
    let bench = |due, rate| Overhead { runtime: &runtime, broker: &broker, programs, due, rate, time };
    bench(Due::ByPolicy, 2000.0).warm_up();
    let way = |(due, rate, runs): &(Due, f64, usize)| {
        let runs = overhead::measure(&bench(*due, *rate), if quick { 1 } else { *runs });
        json!({"always_due": *due == Due::Always, "rate": rate, "runs": runs})
    };
    println!("{}", json!(ways.iter().map(way).collect::<Vec<_>>()));
}

fn produce(broker: &Broker, made: &[events::Produced]) {
    broker.create_topic(TOPIC, PARTITIONS, &[]);
    broker.create_topic("bench.dlq", 1, &[]);
    let mut config = broker.client();
    let producer: BaseProducer = config.set("linger.ms", "20").set("acks", "all").create().expect("producer");
    for event in made {
        let mut record = BaseRecord::to(TOPIC).key(&event.user).payload(&event.json);
        while let Err((_, back)) = producer.send(record) {
            record = back;
            producer.poll(Duration::from_millis(10));
        }
    }
    producer.flush(Duration::from_secs(60)).expect("flush");
    let there: i64 = broker.ends(TOPIC, PARTITIONS).iter().sum();
    assert_eq!(there, made.len() as i64, "records in the topic");
}

impl Bench {
    /// Each way once, the plain one in the first rounds only; which of the two that are compared goes first alternates.
    fn round(&self, round: usize) -> Value {
        let (ours, bare) = if round.is_multiple_of(2) {
            let ours = self.ours(round);
            (ours, self.bare(round, Writer::SameWrites))
        } else {
            let bare = self.bare(round, Writer::SameWrites);
            (self.ours(round), bare)
        };
        let mut all = json!({"ours": ours, "bare": bare});
        if round < PLAIN_ROUNDS {
            all["plain"] = self.bare(round, Writer::Plain);
        }
        eprintln!("bench-ingest: round {}: {all}", round + 1);
        all
    }

    fn ours(&self, round: usize) -> Value {
        let server = RedisServer::with(&REDIS);
        let group = format!("ours-{round}");
        let folder = tempfile::tempdir().expect("folder");
        let mut service = Setup::canned(&self.bundle, folder.path())
            .on(&server.url())
            .flag("--kafka", self.broker.address())
            .env("TAIJI__REFRESH__ENABLED", "false")
            .env("TAIJI__KAFKA__GROUP", &group)
            .env("TAIJI__KAFKA__EVENTS_TOPIC", TOPIC)
            .env("TAIJI__KAFKA__ITEMS_TOPIC", "")
            .env("TAIJI__KAFKA__DEAD_LETTER_TOPIC", "bench.dlq")
            .start();
        let count = || service.metric("taiji_kafka_records_total") as u64;
        let measured = self.measure(service.pid(), &server, count);
        self.check(&server);
        assert_eq!(service.stop(), Some(0), "{}", service.stderr());
        let committed = self.broker.committed(&group, TOPIC, PARTITIONS);
        let ends: Vec<Option<i64>> = self.broker.ends(TOPIC, PARTITIONS).into_iter().map(Some).collect();
        assert_eq!(committed, ends, "lag after the drain");
        measured
    }

    fn bare(&self, round: usize, writer: Writer) -> Value {
        let server = RedisServer::with(&REDIS);
        let name = if writer == Writer::Plain { "plain" } else { "bare" };
        // Initialises the namespace.
        self.runtime.block_on(open(&server));
        let mut config = self.broker.client();
        config.set("group.id", format!("{name}-{round}")).set("auto.offset.reset", "earliest");
        let target = Target { redis: server.url(), space: self.space.clone(), shards: SHARDS };
        let written = Arc::new(AtomicU64::new(0));
        let work = self.runtime.spawn(bare::run(config, TOPIC, self.total, writer, target, written.clone()));
        let count = || {
            let is_over = work.is_finished();
            let count = written.load(Ordering::Relaxed);
            assert!(count >= self.total || !is_over, "the bare pair failed");
            count
        };
        let measured = self.measure(std::process::id(), &server, count);
        self.runtime.block_on(work).expect("the bare pair");
        match writer {
            Writer::SameWrites => self.check(&server),
            Writer::Plain => assert_eq!(keys(&server), 2 * self.expected.len() as u64 + 2, "two keys a user"),
        }
        measured
    }

    /// From the first records seen in the store to the last.
    fn measure(&self, pid: u32, server: &RedisServer, count: impl Fn() -> u64) -> Value {
        let deadline = Instant::now() + Duration::from_secs(300);
        let memory_before = redis_info(server, "memory", "used_memory:");
        let (mut began, mut ours_cpu, mut redis_cpu) = (None, 0.0, 0.0);
        loop {
            let seen = count();
            match began {
                None if seen > 0 => {
                    began = Some((Instant::now(), seen));
                    (ours_cpu, redis_cpu) = (processor_s(pid), redis_processor_s(server));
                }
                Some((at, before)) if seen >= self.total => {
                    assert_eq!(seen, self.total, "records counted");
                    let seconds = at.elapsed().as_secs_f64();
                    let events = (self.total - before) as f64;
                    let bytes = redis_info(server, "memory", "used_memory:") - memory_before;
                    return json!({
                        "events_s": events / seconds,
                        "cpu_us": (processor_s(pid) - ours_cpu) / events * 1e6,
                        "redis_cpu_us": (redis_processor_s(server) - redis_cpu) / events * 1e6,
                        "bytes_user": bytes / self.expected.len() as f64,
                    });
                }
                _ => {}
            }
            assert!(Instant::now() < deadline, "{seen} of {} records after five minutes", self.total);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Every user's counters and lists, and that all of them are due.
    fn check(&self, server: &RedisServer) {
        let users: Vec<String> = self.expected.keys().cloned().collect();
        self.runtime.block_on(async {
            let store = open(server).await;
            for part in users.chunks(500) {
                for (user, found) in part.iter().zip(store.histories(part).await.expect("histories")) {
                    let found = found.unwrap_or_else(|| panic!("{user} is not there"));
                    let ids = |list: Vec<taiji::proto::Behaviour>| {
                        list.into_iter().map(|one| (one.ts_ms, one.event_id)).collect()
                    };
                    let wanted = &self.expected[user];
                    let queries = wanted.lists[2].iter().map(|(ts_ms, _)| *ts_ms).collect::<Vec<i64>>();
                    assert_eq!(found.queries.iter().map(|(ts_ms, _)| *ts_ms).collect::<Vec<i64>>(), queries, "{user}");
                    let lists = [ids(found.engagements), ids(found.impressions), wanted.lists[2].clone()];
                    assert_eq!(Kept { seq: found.state.seq, lists }, *wanted, "{user}");
                }
            }
            let due: usize = store.queue_depth(Queue::Due).await.expect("queue").classes.iter().map(|c| c.1).sum();
            assert_eq!(due, users.len(), "users due");
            assert_eq!(store.stats().await.expect("stats").users, users.len() as u64, "users counted");
        });
    }
}

/// A store of our own on that server; it initialises an empty one.
async fn open(server: &RedisServer) -> Arc<RedisStore> {
    let timeouts = Timeouts { connect: Duration::from_secs(5), response: Duration::from_secs(30), retries: 8 };
    let options = RedisOptions {
        namespace: "taiji".into(),
        cluster: String::new(),
        shards: SHARDS,
        timeouts,
        assurance: Default::default(),
    };
    RedisStore::open(Address::parse(&server.url()).expect("address"), options).await.expect("store")
}

fn redis_info(server: &RedisServer, section: &str, field: &str) -> f64 {
    let info = server.command(&["INFO", section]);
    info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok()).expect("a field of INFO")
}

fn redis_processor_s(server: &RedisServer) -> f64 {
    redis_info(server, "cpu", "used_cpu_user:") + redis_info(server, "cpu", "used_cpu_sys:")
}

fn keys(server: &RedisServer) -> u64 {
    server.command(&["DBSIZE"]).trim().trim_start_matches(':').parse().expect("a number")
}

/// Seconds of processor time of a process.
fn processor_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).expect("stat");
    // After the name in brackets: state, then 10 fields, then user and system time in hundredths.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / 100.0
}
