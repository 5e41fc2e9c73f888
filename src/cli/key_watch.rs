//! The keys that hold something of many users: queue, feeds, erasures, spaces. While one of them holds another program's data,
//! the latch `keys` is held with its name; reads go on.
//!
//! In: the store. Out: the latch. Caller: `wiring`, before what a start reads, and as a task.

use super::wiring::wait;
use crate::live::{Live, View};
use crate::store::{FeatureStore, StoreError};
use crate::telemetry::Readiness;
use std::sync::Arc;
use tokio::sync::watch;

const LATCH: &str = "keys";
const INTERVAL_MS: u64 = 5_000;

/// Holds or releases the latch by what is there now; a store that does not answer leaves it as it is.
pub(super) async fn look(store: &dyn FeatureStore, view: &View, readiness: &Readiness) {
    let Ok(misused) = store.misused_keys(view.spaces().all()).await else { return };
    if misused.is_empty() {
        return readiness.release(LATCH);
    }
    let reason = format!("{}: another program uses store.namespace; rename or delete its keys", misused.join(", "));
    if readiness.latches().get(LATCH).cloned().flatten().as_ref() != Some(&reason) {
        tracing::error!(reason, "the store holds what is not ours");
        readiness.hold(LATCH, reason);
    }
}

/// Looks at intervals until `stop` turns true.
pub(super) async fn watch(
    store: Arc<dyn FeatureStore>,
    live: Arc<Live>,
    readiness: Readiness,
    mut stop: watch::Receiver<bool>,
) -> Result<(), StoreError> {
    loop {
        look(store.as_ref(), &live.view(), &readiness).await;
        if !wait(INTERVAL_MS, &mut stop).await {
            return Ok(());
        }
    }
}
