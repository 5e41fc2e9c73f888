//! The store inside the process: an LSM tree (fjall) in one folder. See [`super::FeatureStore`] for what it promises.
//!
//! In: a folder and [`EmbeddedOptions`]. Out: an [`EmbeddedStore`]. Callers: `main` and `config` open it; everyone else
//! sees the trait. One process holds a folder at a time.
//!
//! | file | job |
//! |---|---|
//! | `engine` | opening, schema check, errors |
//! | `keys`, `locks`, `flusher` | key bytes; who may change what; syncing to disk |
//! | `history` | append and histories |
//! | `put` | features, referrers |
//! | `erase` | erasures, step by step |
//! | `chores` | when the walks over everything were done |
//! | `due`, `queue` | due queue and leases: durable part, part in memory |
//! | `feeds` | fresh vectors, catalogue overlay |
//! | `aside` | records about many that cannot be read |
//! | `counters` | counts of referrers, of an item's users, of users |

mod aside;
mod chores;
mod counters;
#[cfg(test)]
mod crash_tests;
mod due;
mod engine;
mod erase;
mod feeds;
mod flusher;
mod history;
mod keys;
mod locks;
mod notes;
#[cfg(test)]
mod poison_tests;
mod put;
/// The version rules of a put, which every store applies.
pub(in crate::store) mod put_rules {
    pub(in crate::store) use super::put::decide;
}
mod queue;
#[cfg(test)]
mod tests;

use super::{Health, Member, Members, StoreError, StoreResult, StoreStats, Unreadable};
use crate::clock::unix_ms;
use async_trait::async_trait;
use engine::{Engine, failed};
use feeds::Feeds;
use fjall::PersistMode;
use flusher::Flusher;
use locks::Stripes;
use parking_lot::Mutex;
use queue::DueQueues;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Unix time in ms; tests put in their own.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// How to open an [`EmbeddedStore`].
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Several services may share a folder's database under different names: letters, digits, `_`, `-`.
    pub namespace: String,
    /// The most a power loss may cost. A killed process loses nothing.
    pub flush_interval: Duration,
    /// Memory for cached blocks.
    pub cache_bytes: u64,
    /// The store's clock.
    pub clock: Clock,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions {
            namespace: "taiji".into(),
            flush_interval: Duration::from_millis(200),
            cache_bytes: 256 << 20,
            clock: Arc::new(unix_ms),
        }
    }
}

/// [`super::FeatureStore`] in a folder.
pub struct EmbeddedStore {
    // Dropped first: its last sync needs the database open.
    _flusher: Flusher,
    inner: Arc<Inner>,
}

/// What the files of this folder share.
struct Inner {
    engine: Engine,
    clock: Clock,
    /// Held by whoever changes a user's records. Taken before item locks.
    user_locks: Stripes,
    /// Held by whoever changes an item's user count.
    item_locks: Stripes,
    /// Held while a change of the queue is committed, so that memory and disk agree. Never taken with a user lock.
    queues: Mutex<DueQueues>,
    feeds: Mutex<Feeds>,
    users: AtomicU64,
    unreadable: Unreadable,
    /// Held while erasures are noted, finished or expired. Never taken with another lock.
    erasures: Mutex<erase::Noted>,
    chores: chores::Held,
    /// Users held back by bulk history.
    held: Mutex<due::Held>,
}

impl EmbeddedStore {
    /// Opens or creates the store in `directory`. Leases of the process before are void: one process holds the folder
    /// at a time, so theirs is gone, and the users it had taken stand in the queue again.
    ///
    /// Reads the due queue and the users' keys once, so it takes longer the more users there are.
    pub fn open(directory: &Path, options: EmbeddedOptions) -> StoreResult<Arc<Self>> {
        let engine = Engine::open(directory, &options.namespace, options.cache_bytes)?;
        let unreadable = Unreadable::default();
        let queues = due::load(&engine, &unreadable, (options.clock)())?;
        let users = AtomicU64::new(counters::count_users(&engine)?);
        let erasures = Mutex::new(erase::Noted::load(&engine, &unreadable, (options.clock)())?);
        let flusher = Flusher::start(engine.database.clone(), options.flush_interval).map_err(|error| {
            let message = format!("its flush thread cannot be started: {error}; raise the limit of threads");
            StoreError::Open { place: directory.display().to_string(), message }
        })?;
        let inner = Arc::new(Inner {
            engine,
            clock: options.clock,
            user_locks: Stripes::default(),
            item_locks: Stripes::default(),
            queues: Mutex::new(queues),
            feeds: Mutex::new(Feeds::default()),
            users,
            unreadable,
            erasures,
            chores: Default::default(),
            held: Mutex::default(),
        });
        Ok(Arc::new(EmbeddedStore { _flusher: flusher, inner }))
    }

    /// Writes take microseconds, but wait for the journal while it is synced (milliseconds). On a runtime of many threads the
    /// worker's other tasks move away meanwhile; elsewhere there is no such way, and the wait is short enough.
    /// Reads never wait for the journal and run where they are.
    fn write<T>(&self, work: impl FnOnce(&Inner) -> T) -> T {
        match Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| work(&self.inner)),
            _ => work(&self.inner),
        }
    }

    /// For calls that walk the whole store or wait for the disk: seconds, so they get a thread of their own.
    async fn on_own_thread<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Inner) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let inner = self.inner.clone();
        let joined = tokio::task::spawn_blocking(move || work(&inner)).await;
        joined.unwrap_or_else(|error| Err(StoreError::Engine { operation, message: error.to_string() }))
    }
}

impl Inner {
    fn now_ms(&self) -> i64 {
        (self.clock)()
    }
}

/// One process holds a folder, so there is nobody to tell.
#[async_trait]
impl Members for EmbeddedStore {
    async fn announce(&self, _member: &Member) -> StoreResult<()> {
        Ok(())
    }

    async fn leave(&self, _member_id: &str) -> StoreResult<()> {
        Ok(())
    }
}

#[async_trait]
impl Health for EmbeddedStore {
    async fn now_ms(&self) -> StoreResult<i64> {
        Ok(self.inner.now_ms())
    }

    fn clock_ms(&self) -> i64 {
        self.inner.now_ms()
    }

    async fn stats(&self) -> StoreResult<StoreStats> {
        self.on_own_thread("stats", move |inner| {
            let disk_bytes = inner.engine.database.disk_space().map_err(|error| failed("stats", &error))?;
            Ok(StoreStats {
                users: inner.users.load(Ordering::Relaxed),
                disk_bytes,
                memory_bytes: 0,
                held: inner.held.lock().last,
            })
        })
        .await
    }

    async fn flush(&self) -> StoreResult<()> {
        self.on_own_thread("flush", |inner| inner.engine.sync(PersistMode::SyncAll)).await
    }

    fn unreadable(&self) -> &Unreadable {
        &self.inner.unreadable
    }

    fn flush_is_final(&self) -> bool {
        true
    }

    /// A commit has reached the operating system when the call returns: a restart takes nothing back.
    async fn incarnation(&self) -> StoreResult<u64> {
        Ok(0)
    }
}
