//! One seed from start to end: site, fleet, stream, faults, reader, record, verdict.
//!
//! In: a seed, how long, a broker. Out: a [`Report`]. Callers: the tests of this folder.

use super::check::{Ack, Recorded, Sent, Wanted, Way, judge};
use super::faults::{Fault, counts, schedule, strike};
use super::feeder::{Fed, feed};
use super::fleet::{Fleet, Launch};
use super::gather::gather;
use super::poster::{erase_some, post_all, post_items};
use super::reader::read_on;
use super::say;
use super::site::{SharedBroker, Site};
use super::stream::Stream;
use crate::worlds::{data_plane_bundle, now_ms};
use serde_json::{Value, json};
use std::collections::BTreeMap;
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
    /// `refresh.sweep_interval_ms`; `None` = the default.
    pub sweep: Option<Duration>,
}

/// The default of `refresh.sweep_interval_ms`.
const SWEEP: Duration = Duration::from_secs(300);

impl Length {
    /// For `make test`, which has other things to do at the same time.
    pub const SHORT: Length = Length { seconds: 12, rate: 400, sweep: Some(Duration::from_secs(15)) };
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
    store: &'static str,
    lost_with_tail: usize,
    marks_lost: usize,
    /// What must not be.
    pub violations: Vec<String>,
}

/// Runs one seed: odd ones on a single Redis, even ones on a cluster.
pub fn run(seed: u64, length: Length, broker: &SharedBroker) -> Report {
    let folder = tempfile::Builder::new().prefix("taiji-chaos").tempdir().expect("folder");
    let mix = MIXES[(seed / 2 % MIXES.len() as u64) as usize];
    let topics = Topics::new(seed, broker);
    let is_cluster = seed.is_multiple_of(2);
    let site = if is_cluster { Site::with_cluster(broker.clone()) } else { Site::with_single(broker.clone()) };
    let fleet = Fleet::start(&topics.launch(folder.path(), &site, length.sweep), mix, &site);
    let time = Duration::from_secs(length.seconds);
    let stream = Stream::new(seed, (length.seconds * length.rate) as usize, time, now_ms() - 3_600_000);
    let faults = schedule(seed, time, fleet.regular().len(), is_cluster);
    site.note("the fleet is ready");
    let begun = site.elapsed();
    let happened = let_it_happen(seed, &site, &fleet, &stream, &topics, (time, &faults));
    for failure in &happened.fed.failures {
        site.violation(format!("the stream is not whole: {failure}"));
    }
    site.note("stream and faults are over");
    let (reads, fed_for, slowest) = (happened.reads, happened.fed.time, happened.slowest);
    let mut recorded = record(&site, &stream, begun, happened);
    let settled = gather(&site, &fleet, &topics, length.sweep.unwrap_or(SWEEP), &mut recorded);
    site.note("gathered");
    fleet.end(&site);
    let verdict = judge(&recorded);
    verdict.violations.into_iter().for_each(|violation| site.violation(violation));
    let violations = site.violations();
    if !violations.is_empty() || std::env::var("TAIJI_CHAOS_STORY").is_ok() {
        say(&format!("seed {seed}: its processes' logs are in {}\n{}", folder.keep().display(), site.story()));
    }
    Report {
        seed,
        mix: mix.iter().map(|roles| if roles.is_empty() { "all" } else { roles }).collect::<Vec<_>>().join(" "),
        faults: counts(&faults),
        events: stream.events,
        records: stream.sent.len() + stream.posts.iter().map(|post| post.events.len()).sum::<usize>(),
        time: fed_for,
        reads,
        slowest,
        settled,
        store: if is_cluster { "cluster" } else { "single" },
        lost_with_tail: verdict.lost_with_tail,
        marks_lost: verdict.marks_lost,
        violations,
    }
}

