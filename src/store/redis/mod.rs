//! The store in a Redis or a Redis Cluster, shared by any number of processes. See [`super::FeatureStore`] for what it promises.
//!
//! In: an [`Address`] and [`RedisOptions`]. Out: a [`RedisStore`]. Callers: `cli::wiring` opens it; everyone else sees the
//! trait. What must be atomic is one function call in one slot (`migrations/0001_functions.lua`); every call may be repeated.
//!
//! | file | job |
//! |---|---|
//! | `address`, `link`, `topology`, `errors` | the URL; the way of a batch, retries; slots and their owners; errors in our words |
//! | `sentinels` | who is the master, by the word of Redis Sentinel |
//! | `call`, `link/` | a command with its slot and cost; functions loaded and slots read anew on the way |
//! | `connections` | one a node that everybody shares, and others |
//! | `reads` | one a node for serving reads, whose answers are not copied |
//! | `pace` | what calls cost, and how much may be under way |
//! | `breaker`, `watch` | calls to a node that is away fail at once; whether it is, is asked by PING |
//! | `assurance`, `durable` | what is promised; writes that replicas or the disk must confirm |
//! | `keys`, `values`, `entries` | names of keys; answers; bytes of a list's entries |
//! | `functions` | source and names of the functions inside Redis |
//! | `schema`, `migration`, `members` | layouts of a namespace; `taiji migrate`; live processes |
//! | `history`, `features`, `queue`, `feeds`, `erase`, `chores` | the traits, by subject |
//! | `forms` | forms of the queues, while programs that know the old one alone may come back |
//! | `aside` | members of keys of many that cannot be read |
//! | `checkup` | what a start asks of a server, one by one, for `taiji doctor` |
//! | `item_users` | how many users engaged with an item |

mod address;
mod aside;
mod assurance;
mod breaker;
mod call;
mod checkup;
mod chores;
mod connections;
mod durable;
pub(crate) mod entries;
mod erase;
mod errors;
pub(crate) mod features;
mod feeds;
mod forms;
mod functions;
mod history;
mod item_users;
mod keys;
mod link;
mod members;
mod migration;
mod pace;
mod queue;
mod reads;
mod schema;
mod sentinels;
#[cfg(test)]
pub(crate) mod tests;
mod topology;
mod values;
mod watch;

pub use address::Address;
pub use assurance::{Ack, Assurance};
pub use checkup::{Checkup, Clock, Layout, RIGHTS, Server};
pub use functions::function_name;
pub use link::Timeouts;
pub use migration::{Cleaning, Migration, Step};

use super::{Health, RecordKind, Replicas, StoreResult, StoreStats, Unreadable};
use crate::clock::unix_ms;
use async_trait::async_trait;
use call::Call;
use forms::Forms;
use functions::function;
use keys::Keys;
use link::Link;
use redis::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// How to open a [`RedisStore`].
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// First part of every key: letters, digits, `_`, `-`.
    pub namespace: String,
    /// Name of the cluster that the namespace belongs to (`store.cluster`); empty = none.
    pub cluster: String,
    /// Shards of the due queue, if the namespace is empty; later it is what was written then.
    pub shards: u32,
    /// Time-outs and tries.
    pub timeouts: Timeouts,
    /// Deadlines of reads, acknowledgement of writes.
    pub assurance: Assurance,
}

/// An answer to TIME that took longer says nothing of how our clocks differ, in ms.
const CLOCK_HEARD_MS: i64 = 100;
/// Keys or members asked for in one step of a scan.
const SCAN_STEP: usize = 1000;

/// [`super::FeatureStore`] in Redis.
pub struct RedisStore {
    link: Arc<Link>,
    keys: Keys,
    cluster: String,
    shards: u32,
    forms: Forms,
    full_items: item_users::FullItems,
    /// By how much Redis' clock is ahead of ours.
    ahead_ms: AtomicI64,
    unreadable: Unreadable,
    /// Tests stop the clock; otherwise it is Redis' own.
    stopped_clock: Option<Arc<AtomicI64>>,
}

impl RedisStore {
    /// A count that is kept; 0 where none is, or it cannot be read.
    async fn counted(&self, key: &str) -> StoreResult<u64> {
        let answer = self.link.one("stats", Call::new("GET", key)).await;
        let count = answer.and_then(|answer| values::read::<Option<u64>>(key, answer));
        Ok(self.unreadable.skip(RecordKind::Count, count)?.flatten().unwrap_or(0))
    }

    /// Connects; initialises an empty namespace, refuses one of another schema.
    pub async fn open(address: Address, options: RedisOptions) -> StoreResult<Arc<Self>> {
        Self::open_with_clock(address, options, None).await
    }

