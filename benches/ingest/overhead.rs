//! From a broker's append to the first read that shows the event: `taiji serve` with canned answers (quantiser, user index,
//! store and all its writes are real), and beside it a bare consumer that counts in Redis and a reader that asks Redis.
//!
//! In: a broker, a bundle. Out: milliseconds of every probed event, by run. Caller: `main`. Events come at a fixed rate: clicks,
//! and one in 40 a purchase, which makes its user due at once and is probed: from its append on (the broker's own time stamp)
//! somebody reads until its number in the user's row is reached.

use super::{PARTITIONS, REDIS, processor_s};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use testkit::kafka::Broker;
use testkit::process::Setup;
use testkit::redis::RedisServer;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const USERS: usize = 2000;
const PROBE_EVERY: u64 = 40;
/// Probes of this time at the start of a run do not count: every user is new then, and new users are due at once.
const WARM_UP: Duration = Duration::from_secs(10);
/// A broker that has just started spends half a core on compiling itself; it gets this long under the same load first.
const BROKER_WARM_UP: Duration = Duration::from_secs(45);
/// A probe that sees nothing for so long gives up, and counts as this long.
const GIVEN_UP: Duration = Duration::from_secs(10);
/// Between two reads of one probe: this, and a 20th of the time waited, so that probes of a service that is behind do not
/// hold it up further.
const PAUSE: Duration = Duration::from_millis(1);

/// The rig's services refresh at every event; these settings are the defaults again.
const DEFAULT_POLICY: [(&str, &str); 3] = [
    ("TAIJI__REFRESH__WEIGHT_THRESHOLD", "4"),
    ("TAIJI__REFRESH__MAX_INTERVAL_MS", "3600000"),
    ("TAIJI__REFRESH__POLL_MS", "100"),
];

/// A probed event: user, its number among the user's events, when the broker appended it (unix ms).
struct Probe {
    user: String,
    seq: u64,
    appended_ms: f64,
}

/// Where a probe looks: how many of the user's events a reader sees.
#[derive(Clone)]
enum Reader {
    Taiji { client: reqwest::Client, address: String },
    Redis(redis::aio::MultiplexedConnection),
}

impl Reader {
    async fn seq(&mut self, user: &str) -> u64 {
        match self {
            Reader::Taiji { client, address } => {
                let url = format!("http://{address}/v1/users/{user}/features?groups=intra");
                let body = client.get(&url).send().await.expect("read").bytes().await.expect("body");
                let row: Value = serde_json::from_slice(&body).expect("json");
                row["groups"]["intra"]["meta"]["seq"].as_u64().unwrap_or(0)
            }
            Reader::Redis(connection) => {
                let seq: Option<u64> =
                    redis::cmd("HGET").arg(user).arg("seq").query_async(connection).await.expect("read");
                seq.unwrap_or(0)
            }
        }
    }
}

fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs_f64() * 1000.0
}

/// Reports each probe when the broker has it.
struct Acknowledged(mpsc::UnboundedSender<Probe>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<Option<(String, u64)>>;

    fn delivery(&self, result: &DeliveryResult<'_>, probe: Self::DeliveryOpaque) {
        let message = result.as_ref().map_err(|(error, _)| error).expect("the broker takes it");
        let Some((user, seq)) = *probe else { return };
        // The topic's time stamps are those of the append, in whole ms: up to 1 ms too much is measured.
        let appended_ms = message.timestamp().to_millis().expect("time stamp") as f64;
        drop(self.0.send(Probe { user, seq, appended_ms }));
    }
}

/// Runs of all ways, every other one in the opposite order; `[{"ours": {…}, "earlier": {…}, "bare": {…}}, …]`, `earlier` only
/// where there is such a program.
pub fn measure(bench: &Overhead<'_>, runs: usize) -> Vec<Value> {
    let run = |round: usize| {
        let mut ways = vec!["ours", "bare"];
        if bench.programs.1.is_some() {
            ways.insert(1, "earlier");
        }
        if !round.is_multiple_of(2) {
            ways.reverse();
        }
        let found: Map<String, Value> = ways.into_iter().map(|way| (way.to_string(), bench.way(way, round))).collect();
        eprintln!("bench-overhead: run {}: {}", round + 1, json!(found));
        Value::Object(found)
    };
    (0..runs).map(run).collect()
}

