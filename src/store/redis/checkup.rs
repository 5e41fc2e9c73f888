//! What a start asks of a Redis, one by one, for `taiji doctor`.
//!
//! In: an address and options. Out: what each master says of itself, which rights the user lacks, how clocks differ. Writes keys of its
//! own alone (`ns:doctor:…`, which it removes, and which end by themselves within a minute), and the functions where they are missing.

use super::address::Address;
use super::call::Call;
use super::keys::Keys;
use super::link::{self, Link};
use super::schema::{self, Epoch, NEWEST_KNOWN};
use super::values::read;
use super::{RedisOptions, assurance, functions, members};
use crate::clock::unix_ms;
use crate::store::{StoreError, StoreResult};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a user of Redis needs besides the keys of the namespace.
pub const RIGHTS: &str =
    "+@read +@write +@connection -@dangerous +fcall +function|load +info +time +cluster|slots +cluster|nodes";
/// Our own keys end after this, in ms.
const LIFE_MS: u64 = 60_000;
/// Keys that are tried: on a cluster so many that every master has some of them, most likely.
const PLACES: u32 = 32;

/// A connection to look through.
pub struct Checkup {
    link: Arc<Link>,
    keys: Keys,
    cluster: String,
}

/// What a namespace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Nothing is there; the first start sets it up.
    Empty,
    /// As this program writes.
    Current,
    /// `taiji migrate … apply` would raise it.
    Older(u64),
}

/// What a master says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `host:port`.
    pub name: String,
    /// Of Redis or Valkey.
    pub version: String,
    /// 0 = no limit.
    pub maxmemory: u64,
    /// Bytes in use.
    pub used: u64,
    /// What it does at its limit.
    pub policy: String,
    /// It keeps an append-only file.
    pub has_log: bool,
    /// What it could not write last: the append-only file, a snapshot.
    pub unwritten: Vec<&'static str>,
    /// Replicas that are connected.
    pub replicas: u64,
}

/// How a clock differs from ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock {
    /// A server, or a live process of ours.
    pub of: String,
    /// By how much it is ahead, in ms.
    pub ahead_ms: i64,
}

impl Checkup {
    /// Connects.
    pub async fn connect(address: Address, options: &RedisOptions) -> StoreResult<Checkup> {
        let link = Link::open(address, options).await?;
        Ok(Checkup { link, keys: Keys::new(&options.namespace), cluster: options.cluster.clone() })
    }

    /// What each master says of itself.
    pub async fn servers(&self) -> StoreResult<Vec<Server>> {
        let answers = self.link.everywhere("doctor", &redis::cmd("INFO")).await?;
        let masters = self.link.masters();
        masters
            .iter()
            .zip(answers)
            .map(|(node, info)| Ok(server(link::name(node), &read::<String>("info", info)?)))
            .collect()
    }

    /// An error where a server cannot keep what the settings promise; as at a start.
    pub async fn assured(&self) -> StoreResult<()> {
        assurance::check(&self.link).await
    }

    /// An error for a layout that this program does not know, and for a namespace of another cluster; as at a start.
    pub async fn layout(&self) -> StoreResult<Layout> {
        let epoch = Epoch::read(&self.link, &self.keys).await?;
        epoch.check(&self.link, &self.cluster)?;
        Ok(match epoch.schema {
            None => Layout::Empty,
            Some(_) if epoch.written < NEWEST_KNOWN => Layout::Older(epoch.written),
            Some(_) => Layout::Current,
        })
    }

    /// What the user may not do, of what the service does, and the first refusal in Redis' words.
    pub async fn lacking_rights(&self) -> StoreResult<Option<(Vec<String>, String)>> {
        let (mut lacking, mut first) = (BTreeSet::new(), None);
        let mut note = |what: &str, answer: StoreResult<()>| match answer {
            Err(StoreError::Denied { message, .. }) => {
                lacking.insert(what.to_string());
                first.get_or_insert(message);
                Ok(())
            }
            other => other,
        };
        let places = if self.link.is_cluster() { PLACES } else { 1 };
        let (names, calls): (Vec<&str>, Vec<Call>) = (0..places).flat_map(|_| self.rehearsal(rand::random())).unzip();
        let answers = self.link.run_each("doctor", calls).await;
        for (name, answer) in names.into_iter().zip(answers) {
            note(name, answer.map(|_| ()))?;
        }
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg(functions::source());
        note(
            "FUNCTION LOAD",
            match self.link.everywhere("doctor", &load).await {
                // They are there: it would have been loaded.
                Err(StoreError::Engine { message, .. }) if message.contains("already exists") => Ok(()),
                other => other.map(|_| ()),
            },
        )?;
        note("FCALL", self.link.everywhere("doctor", &schema::present()).await.map(|_| ()))?;
        Ok(first.map(|first| (lacking.into_iter().collect(), first)))
    }

