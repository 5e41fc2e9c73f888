//! The store in a Redis or a Redis Cluster, shared by any number of processes. See [`super::FeatureStore`] for what it promises.
//!
//! In: an [`Address`] and [`RedisOptions`]. Out: a [`RedisStore`]. Callers: `cli::wiring` opens it; everyone else sees the
//! trait. What must be atomic is one function call in one slot (`migrations/0001_functions.lua`); every call may be repeated.
//!
//! | file | job |
//! |---|---|
//! | `address`, `link`, `topology`, `errors` | the URL; connections, retries; slots and their owners; errors in our words |
//! | `breaker` | calls to a node that is away fail at once |
//! | `keys`, `values`, `entries` | names of keys; answers; bytes of a list's entries |
//! | `schema` | versions, functions, migration |
//! | `history`, `features`, `queue`, `feeds`, `erase` | the trait's calls, by subject |

mod address;
mod breaker;
pub(crate) mod entries;
mod erase;
mod errors;
pub(crate) mod features;
mod feeds;
mod history;
mod item_users;
mod keys;
mod link;
mod queue;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod topology;
mod values;

pub use address::Address;
pub use link::Patience;
pub use schema::{Migration, Step};

use super::{
    AppendOutcome, Claim, CrossBlank, DueEntry, Erasure, FeaturePut, FeatureStore, FeedCursor, FeedPage, FreshVector,
    Group, PutOutcome, QueueDepth, StoreResult, StoreStats, StoredFeatures, UserBatch, UserHistory, UserMarks,
    UserState,
};
use crate::event::Item;
use async_trait::async_trait;
use keys::Keys;
use link::{Call, Link};
use redis::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// A function of this schema version.
macro_rules! function {
    ($name:literal) => {
        concat!("taiji_1_", $name)
    };
}
use function;

/// How to open a [`RedisStore`].
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// First part of every key: letters, digits, `_`, `-`.
    pub namespace: String,
    /// Shards of the due queue, if the namespace is empty; later it is what was written then.
    pub shards: u32,
    /// Time-outs and tries.
    pub patience: Patience,
}

/// [`FeatureStore`] in Redis.
pub struct RedisStore {
    link: Link,
    keys: Keys,
    shards: u32,
    full_items: item_users::FullItems,
    /// Tests stop the clock; otherwise it is Redis' own.
    stopped_clock: Option<Arc<AtomicI64>>,
}

impl RedisStore {
    /// Connects; initialises an empty namespace, refuses one of another schema.
    pub async fn open(address: Address, options: RedisOptions) -> StoreResult<Arc<Self>> {
        Self::open_with_clock(address, options, None).await
    }

