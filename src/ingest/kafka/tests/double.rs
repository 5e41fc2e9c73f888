//! The embedded store with failures on command: away, appends held back, another incarnation, a lost tail.

use crate::event::Item;
use crate::feature::Group;
use crate::store::{
    AppendOutcome, Claim, CrossBlank, DueEntry, EmbeddedOptions, EmbeddedStore, Erasure, FeaturePut, FeatureStore,
    FeedCursor, FeedPage, FreshVector, PutOutcome, QueueDepth, StoreError, StoreResult, StoreStats, StoredFeatures,
    UserBatch, UserHistory, UserMarks, UserState,
};
use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;

/// A store that fails when told; everything it stores is in the embedded store.
pub struct Double {
    inner: RwLock<Arc<EmbeddedStore>>,
    folders: Mutex<Vec<TempDir>>,
    /// Appends in the order they were acknowledged.
    acknowledged: Mutex<Vec<(String, Vec<UserBatch>)>>,
    incarnation: AtomicU64,
    away: AtomicBool,
    /// Appends wait while it is true.
    held: watch::Sender<bool>,
    pub waiting: AtomicUsize,
    /// This user's stored records "cannot be read".
    pub corrupt_user: Mutex<Option<String>>,
    /// After a flush nothing can be lost, as the embedded store has it; false as a Redis has it.
    pub flush_is_final: AtomicBool,
}

fn open() -> (Arc<EmbeddedStore>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { cache_bytes: 8 << 20, ..EmbeddedOptions::default() };
    (EmbeddedStore::open(folder.path(), options).unwrap(), folder)
}

impl Double {
    pub fn new() -> Arc<Double> {
        let (store, folder) = open();
        Arc::new(Double {
            inner: RwLock::new(store),
            folders: Mutex::new(vec![folder]),
            acknowledged: Mutex::default(),
            incarnation: AtomicU64::new(7),
            away: AtomicBool::new(false),
            held: watch::channel(false).0,
            waiting: AtomicUsize::new(0),
            corrupt_user: Mutex::default(),
            flush_is_final: AtomicBool::new(true),
        })
    }