    /// What the service does with the keys of one user, by command.
    fn rehearsal(&self, number: u64) -> Vec<(&'static str, Call)> {
        let key = |kind: &str| self.keys.of_doctor(number, kind);
        let mut calls = Vec::new();
        for (kind, command, arguments, reading) in [
            ("text", "SET", &["1", "PX", "60000"][..], ("GET", &[][..])),
            ("hash", "HSET", &["a", "1"], ("HGETALL", &[])),
            ("sorted", "ZADD", &["1", "a"], ("ZRANGE", &["0", "-1"])),
            ("set", "SADD", &["a"], ("SMEMBERS", &[])),
            ("list", "LPUSH", &["a"], ("LRANGE", &["0", "-1"])),
        ] {
            calls.push((command, Call::new(command, &key(kind)).arg(arguments)));
            calls.push(("PEXPIRE", Call::new("PEXPIRE", &key(kind)).arg(LIFE_MS)));
            calls.push((reading.0, Call::new(reading.0, &key(kind)).arg(reading.1)));
            calls.push(("UNLINK", Call::new("UNLINK", &key(kind))));
        }
        calls.push(("TIME", Call::beside("TIME", &key("text"))));
        calls
    }

    /// The masters' clocks beside this machine's; `None` where the answers took too long to tell.
    pub async fn server_clocks(&self, within_ms: i64) -> StoreResult<Option<Vec<Clock>>> {
        let asked_ms = unix_ms();
        let answers = self.link.everywhere("doctor", &redis::cmd("TIME")).await?;
        let answered_ms = unix_ms();
        if !(0..=within_ms).contains(&(answered_ms - asked_ms)) {
            return Ok(None);
        }
        let ours_ms = (asked_ms + answered_ms) / 2;
        let clock = |(node, answer): (&super::address::Node, redis::Value)| {
            let (seconds, micros): (i64, i64) = read("time", answer)?;
            Ok(Clock { of: format!("redis {}", link::name(node)), ahead_ms: seconds * 1000 + micros / 1000 - ours_ms })
        };
        self.link.masters().iter().zip(answers).map(clock).collect::<StoreResult<_>>().map(Some)
    }

    /// The clocks of the live processes of this namespace beside Redis', as they last said themselves.
    pub async fn process_clocks(&self) -> StoreResult<Vec<Clock>> {
        let alive = members::all(&self.link).await?;
        let ours = alive.into_iter().filter(|member| self.keys.is_namespace(&member.namespace));
        Ok(ours
            .filter_map(|member| {
                Some(Clock { of: format!("process {} ({})", member.id, member.roles), ahead_ms: member.ahead_ms? })
            })
            .collect())
    }
}

fn server(name: String, info: &str) -> Server {
    let field = |name: &str| assurance::field(info, name).unwrap_or_default();
    let number = |name: &str| field(name).parse().unwrap_or(0);
    let version = ["valkey_version:", "redis_version:"].map(field).into_iter().find(|version| !version.is_empty());
    let unwritten = [("aof_last_write_status:", "append-only file"), ("rdb_last_bgsave_status:", "snapshot")];
    Server {
        name,
        version: version.unwrap_or("of unknown version").to_string(),
        maxmemory: number("maxmemory:"),
        used: number("used_memory:"),
        policy: field("maxmemory_policy:").to_string(),
        has_log: field("aof_enabled:") == "1",
        unwritten: unwritten.into_iter().filter(|(name, _)| field(name) == "err").map(|(_, what)| what).collect(),
        replicas: number("connected_slaves:"),
    }
}
