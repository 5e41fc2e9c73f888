//! One seed from start to end: site, fleet, stream, faults, reader, check.
//!
//! In: a seed, how long, a broker. Out: a [`Report`]. Callers: the tests of this folder.

use super::check;
use super::faults::{Fault, counts, schedule, strike};
use super::feeder::{Fed, feed};
use super::fleet::{Fleet, Launch};
use super::reader::read_on;
use super::say;
use super::site::{SharedBroker, Site};
use super::stream::Stream;
use crate::worlds::{data_plane_bundle, now_ms};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Which processes a seed has: each entry is one's `--roles`; empty is all of them.
const MIXES: [&[&str]; 4] = [
    &["api", "ingest", "ingest", "infer", "infer"],
    &["", "", ""],
    &["api", "ingest,infer", "ingest,infer"],
    &["api,ingest", "api,ingest", "infer"],
];

/// How long and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Of the stream.
    pub seconds: u64,
    /// Different events a second; repeats and bad records come on top.
    pub rate: u64,
}

impl Length {
    /// For `make test`, which has other things to do at the same time.
    pub const SHORT: Length = Length { seconds: 12, rate: 500 };
}

/// Names of a seed's own.
pub struct Topics {
    /// Consumer group.
    pub group: String,
    /// Events.
    pub events: String,
    /// Of the events.
    pub partitions: i32,
    /// One partition.
    pub dead_letters: String,
}

/// What came of a seed.
pub struct Report {
    seed: u64,
    mix: String,
    faults: Vec<(&'static str, usize)>,
    /// Different ones.
    events: usize,
    /// Repeats and bad records included.
    records: usize,
    /// Until the last was acknowledged.
    time: Duration,
    reads: usize,
    slowest: Option<(&'static str, Duration)>,
    settled: Duration,
    /// What must not be.
    pub violations: Vec<String>,
}

/// Runs one seed.
pub fn run(seed: u64, length: Length, broker: &SharedBroker) -> Report {
    let folder = tempfile::Builder::new().prefix("taiji-chaos").tempdir().expect("folder");
    let mix = MIXES[(seed % MIXES.len() as u64) as usize];
    let topics = Topics::new(seed, broker);
    let site = Site::new(broker.clone());
    let fleet = Fleet::start(&topics.launch(folder.path(), &site), mix, &site);
    let time = Duration::from_secs(length.seconds);
    let stream = Stream::new(seed, (length.seconds * length.rate) as usize, now_ms() - 3_600_000);
    let faults = schedule(seed, time, fleet.regular().len());
    site.note("the fleet is ready");
    let (fed, reads, slowest) = let_it_happen(seed, &site, &fleet, &stream, &topics, (time, &faults));
    for failure in fed.failures {
        site.violation(format!("the stream is not whole: {failure}"));
    }
    site.note("stream and faults are over");
    let settled = check::settle(&site, &fleet, &stream, &topics);
    site.note("settled");
    check::compare(&site, &fleet, &stream, &topics);
    site.note("compared");
    fleet.end(&site);
    let violations = site.violations();
    if !violations.is_empty() || std::env::var("TAIJI_CHAOS_STORY").is_ok() {
        say(&format!("seed {seed}: its processes' logs are in {}\n{}", folder.keep().display(), site.story()));
    }
    Report {
        seed,
        mix: mix.iter().map(|roles| if roles.is_empty() { "all" } else { roles }).collect::<Vec<_>>().join(" "),
        faults: counts(&faults),
        events: stream.events,
        records: stream.sent.len(),
        time: fed.time,
        reads,
        slowest,
        settled,
        violations,
    }
}

/// The stream, its faults and its reader, all at once; until the last fault is over.
fn let_it_happen(
    seed: u64,
    site: &Site,
    fleet: &Fleet,
    stream: &Stream,
    topics: &Topics,
    (time, faults): (Duration, &[(Duration, Fault)]),
) -> (Fed, usize, Option<(&'static str, Duration)>) {
    let users: Vec<String> = stream.wanted.keys().cloned().collect();
    let (over, slowest) = (AtomicBool::new(false), Mutex::new(None));
    let is_over = || over.load(Ordering::Acquire);
    let address = site.broker.lock().expect("broker").address().to_string();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_on(site, fleet, &users, seed, is_over));
        scope.spawn(|| {
            while !is_over() {
                site.measure_append_only();
                fleet.watch(site);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let feeder = scope.spawn(|| {
            // A little less, so that the acknowledgements fit, too.
            let fed = feed(&address, &topics.events, &stream.sent, time.mul_f64(0.98));
            site.stream_ended.store(true, Ordering::Release);
            fed
        });
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for (at, fault) in faults {
                std::thread::sleep(at.saturating_sub(begun.elapsed()));
                scope.spawn(|| {
                    let took = strike(*fault, site, fleet).map(|took| (fault.name(), took));
                    let mut slowest = slowest.lock().expect("slowest");
                    *slowest = [*slowest, took].into_iter().flatten().max_by_key(|(_, took)| *took);
                });
            }
        });
        let fed = feeder.join().expect("feeder");
        over.store(true, Ordering::Release);
        (fed, reader.join().expect("reader"), *slowest.lock().expect("slowest"))
    })
}

impl Topics {
    fn new(seed: u64, broker: &SharedBroker) -> Topics {
        let group = format!("chaos-{seed}");
        let (events, dead_letters) = (format!("{group}.events"), format!("{group}.dlq"));
        let topics = Topics { group, events, partitions: 6, dead_letters };
        let broker = broker.lock().expect("broker");
        broker.create_topic(&topics.events, topics.partitions, &[]);
        broker.create_topic(&topics.dead_letters, 1, &[]);
        topics
    }

