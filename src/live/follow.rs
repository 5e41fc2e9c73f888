//! Keeps what is loaded as fresh as the store's feeds: vectors into the user index, items into the catalogue.
//!
//! In: a view, the store. Out: how many entries came. Caller: `cli::wiring`, at the start and then at intervals.

use super::View;
use crate::bundle::Inference;
use crate::retrieve::VectorTail;
use crate::store::{FeatureStore, StoreError};
use std::sync::Arc;

/// Follows the feeds; a clone goes on from where the original stood.
#[derive(Clone)]
pub struct Follower {
    store: Arc<dyn FeatureStore>,
    /// Of the index it belongs to.
    tail: Option<VectorTail>,
}

impl Follower {
    /// Nothing was read yet.
    pub fn new(store: Arc<dyn FeatureStore>) -> Follower {
        Follower { store, tail: None }
    }

    /// Applies every fresh vector since the last call to the view's index; all of the feed, where that was another index. Returns
    /// how many; 0 in a process without models.
    pub async fn vectors(&mut self, view: &View) -> Result<usize, StoreError> {
        let Some(models) = view.models() else { return Ok(0) };
        let same = self.tail.take().filter(|tail| tail.follows(&models.index));
        let tail = same.unwrap_or_else(|| self.begin(view, models));
        self.tail.insert(tail).catch_up().await
    }

    fn begin(&self, view: &View, models: &Inference) -> VectorTail {
        VectorTail::new(self.store.clone(), models.index.clone(), view.space().to_string())
    }

    /// Applies every change of an item since the last call to the view's catalogue; returns how many.
    pub async fn items(&self, view: &View) -> Result<usize, StoreError> {
        view.bundle().catalogue.catch_up(self.store.as_ref()).await
    }
}