    async fn open_with_clock(
        address: Address,
        options: RedisOptions,
        stopped_clock: Option<Arc<AtomicI64>>,
    ) -> StoreResult<Arc<Self>> {
        let link = Link::open(address, options.patience).await?;
        let keys = Keys::new(&options.namespace);
        let shards = schema::ready(&link, &keys, options.shards).await?;
        Ok(Arc::new(RedisStore { link, keys, shards, full_items: Default::default(), stopped_clock }))
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
impl FeatureStore for RedisStore {
    async fn now_ms(&self) -> StoreResult<i64> {
        let time = self.link.one("time", Call::beside("TIME", &self.keys.epoch())).await?;
        self.time_of(time)
    }

    async fn append(&self, space: &str, batches: &[UserBatch]) -> StoreResult<Vec<AppendOutcome>> {
        self.append_all(space, batches).await
    }

    async fn histories(&self, users: &[String]) -> StoreResult<Vec<Option<UserHistory>>> {
        self.read_histories(users).await
    }

    async fn feature_groups(
        &self,
        space: &str,
        users: &[String],
        groups: &[Group],
    ) -> StoreResult<Vec<Option<StoredFeatures>>> {
        self.read_groups(space, users, groups).await
    }

    async fn states(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<UserMarks>>> {
        self.read_states(space, users).await
    }

    async fn features(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<StoredFeatures>>> {
        self.read_features(space, users).await
    }

    async fn put(&self, space: &str, put: FeaturePut) -> StoreResult<PutOutcome> {
        self.put_features(space, put).await
    }

    async fn mark_due(&self, space: &str, entries: &[DueEntry]) -> StoreResult<()> {
        self.mark(space, entries).await
    }

    async fn claim(&self, space: &str, limit: usize, lease: Duration) -> StoreResult<Vec<Claim>> {
        self.take(space, limit, lease).await
    }

    async fn renew(&self, space: &str, claim: &Claim, lease: Duration) -> StoreResult<bool> {
        self.prolong(space, claim, lease).await
    }

    async fn release(&self, space: &str, claim: &Claim) -> StoreResult<bool> {
        self.end(space, claim).await
    }

    async fn queue_depth(&self, space: &str) -> StoreResult<QueueDepth> {
        self.depth(space).await
    }

    async fn sweep(&self, space: &str) -> StoreResult<usize> {
        self.walk(space).await
    }

    async fn add_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<usize> {
        self.note_referrer(space, neighbour, user).await
    }

    async fn remove_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<()> {
        self.drop_referrer(space, neighbour, user).await
    }

    async fn referrer_counts(&self, space: &str, neighbours: &[String]) -> StoreResult<Vec<usize>> {
        let keys = neighbours.iter().map(|user| self.keys.referrers(user, space)).collect();
        self.sizes("referrer counts", keys).await
    }

    async fn referrers(&self, space: &str, neighbour: &str) -> StoreResult<Vec<String>> {
        self.who_shows(space, neighbour).await
    }

    async fn note_space(&self, space: &str) -> StoreResult<()> {
        self.add_space(space).await
    }

    async fn spaces(&self) -> StoreResult<Vec<String>> {
        self.all_spaces().await
    }

    async fn note_erasure(&self, user: &str) -> StoreResult<Erasure> {
        self.add_erasure(user).await
    }

    async fn erasures(&self) -> StoreResult<Vec<Erasure>> {
        self.all_erasures().await
    }

    async fn erase_user(&self, erasure: &Erasure) -> StoreResult<UserState> {
        self.erase(erasure).await
    }

    async fn blank_cross(&self, space: &str, user: &str, neighbour: &str, era: u64) -> StoreResult<CrossBlank> {
        self.blank(space, user, neighbour, era).await
    }

    async fn forget_due(&self, space: &str, user: &str) -> StoreResult<()> {
        self.forget(space, user).await
    }

    async fn finish_erasure(&self, erasure: &Erasure, era: u64) -> StoreResult<()> {
        self.end_erasure(erasure, era).await
    }

    async fn expire_erasures(&self, before_ms: i64) -> StoreResult<usize> {
        self.drop_erasures(before_ms).await
    }

    async fn append_vector(&self, space: &str, vector: &FreshVector) -> StoreResult<()> {
        self.feed_vector(space, vector).await
    }

    async fn vectors_after(
        &self,
        space: &str,
        cursor: &FeedCursor,
        limit: usize,
    ) -> StoreResult<FeedPage<FreshVector>> {
        self.vectors_page(space, cursor, limit).await
    }

    async fn put_items(&self, items: &[Item]) -> StoreResult<()> {
        self.feed_items(items).await
    }

    async fn items_after(&self, cursor: &FeedCursor, limit: usize) -> StoreResult<FeedPage<Item>> {
        self.items_page(cursor, limit).await
    }

    async fn item_user_counts(&self, items: &[String]) -> StoreResult<Vec<u32>> {
        self.count_item_users(items).await
    }

    async fn stats(&self) -> StoreResult<StoreStats> {
        self.totals().await
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

    fn trouble(&self) -> Option<String> {
        self.link.trouble()
    }
}