    fn launch(&self, folder: &Path, site: &Site) -> Launch {
        let config = folder.join("taiji.toml");
        let text = format!(
            "[kafka]\ngroup = \"{}\"\nevents_topic = \"{}\"\nitems_topic = \"\"\ndead_letter_topic = \"{}\"\n\
             [kafka.properties]\n\"session.timeout.ms\" = \"6000\"\n\"heartbeat.interval.ms\" = \"300\"\n",
            self.group, self.events, self.dead_letters
        );
        std::fs::write(&config, text).expect("config");
        let address = site.broker.lock().expect("broker").address().to_string();
        let (bundle, config) = (data_plane_bundle(folder).display().to_string(), config.display().to_string());
        let store = site.store_url();
        let flags =
            ["--config", &config, "--bundle", &bundle, "--engine", "null", "--store", &store, "--kafka", &address];
        Launch { flags: flags.map(String::from).to_vec(), folder: folder.to_path_buf() }
    }
}

impl Report {
    fn faults(&self) -> String {
        self.faults.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    }

    fn rate(&self, count: usize) -> f64 {
        count as f64 / self.time.as_secs_f64()
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let slowest = self.slowest.map_or("-".into(), |(name, took)| format!("{:.1} s ({name})", took.as_secs_f64()));
        format!(
            "chaos seed {}: {} violations; {} events, {:.0}/s ({:.0} records/s); [{}]; {}; {} reads; slowest recovery {slowest}; settled in {:.1} s",
            self.seed,
            self.violations.len(),
            self.events,
            self.rate(self.events),
            self.rate(self.records),
            self.mix,
            self.faults(),
            self.reads,
            self.settled.as_secs_f64(),
        )
    }

    /// One object for the report's script.
    pub fn json(&self) -> Value {
        json!({
            "seed": self.seed,
            "mix": self.mix,
            "faults": self.faults.iter().map(|(_, count)| count).sum::<usize>(),
            "kinds": self.faults(),
            "events": self.events,
            "events_rate": self.rate(self.events),
            "records_rate": self.rate(self.records),
            "reads": self.reads,
            "slowest_s": self.slowest.map(|(_, took)| took.as_secs_f64()),
            "slowest_after": self.slowest.map(|(name, _)| name),
            "settled_s": self.settled.as_secs_f64(),
            "violations": self.violations.len(),
        })
    }
}