    async fn open_with_clock(
        address: Address,
        options: RedisOptions,
        stopped_clock: Option<Arc<AtomicI64>>,
    ) -> StoreResult<Arc<Self>> {
        let link = Link::open(address, &options).await?;
        assurance::check(&link).await?;
        let keys = Keys::new(&options.namespace);
        let epoch = schema::ready(&link, &keys, options.shards, &options.cluster).await?;
        let (shards, forms) = (epoch.shards, Forms::new(&keys, epoch.shards, &epoch));
        let (full_items, unreadable, ahead_ms) = Default::default();
        let cluster = options.cluster;
        let store = RedisStore { link, keys, cluster, shards, forms, full_items, unreadable, ahead_ms, stopped_clock };
        store.now_ms().await?;
        Ok(Arc::new(store))
    }

    /// All members of a key that may be big, step by step. Those that come or go meanwhile may be among them or not; one may
    /// come twice.
    async fn scan<T: redis::FromRedisValue>(
        &self,
        operation: &'static str,
        command: &str,
        key: &str,
    ) -> StoreResult<Vec<T>> {
        let (mut members, mut cursor) = (Vec::new(), "0".to_string());
        loop {
            let call = Call::new(command, key).arg(&cursor).arg("COUNT").arg(SCAN_STEP).costing(pace::STEP);
            let (next, found): (String, Vec<T>) = values::read(key, self.link.one(operation, call).await?)?;
            members.extend(found);
            if next == "0" {
                return Ok(members);
            }
            cursor = next;
        }
    }

    /// What functions get as the time: nothing, so that they ask Redis.
    fn clock_argument(&self) -> String {
        self.stopped_clock.as_ref().map_or(String::new(), |clock| clock.load(Ordering::Relaxed).to_string())
    }

    /// Unix ms of an answer to `TIME`.
    fn time_of(&self, answer: Value) -> StoreResult<i64> {
        if let Some(clock) = &self.stopped_clock {
            return Ok(clock.load(Ordering::Relaxed));
        }
        let (seconds, micros): (i64, i64) = values::read("time", answer)?;
        Ok(seconds * 1000 + micros / 1000)
    }
}

#[async_trait]
impl Health for RedisStore {
    async fn now_ms(&self) -> StoreResult<i64> {
        let asked_ms = unix_ms();
        let time = self.link.one("time", Call::beside("TIME", &self.keys.epoch())).await?;
        let (now_ms, answered_ms) = (self.time_of(time)?, unix_ms());
        if (0..=CLOCK_HEARD_MS).contains(&(answered_ms - asked_ms)) {
            self.ahead_ms.store(now_ms - (asked_ms + answered_ms) / 2, Ordering::Relaxed);
        }
        Ok(now_ms)
    }

    fn clock_ms(&self) -> i64 {
        match &self.stopped_clock {
            Some(clock) => clock.load(Ordering::Relaxed),
            None => unix_ms() + self.ahead_ms.load(Ordering::Relaxed),
        }
    }

    /// Users as counted, memory of all masters.
    async fn stats(&self) -> StoreResult<StoreStats> {
        let users = self.counted(&self.keys.user_count()).await?;
        let held = self.counted(&self.keys.held_count()).await?;
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        let mut bytes = 0;
        for answer in self.link.everywhere("stats", &info).await? {
            bytes += info_number(&values::read::<String>("info", answer)?, "used_memory:");
        }
        Ok(StoreStats { users, disk_bytes: 0, memory_bytes: bytes, held })
    }

    /// Redis decides itself when it writes to the disk.
    async fn flush(&self) -> StoreResult<()> {
        Ok(())
    }

    async fn incarnation(&self) -> StoreResult<u64> {
        let incarnation = self.link.look_again("incarnation").await?.of_all();
        self.full_items.forget_others_than(incarnation);
        Ok(incarnation)
    }

    async fn replicas(&self) -> StoreResult<Replicas> {
        let (lineages, lacking) = self.link.look_at_replicas("replicas").await?;
        Ok(Replicas { incarnation: lineages.of_all(), lacking })
    }

    fn unreadable(&self) -> &Unreadable {
        &self.unreadable
    }

    async fn misused_keys(&self, spaces: &[String]) -> StoreResult<Vec<String>> {
        let read = self.forms.spaces_read();
        let keys = self.keys.of_many(spaces, &read, self.shards);
        let calls = keys.iter().map(|(key, _)| Call::new("TYPE", key)).collect();
        let mut misused = Vec::new();
        for ((key, wanted), answer) in keys.iter().zip(self.link.run("check keys", calls).await?) {
            let found: String = values::read(key, answer)?;
            if found != "none" && found != *wanted {
                misused.push(format!("{key} holds a {found}, not a {wanted}"));
            }
        }
        Ok(misused)
    }

    fn trouble(&self) -> Option<String> {
        self.link.trouble()
    }
}

fn info_number(info: &str, field: &str) -> u64 {
    info.lines().find_map(|line| line.strip_prefix(field)).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}
