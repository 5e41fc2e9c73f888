//! The embedded store with failures on command: away, appends held back, another incarnation, a lost tail.

mod rest;

use crate::store::{
    AppendOutcome, Each, EmbeddedOptions, EmbeddedStore, Histories, StoreError, StoreResult, Unreadable, UserBatch,
};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::sync::watch;

/// A store that fails when told; everything it stores is in the embedded store.
#[derive(Default)]
pub struct Double {
    /// The store in use is the last one.
    stores: RwLock<Vec<(Arc<EmbeddedStore>, TempDir)>>,
    /// Appends in the order they were acknowledged.
    acknowledged: Mutex<Vec<(Vec<String>, Vec<UserBatch>)>>,
    incarnation: AtomicU64,
    pub is_away: AtomicBool,
    /// Appends do not come back while it is true, and so late otherwise.
    pub held: watch::Sender<bool>,
    pub append_takes_ms: AtomicU64,
    pub waiting: AtomicUsize,
    /// This user's stored records "cannot be read".
    pub corrupt_user: Mutex<Option<String>>,
    pub replica_lags: AtomicBool,
    pub unreadable: Unreadable,
    /// After a flush the last moments may be lost, as a Redis has it.
    pub may_lose_flushed: AtomicBool,
}

impl Double {
    pub fn new() -> Arc<Double> {
        let double = Arc::new(Double::default());
        double.lose_tail(0);
        double
    }

    /// Comes back as another incarnation without its last acknowledged appends; returns how many it lost.
    pub fn lose_tail(&self, appends: usize) -> usize {
        let mut acknowledged = self.acknowledged.lock();
        let (had, folder) = (acknowledged.len(), tempfile::tempdir().unwrap());
        acknowledged.truncate(had.saturating_sub(appends));
        let options = EmbeddedOptions { cache_bytes: 8 << 20, ..EmbeddedOptions::default() };
        let store = EmbeddedStore::open(folder.path(), options).unwrap();
        for (spaces, batches) in acknowledged.iter() {
            futures::executor::block_on(store.append(spaces, batches)).unwrap();
        }
        self.stores.write().push((store, folder));
        self.incarnation.fetch_add(1, Ordering::SeqCst);
        had - acknowledged.len()
    }

    fn store(&self) -> StoreResult<Arc<EmbeddedStore>> {
        let away = || StoreError::Engine { operation: "any", message: "the double is away".into() };
        let stores = self.stores.read();
        stores.last().filter(|_| !self.is_away.load(Ordering::SeqCst)).map(|(store, _)| store.clone()).ok_or_else(away)
    }

    async fn append(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>> {
        let corrupt = self.corrupt_user.lock().clone();
        let is_corrupt = |batch: &UserBatch| corrupt.as_ref() == Some(&batch.user);
        let kept: Vec<UserBatch> = batches.iter().filter(|batch| !is_corrupt(batch)).cloned().collect();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        tokio::time::sleep(std::time::Duration::from_millis(self.append_takes_ms.load(Ordering::SeqCst))).await;
        // Under the lock, so that the journal has the appends in the order in which they took effect.
        let mut acknowledged = self.acknowledged.lock();
        let mut outcomes = futures::executor::block_on(self.store()?.append(spaces, &kept))?.into_iter();
        acknowledged.push((spaces.to_vec(), kept));
        let says_so = |key: &str| StoreError::Corrupt { key: key.into(), message: "the double says so".into() };
        let mut readable = |batch: &UserBatch| if is_corrupt(batch) { None } else { outcomes.next() };
        Ok(batches.iter().map(|batch| readable(batch).ok_or_else(|| says_so(&batch.user))).collect())
    }
}
