//! The sweep: finds users whose features are behind and who stand in no queue, and counts the users on its way.

use crate::live::Live;
use crate::store::chore::Chore;
use crate::store::{FeatureStore, StoreResult};
use crate::telemetry::Metrics;
use async_trait::async_trait;
use std::sync::Arc;

/// Walks all users of the store.
pub struct Sweep {
    /// Whose live spaces are looked at, of each step those of then: who is behind in one of them is marked.
    pub live: Arc<Live>,
    /// Counts who is found.
    pub metrics: Arc<Metrics>,
}

#[async_trait]
impl Chore for Sweep {
    fn name(&self) -> String {
        // Processes of another bundle look at other spaces.
        format!("sweep:{}", self.live.view().spaces().all().join(","))
    }

    async fn step(&mut self, store: &dyn FeatureStore, place: &str) -> StoreResult<String> {
        let step = store.sweep_step(self.live.view().spaces().all(), place).await?;
        if step.marked > 0 {
            self.metrics.queue_swept.inc_by(step.marked as u64);
            tracing::info!(found = step.marked, "sweep marked forgotten users due");
        }
        Ok(step.next)
    }
}