/// A service to measure.
pub struct Program {
    pub path: String,
    pub bundle: PathBuf,
}

/// Which events make their users due.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// As the defaults have it (a purchase, or clicks that weigh 4 together), with `min_interval` 0.
    ByPolicy,
    /// Every one.
    Always,
}

/// What the runs of one way share.
pub struct Overhead<'a> {
    pub runtime: &'a Runtime,
    pub broker: &'a Broker,
    /// This tree's, and an earlier release's to compare with.
    pub programs: (&'a Program, Option<&'a Program>),
    pub due: Due,
    /// Events a second.
    pub rate: f64,
    /// Of one run, without its warm-up.
    pub time: Duration,
}

impl Overhead<'_> {
    /// Runs the bare pair for a while, for the broker's sake.
    pub fn warm_up(&self) {
        Overhead { time: BROKER_WARM_UP, ..*self }.bare(0, "warm-up");
    }

    fn way(&self, way: &str, round: usize) -> Value {
        match (way, self.programs) {
            ("ours", (program, _)) | ("earlier", (_, Some(program))) => self.service(way, program, round),
            _ => self.bare(round, way),
        }
    }

    fn service(&self, way: &str, program: &Program, round: usize) -> Value {
        let (server, topic) = (RedisServer::with(&REDIS), self.topic(way, round));
        let folder = tempfile::tempdir().expect("folder");
        let service = Setup::canned(&program.bundle, folder.path())
            .of(&program.path)
            .on(&server.operators_url())
            .flag("--kafka", self.broker.address())
            .env("TAIJI__KAFKA__GROUP", &topic)
            .env("TAIJI__KAFKA__EVENTS_TOPIC", &topic)
            .env("TAIJI__KAFKA__ITEMS_TOPIC", "")
            .env("TAIJI__KAFKA__DEAD_LETTER_TOPIC", "bench.dlq");
        let service = match self.due {
            Due::Always => service.start(),
            Due::ByPolicy => DEFAULT_POLICY.iter().fold(service, |setup, (name, value)| setup.env(name, value)).start(),
        };
        taiji::tls::choose_provider();
        let reader = Reader::Taiji { client: reqwest::Client::new(), address: service.public().to_string() };
        let before_s = processor_s(service.pid());
        let mut found = self.run(&topic, reader);
        found["cpu_us"] = json!((processor_s(service.pid()) - before_s) / found["events"].as_f64().expect("n") * 1e6);
        found["refreshes"] = json!(service.metric("taiji_refreshes_total"));
        found
    }

    fn bare(&self, round: usize, topic: &str) -> Value {
        let (server, topic) = (RedisServer::with(&REDIS), self.topic(topic, round));
        let connect = async || {
            let client = redis::Client::open(server.url()).expect("address");
            client.get_multiplexed_async_connection().await.expect("redis")
        };
        let (writer, reader) = self.runtime.block_on(async { (connect().await, connect().await) });
        let mut config = self.broker.client();
        config.set("group.id", &topic).set("auto.offset.reset", "earliest");
        let task = self.runtime.spawn(count_in_redis(config, topic.clone(), writer));
        let found = self.run(&topic, Reader::Redis(reader));
        task.abort();
        found
    }

    fn topic(&self, who: &str, round: usize) -> String {
        let topic = format!("overhead.{who}.{}.{}.{round}", self.due as u8, self.rate);
        self.broker.create_topic(&topic, PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
        topic
    }

    /// Sends events at the rate for the warm-up and the time, and waits for every probe.
    fn run(&self, topic: &str, reader: Reader) -> Value {
        let (sender, mut probes) = mpsc::unbounded_channel::<Probe>();
        let times: Arc<Mutex<Vec<Option<f64>>>> = Arc::default();
        let kept = times.clone();
        let first_ms = unix_ms() + WARM_UP.as_secs_f64() * 1000.0;
        let probing = self.runtime.spawn(async move {
            let mut under_way = JoinSet::new();
            while let Some(probe) = probes.recv().await {
                let (reader, kept) = (reader.clone(), kept.clone());
                under_way.spawn(async move {
                    let seen_after_ms = see(reader, &probe).await;
                    if probe.appended_ms >= first_ms {
                        kept.lock().expect("times").push(seen_after_ms);
                    }
                });
            }
            while let Some(ended) = under_way.join_next().await {
                ended.expect("probe");
            }
        });
        let events = self.send(topic, sender);
        self.runtime.block_on(probing).expect("probes");
        let times = std::mem::take(&mut *times.lock().expect("times"));
        let given_up = times.iter().filter(|seen_after_ms| seen_after_ms.is_none()).count();
        let longest_ms = GIVEN_UP.as_secs_f64() * 1000.0;
        let mut times: Vec<f64> = times.into_iter().map(|seen_after_ms| seen_after_ms.unwrap_or(longest_ms)).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        json!({"events": events, "probes": times.len(), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99),
            "max_ms": at(1.0), "given_up": given_up})
    }

    fn send(&self, topic: &str, probes: mpsc::UnboundedSender<Probe>) -> u64 {
        let mut config: ClientConfig = self.broker.client();
        config.set("linger.ms", "5").set("acks", "1");
        let producer: ThreadedProducer<Acknowledged, NoCustomPartitioner> =
            config.create_with_context(Acknowledged(probes)).expect("producer");
        let (mut rng, mut seqs) = (ChaCha8Rng::seed_from_u64(7), HashMap::<usize, u64>::new());
        let (started, total) = (Instant::now(), ((WARM_UP + self.time).as_secs_f64() * self.rate) as u64);
        for n in 0..total {
            let due = Duration::from_secs_f64(n as f64 / self.rate);
            if let Some(early) = due.checked_sub(started.elapsed()).filter(|early| *early > Duration::from_micros(500))
            {
                std::thread::sleep(early);
            }
            let user = rng.random_range(0..USERS);
            let seq = seqs.entry(user).or_default();
            *seq += 1;
            let name = format!("u{user:07}");
            let is_probed = n.is_multiple_of(PROBE_EVERY);
            let action = if is_probed { "purchase" } else { "click" };
            let value = json!({"event_id": format!("{n:016x}"), "user_id": name, "item_id": format!("i{}", n % 500),
                "action": action, "ts_ms": unix_ms() as i64});
            let probe = is_probed.then(|| (name.clone(), *seq));
            let value = value.to_string();
            let record = BaseRecord::with_opaque_to(topic, Box::new(probe)).key(&name).payload(&value);
            producer.send(record).map_err(|(error, _)| error).expect("send");
        }
        producer.flush(Duration::from_secs(30)).expect("flush");
        total
    }
}

