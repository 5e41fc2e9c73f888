//! The fast path's queue: users who have no features and are to get a first answer without the LLM (DESIGN 7).

use super::CLASS_URGENT;
use crate::config::RefreshSettings;
use crate::store::{DueEntry, FeatureStore, Queue, StoreResult};

/// Marks users for the fast path; does nothing where it is off.
#[derive(Debug, Clone)]
pub struct FastQueue {
    is_on: bool,
}

impl FastQueue {
    /// The queue, where the settings have it on.
    pub fn new(settings: &RefreshSettings) -> FastQueue {
        FastQueue { is_on: settings.fast_path }
    }

    /// Marks users for whom the LLM may take long; who has living features is left alone when their turn comes.
    pub async fn mark(&self, store: &dyn FeatureStore, users: &[String], now_ms: i64) -> StoreResult<()> {
        if !self.is_on || users.is_empty() {
            return Ok(());
        }
        let entry = |user: &String| DueEntry { user: user.clone(), class: CLASS_URGENT, due_ms: now_ms };
        store.mark_due(Queue::Fast, &users.iter().map(entry).collect::<Vec<_>>()).await
    }
}
