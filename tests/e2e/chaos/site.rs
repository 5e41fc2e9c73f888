//! What the fleet stands on: a Redis behind a network that can be cut, or a cluster; the broker; and the book of what happened.
//!
//! In: faults. Out: addresses, disturbances, lost tails, violations. Callers: `run` makes one a seed.

use super::calm::Calm;
use super::check::Tail;
use super::cluster::{Cluster, Lost};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::kafka::Broker;
use testkit::process::wait_until;
use testkit::proxy::Proxy;
use testkit::redis::RedisServer;

/// Redis may hold a write back this long before it reaches the file (`appendfsync everysec` beside a slow disk), although
/// it answered already.
const POSTPONED: Duration = Duration::from_secs(2);
/// How long the sizes of the append-only file are remembered.
const SIZES_KEPT: Duration = Duration::from_secs(10);

/// A broker that all seeds share and each may restart.
pub type SharedBroker = Arc<Mutex<Broker>>;

/// A broker to be shared.
pub fn shared(broker: Broker) -> SharedBroker {
    Arc::new(Mutex::new(broker))
}

/// Where the fleet keeps everything.
pub enum Ground {
    /// One Redis with an append-only file.
    Single {
        /// Locked by whoever does something to it.
        redis: Mutex<RedisServer>,
        /// The only way to it for the fleet.
        proxy: Proxy,
    },
    /// Three masters and their replicas.
    Cluster(Cluster),
}

/// The surroundings of one seed.
pub struct Site {
    pub ground: Ground,
    /// As `redis`.
    pub broker: SharedBroker,
    /// Of Redis and the way to it.
    pub store: Arc<Calm>,
    /// Of the broker.
    pub kafka: Arc<Calm>,
    /// The stream's last record is acknowledged.
    pub stream_ended: AtomicBool,
    append_only: PathBuf,
    sizes: Mutex<VecDeque<(Instant, u64)>>,
    /// From when to when the store may have lost what it acknowledged.
    tails: Mutex<Vec<Lost>>,
    /// A master is being replaced: what it alone has may go at any moment.
    is_losing: AtomicBool,
    rises: Mutex<Instant>,
    started: Instant,
    book: Mutex<Book>,
}

/// What happened, and what should not have.
#[derive(Default)]
struct Book {
    story: Vec<String>,
    violations: Vec<String>,
}

impl Site {
    /// A cluster of its own.
    pub fn with_cluster(broker: SharedBroker) -> Site {
        Site::on(Ground::Cluster(Cluster::start()), PathBuf::new(), broker)
    }

    /// A Redis of its own with an append-only file, behind a whole network.
    pub fn with_single(broker: SharedBroker) -> Site {
        let redis = RedisServer::with(&[
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            // A rewrite would begin a new file, and what was measured of the old one would mean nothing.
            "--auto-aof-rewrite-percentage",
            "0",
        ]);
        let append_only = redis.folder.path().join("appendonlydir/appendonly.aof.1.incr.aof");
        let proxy = Proxy::to(&format!("127.0.0.1:{}", redis.port));
        Site::on(Ground::Single { redis: Mutex::new(redis), proxy }, append_only, broker)
    }

    fn on(ground: Ground, append_only: PathBuf, broker: SharedBroker) -> Site {
        let now = Instant::now();
        Site {
            ground,
            append_only,
            broker,
            store: Arc::default(),
            kafka: Arc::default(),
            stream_ended: AtomicBool::new(false),
            sizes: Mutex::default(),
            tails: Mutex::default(),
            is_losing: AtomicBool::new(false),
            rises: Mutex::new(now),
            started: now,
            book: Mutex::default(),
        }
    }

    /// `store.url` of the fleet.
    pub fn store_url(&self) -> String {
        match &self.ground {
            Ground::Single { proxy, .. } => format!("redis://{}", proxy.address()),
            Ground::Cluster(cluster) => cluster.url().to_string(),
        }
    }