/// Reads until the probed event shows; how long after its append that was, in ms.
async fn see(mut reader: Reader, probe: &Probe) -> Option<f64> {
    let started = Instant::now();
    while reader.seq(&probe.user).await < probe.seq {
        if started.elapsed() > GIVEN_UP {
            return None;
        }
        tokio::time::sleep(PAUSE.max(started.elapsed() / 20)).await;
    }
    Some(unix_ms() - probe.appended_ms)
}

/// Consume and write, nothing else: one counter a user, everything that has come in one pipeline.
async fn count_in_redis(config: ClientConfig, topic: String, mut redis: redis::aio::MultiplexedConnection) {
    let consumer: StreamConsumer = config.create().expect("consumer");
    consumer.subscribe(&[&topic]).expect("subscribe");
    let mut messages = futures::StreamExt::ready_chunks(consumer.stream(), 500);
    while let Some(chunk) = futures::StreamExt::next(&mut messages).await {
        let mut pipeline = redis::Pipeline::new();
        for message in chunk {
            let message = message.expect("message");
            let user = std::str::from_utf8(message.key().expect("key")).expect("utf-8").to_string();
            pipeline.cmd("HINCRBY").arg(user).arg("seq").arg(1);
        }
        let _: Vec<u64> = pipeline.query_async(&mut redis).await.expect("write");
    }
}
