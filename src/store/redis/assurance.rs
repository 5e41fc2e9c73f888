//! What the store promises beyond what a Redis does by itself, and whether a server can keep it.
//!
//! In: the settings, a link. Out: [`Assurance`], or which server cannot be used and what to do. Callers: opening a store;
//! `link` and `kept` go by it.

use super::link::{self, Link};
use super::values::read;
use crate::store::{StoreError, StoreResult};
use std::time::Duration;

/// What must have happened to a write before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The master has carried it out.
    Applied,
    /// [`Assurance::ack_replicas`] replicas have it, too.
    Replicated,
    /// It is on the master's disk, and on that of [`Assurance::ack_replicas`] replicas if the master has any.
    Synced,
}

/// How long readers wait, and what writers may rely on.
#[derive(Debug, Clone, Copy)]
pub struct Assurance {
    /// A serving read without an answer for so long fails; so does a PING that asks whether a node is there.
    pub read_deadline: Duration,
    /// When a write is acknowledged.
    pub ack: Ack,
    /// Replicas that must have a write where replicas are asked.
    pub ack_replicas: u32,
    /// How long their answer is waited for.
    pub ack_timeout: Duration,
    /// Takes a server that may throw keys away when its memory is full.
    pub allow_eviction: bool,
}

impl Default for Assurance {
    /// As `default.toml` has it.
    fn default() -> Assurance {
        Assurance {
            read_deadline: Duration::from_millis(250),
            ack: Ack::Applied,
            ack_replicas: 1,
            ack_timeout: Duration::from_secs(2),
            allow_eviction: false,
        }
    }
}

/// Refuses servers that cannot keep what is promised.
pub(super) async fn check(link: &Link) -> StoreResult<()> {
    let assurance = link.assurance();
    if !assurance.allow_eviction {
        refuse(link, "memory", |info| {
            let policy = field(info, "maxmemory_policy:").filter(|policy| *policy != "noeviction")?;
            Some(format!(
                "its maxmemory-policy is {policy}, which throws away histories when memory is full: CONFIG SET \
                 maxmemory-policy noeviction, or set store.allow_eviction"
            ))
        })
        .await?;
    }
    if assurance.ack == Ack::Synced {
        refuse(link, "persistence", |info| {
            (field(info, "aof_enabled:") != Some("1"))
                .then(|| "store.ack is synced, which needs its append-only file: set appendonly yes".to_string())
        })
        .await?;
        let mut ask = redis::cmd("WAITAOF");
        ask.arg(0).arg(0).arg(0);
        if let Err(StoreError::Engine { message, .. }) = link.everywhere("open", &ask).await {
            let message =
                format!("store.ack is synced, which needs WAITAOF (Redis 7.2 or newer, or Valkey): {message}");
            return Err(StoreError::Open { place: link.printable(), message });
        }
    }
    Ok(())
}

/// An error that names the first master whose INFO shows something wrong.
async fn refuse(link: &Link, section: &str, wrong: impl Fn(&str) -> Option<String>) -> StoreResult<()> {
    let mut info = redis::cmd("INFO");
    info.arg(section);
    let answers = link.everywhere("open", &info).await?;
    for (node, answer) in link.masters().iter().zip(answers) {
        if let Some(message) = wrong(&read::<String>("info", answer)?) {
            return Err(StoreError::Open { place: format!("redis {}", link::name(node)), message });
        }
    }
    Ok(())
}

/// A field of an answer to INFO; `name` with its colon.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