    /// Every call fails, or none does.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// Appends do not come back until released.
    pub fn hold_appends(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Comes back as another incarnation without its last acknowledged appends; returns how many it lost.
    pub fn lose_tail(&self, appends: usize) -> usize {
        let mut acknowledged = self.acknowledged.lock();
        let kept = acknowledged.len().saturating_sub(appends);
        let lost = acknowledged.len() - kept;
        acknowledged.truncate(kept);
        let (store, folder) = open();
        for (space, batches) in acknowledged.iter() {
            futures::executor::block_on(store.append(space, batches)).unwrap();
        }
        *self.inner.write() = store;
        self.folders.lock().push(folder);
        self.incarnation.fetch_add(1, Ordering::SeqCst);
        lost
    }

    /// Appends acknowledged so far.
    pub fn appends(&self) -> usize {
        self.acknowledged.lock().len()
    }

    fn store(&self) -> StoreResult<Arc<EmbeddedStore>> {
        if self.away.load(Ordering::SeqCst) {
            return Err(StoreError::Engine { operation: "any", message: "the double is away".into() });
        }
        Ok(self.inner.read().clone())
    }
}

#[async_trait]
impl FeatureStore for Double {
    async fn append(&self, space: &str, batches: &[UserBatch]) -> StoreResult<Vec<AppendOutcome>> {
        let corrupt = self.corrupt_user.lock().clone();
        if let Some(user) = corrupt.filter(|user| batches.iter().any(|batch| batch.user == *user)) {
            return Err(StoreError::Corrupt { key: user, message: "the double says so".into() });
        }
        let mut held = self.held.subscribe();
        if *held.borrow() {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            held.wait_for(|held| !held).await.unwrap();
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        let store = self.store()?;
        // Under the lock, so that the journal has the appends in the order in which they took effect.
        let mut acknowledged = self.acknowledged.lock();
        let outcomes = futures::executor::block_on(store.append(space, batches))?;
        acknowledged.push((space.to_string(), batches.to_vec()));
        Ok(outcomes)
    }

    async fn incarnation(&self) -> StoreResult<u64> {
        self.store()?;
        Ok(self.incarnation.load(Ordering::SeqCst))
    }

    fn flush_is_final(&self) -> bool {
        self.flush_is_final.load(Ordering::SeqCst)
    }

    async fn now_ms(&self) -> StoreResult<i64> {
        self.store()?.now_ms().await
    }

    async fn histories(&self, users: &[String]) -> StoreResult<Vec<Option<UserHistory>>> {
        self.store()?.histories(users).await
    }

    async fn feature_groups(
        &self,
        space: &str,
        users: &[String],
        groups: &[Group],
    ) -> StoreResult<Vec<Option<StoredFeatures>>> {
        self.store()?.feature_groups(space, users, groups).await
    }

    async fn states(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<UserMarks>>> {
        self.store()?.states(space, users).await
    }

    async fn features(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<StoredFeatures>>> {
        self.store()?.features(space, users).await
    }

    async fn put(&self, space: &str, put: FeaturePut) -> StoreResult<PutOutcome> {
        self.store()?.put(space, put).await
    }

    async fn mark_due(&self, space: &str, entries: &[DueEntry]) -> StoreResult<()> {
        self.store()?.mark_due(space, entries).await
    }

    async fn claim(&self, space: &str, limit: usize, lease: Duration) -> StoreResult<Vec<Claim>> {
        self.store()?.claim(space, limit, lease).await
    }

    async fn renew(&self, space: &str, claim: &Claim, lease: Duration) -> StoreResult<bool> {
        self.store()?.renew(space, claim, lease).await
    }

    async fn release(&self, space: &str, claim: &Claim) -> StoreResult<bool> {
        self.store()?.release(space, claim).await
    }

    async fn queue_depth(&self, space: &str) -> StoreResult<QueueDepth> {
        self.store()?.queue_depth(space).await
    }

    async fn sweep(&self, space: &str) -> StoreResult<usize> {
        self.store()?.sweep(space).await
    }

    async fn add_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<usize> {
        self.store()?.add_referrer(space, neighbour, user).await
    }

    async fn remove_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<()> {
        self.store()?.remove_referrer(space, neighbour, user).await
    }

    async fn referrer_counts(&self, space: &str, neighbours: &[String]) -> StoreResult<Vec<usize>> {
        self.store()?.referrer_counts(space, neighbours).await
    }

    async fn referrers(&self, space: &str, neighbour: &str) -> StoreResult<Vec<String>> {
        self.store()?.referrers(space, neighbour).await
    }

    async fn note_space(&self, space: &str) -> StoreResult<()> {
        self.store()?.note_space(space).await
    }

    async fn spaces(&self) -> StoreResult<Vec<String>> {
        self.store()?.spaces().await
    }

    async fn note_erasure(&self, user: &str) -> StoreResult<Erasure> {
        self.store()?.note_erasure(user).await
    }

    async fn erasures(&self) -> StoreResult<Vec<Erasure>> {
        self.store()?.erasures().await
    }

    async fn erase_user(&self, erasure: &Erasure) -> StoreResult<UserState> {
        self.store()?.erase_user(erasure).await
    }

    async fn blank_cross(&self, space: &str, user: &str, neighbour: &str, era: u64) -> StoreResult<CrossBlank> {
        self.store()?.blank_cross(space, user, neighbour, era).await
    }

    async fn forget_due(&self, space: &str, user: &str) -> StoreResult<()> {
        self.store()?.forget_due(space, user).await
    }

    async fn finish_erasure(&self, erasure: &Erasure, era: u64) -> StoreResult<()> {
        self.store()?.finish_erasure(erasure, era).await
    }

    async fn expire_erasures(&self, before_ms: i64) -> StoreResult<usize> {
        self.store()?.expire_erasures(before_ms).await
    }

    async fn append_vector(&self, space: &str, vector: &FreshVector) -> StoreResult<()> {
        self.store()?.append_vector(space, vector).await
    }

    async fn vectors_after(
        &self,
        space: &str,
        cursor: &FeedCursor,
        limit: usize,
    ) -> StoreResult<FeedPage<FreshVector>> {
        self.store()?.vectors_after(space, cursor, limit).await
    }

    async fn put_items(&self, items: &[Item]) -> StoreResult<()> {
        self.store()?.put_items(items).await
    }

    async fn items_after(&self, cursor: &FeedCursor, limit: usize) -> StoreResult<FeedPage<Item>> {
        self.store()?.items_after(cursor, limit).await
    }

    async fn item_user_counts(&self, items: &[String]) -> StoreResult<Vec<u32>> {
        self.store()?.item_user_counts(items).await
    }

    async fn stats(&self) -> StoreResult<StoreStats> {
        self.store()?.stats().await
    }

    async fn flush(&self) -> StoreResult<()> {
        self.store()?.flush().await
    }
}