/// What came of the stream and of all that was done beside it.
struct Happened {
    fed: Fed,
    reads: usize,
    slowest: Option<(&'static str, Duration)>,
    posted: BTreeMap<String, Sent>,
    items: BTreeMap<String, Sent>,
    erased: BTreeMap<String, Wanted>,
}

/// The stream, its faults, its reader, items and erasures, all at once; until the last fault is over.
fn let_it_happen(
    seed: u64,
    site: &Site,
    fleet: &Fleet,
    stream: &Stream,
    topics: &Topics,
    (time, faults): (Duration, &[(Duration, Fault)]),
) -> Happened {
    let users: Vec<String> = stream.wanted.keys().cloned().collect();
    let (over, slowest) = (AtomicBool::new(false), Mutex::new(None));
    let is_over = || over.load(Ordering::Acquire);
    let address = site.broker.lock().expect("broker").address().to_string();
    // A little less, so that the acknowledgements fit, too.
    let stream_time = time.mul_f64(0.98);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_on(site, fleet, &users, seed, is_over));
        scope.spawn(|| {
            while !is_over() {
                site.measure_append_only();
                fleet.watch(site);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let items = scope.spawn(|| post_items(site, fleet, seed, is_over));
        let erased = scope.spawn(|| erase_some(site, fleet, seed, stream_time));
        let poster = scope.spawn(|| post_all(site, fleet, &stream.posts, stream_time, seed));
        let feeder = scope.spawn(|| {
            let fed = feed(&address, &topics.events, &stream.sent, stream_time);
            site.stream_ended.store(true, Ordering::Release);
            fed
        });
        let begun = Instant::now();
        std::thread::scope(|strikes| {
            for (at, fault) in faults {
                std::thread::sleep(at.saturating_sub(begun.elapsed()));
                strikes.spawn(|| {
                    let took = strike(*fault, site, fleet).map(|took| (fault.name(), took));
                    let mut slowest = slowest.lock().expect("slowest");
                    *slowest = [*slowest, took].into_iter().flatten().max_by_key(|(_, took)| *took);
                });
            }
        });
        let fed = feeder.join().expect("feeder");
        let (posted, erased) = (poster.join().expect("poster"), erased.join().expect("erasures"));
        over.store(true, Ordering::Release);
        let (items, reads) = (items.join().expect("items"), reader.join().expect("reader"));
        let slowest = *slowest.lock().expect("slowest");
        Happened { fed, reads, slowest, posted, items, erased }
    })
}

/// What was sent and when, with nothing found yet. The stream began `begun` after the site.
fn record(site: &Site, stream: &Stream, begun: Duration, happened: Happened) -> Recorded {
    let mut wanted = happened.erased;
    for (user, events) in &stream.wanted {
        let mut events = events.clone();
        for event in &mut events {
            event.sent.first += begun;
            if event.way == Way::Http {
                event.sent = happened.posted.get(&event.id).copied().unwrap_or(event.sent);
            }
        }
        wanted.insert(user.clone(), Wanted { events, erased: None });
    }
    Recorded {
        ack: if std::env::var("TAIJI_CHAOS_ACK").is_ok_and(|ack| ack != "applied") { Ack::Kept } else { Ack::Applied },
        tails: site.tails(),
        wanted,
        bad: stream.bad.clone(),
        items: happened.items,
        histories: BTreeMap::new(),
        letters: Vec::new(),
        shown: BTreeMap::new(),
        overlays: Vec::new(),
        behind: Vec::new(),
        behind_after_sweep: Vec::new(),
        unsettled: Vec::new(),
    }
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

    fn launch(&self, folder: &Path, site: &Site, sweep: Option<Duration>) -> Launch {
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
        let sweep = sweep.map(|sweep| ("TAIJI__REFRESH__SWEEP_INTERVAL_MS", sweep.as_millis().to_string()));
        let ack = std::env::var("TAIJI_CHAOS_ACK").ok().map(|ack| ("TAIJI__STORE__ACK", ack));
        let environment = sweep.into_iter().chain(ack).collect();
        Launch { flags: flags.map(String::from).to_vec(), environment, folder: folder.to_path_buf() }
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
            "chaos seed {} ({}): {} violations, {} lost with the tail, {} due marks; {} events, {:.0}/s ({:.0} records/s); [{}]; {}; {} reads; slowest recovery {slowest}; settled in {:.1} s",
            self.seed,
            self.store,
            self.violations.len(),
            self.lost_with_tail,
            self.marks_lost,
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
            "store": self.store,
            "lost_with_tail": self.lost_with_tail,
            "marks_lost": self.marks_lost,
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