    /// What every master answers to a command.
    pub fn redis_answers(&self, command: &[&str]) -> Vec<String> {
        match &self.ground {
            Ground::Single { redis, .. } => vec![redis.lock().expect("redis").command(command)],
            Ground::Cluster(cluster) => cluster.masters(command),
        }
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Something that must not be.
    pub fn violation(&self, what: String) {
        self.note(&format!("VIOLATION {what}"));
        self.book.lock().expect("book").violations.push(what);
    }

    /// A line of the story.
    pub fn note(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.book.lock().expect("book").story.push(format!("{seconds:7.2} {what}"));
    }

    /// All violations so far.
    pub fn violations(&self) -> Vec<String> {
        self.book.lock().expect("book").violations.clone()
    }

    /// The whole story, a line each.
    pub fn story(&self) -> String {
        self.book.lock().expect("book").story.join("\n")
    }

    /// Remembers how long the append-only file is now. (The moment is taken before: all that was answered by then is in it.)
    pub fn measure_append_only(&self) {
        let now = Instant::now();
        let Ok(file) = std::fs::metadata(&self.append_only) else { return };
        let mut sizes = self.sizes.lock().expect("sizes");
        sizes.push_back((now, file.len()));
        while sizes.front().is_some_and(|(at, _)| now.duration_since(*at) > SIZES_KEPT) {
            sizes.pop_front();
        }
    }

    /// A killed Redis may have lost what it had not written yet.
    pub fn redis_was_killed(&self) {
        let now = Instant::now();
        self.lost_tail((now - POSTPONED, now));
    }

    /// Replaces a master; what it alone had may go at any moment until [`Self::lost_tail`] says what did.
    pub fn replace_master(&self, replace: impl FnOnce() -> Lost) {
        self.is_losing.store(true, Ordering::SeqCst);
        self.lost_tail(replace());
        self.is_losing.store(false, Ordering::SeqCst);
    }

    /// Whether a master is being replaced.
    pub fn is_losing(&self) -> bool {
        self.is_losing.load(Ordering::SeqCst)
    }

    /// What was acknowledged then may be gone.
    pub fn lost_tail(&self, lost: Lost) {
        self.tails.lock().expect("tails").push(lost);
    }

    /// Cuts the append-only file of a dead Redis to what it was `back` ago, or `more` bytes before that. Returns how many bytes
    /// are gone; `None` if nobody knows how long it was then.
    pub fn cut_append_only(&self, back: Duration, more: u64) -> Option<u64> {
        let mut sizes = self.sizes.lock().expect("sizes");
        let (at, then) = sizes.iter().rev().find(|(at, _)| at.elapsed() >= back).copied()?;
        sizes.clear();
        let file = std::fs::OpenOptions::new().write(true).open(&self.append_only).expect("append-only file");
        let size = file.metadata().expect("append-only file").len();
        let left = then.saturating_sub(more).min(size);
        file.set_len(left).expect("cut");
        self.lost_tail((at - POSTPONED, Instant::now()));
        Some(size - left)
    }

    /// Since when what was read may be gone again, for every time that Redis lost its tail.
    pub fn cuts(&self) -> Vec<Instant> {
        self.tails.lock().expect("tails").iter().map(|(from, _)| *from).collect()
    }

    /// The same for the record: from when to when.
    pub fn tails(&self) -> Vec<Tail> {
        let since = |moment: Instant| moment.saturating_duration_since(self.started);
        let tails = self.tails.lock().expect("tails");
        tails.iter().map(|(from, to)| Tail { from: since(*from), to: since(*to) }).collect()
    }

    /// A reader saw features of a newer version.
    pub fn rose(&self) {
        *self.rises.lock().expect("rises") = Instant::now();
    }

    /// Whether features moved on after a moment.
    pub fn has_risen_since(&self, moment: Instant) -> bool {
        *self.rises.lock().expect("rises") > moment
    }

    /// The stream's last record is acknowledged.
    pub fn has_stream_ended(&self) -> bool {
        self.stream_ended.load(Ordering::Acquire)
    }

    /// Waits until Redis has read its files and answers.
    pub fn wait_for_redis(redis: &RedisServer) {
        let answers = || redis.command(&["PING"]).starts_with("+PONG").then_some(());
        wait_until("redis", Duration::from_secs(60), answers);
    }
}

/// A server that answers nobody for a while (`CLIENT PAUSE`), until the while is over.
pub fn pause_clients(server: &RedisServer, time: Duration) {
    let answer = server.command(&["CLIENT", "PAUSE", &time.as_millis().to_string(), "ALL"]);
    assert!(answer.starts_with("+OK"), "{answer}");
    std::thread::sleep(time);
}
