//! Gauges that mirror what others hold. What this process holds is read when scraped; what the store holds is read in the
//! background and printed with its age, so that a scrape never waits for a store that does not answer.

use super::{AdminState, Served};
use crate::store::{Queue, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::events::StoreCallFailed;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between two looks at the store.
const INTERVAL: Duration = Duration::from_secs(1);

/// When the store's gauges were read last; before that, since when they are missing.
#[derive(Debug)]
pub(super) struct Age(Mutex<Instant>);

impl Age {
    pub fn new() -> Age {
        Age(Mutex::new(Instant::now()))
    }

    fn begin_anew(&self) {
        *self.0.lock() = Instant::now();
    }

    fn seconds(&self) -> f64 {
        self.0.lock().elapsed().as_secs_f64()
    }
}

/// Sets the gauges of what this process holds, and the age of the others. Asks nobody.
pub(super) fn refresh_own(state: &AdminState) {
    let metrics = &state.metrics;
    state.look_at_parts();
    metrics.ready.set(i64::from(state.readiness.is_ready()));
    metrics.store_gauges_age.set(state.age.seconds());
    let Some(served) = state.served.get() else { return };
    let view = served.live.view();
    let (epoch, bundle) = (view.epoch().to_string(), view.bundle());
    let labels = [epoch.as_str(), view.space(), &bundle.manifest.models.llm, bundle.engine()];
    // Only where another bundle is told of: a scrape beside this one would find none.
    if metrics.bundle_info.with_label_values(&labels).get() != 1 {
        metrics.bundle_info.reset();
    }
    metrics.bundle_info.with_label_values(&labels).set(1);
    if let Some(models) = view.models() {
        let waiting = models.llm.queue_depth();
        metrics.llm_queue.set(waiting.requests as i64);
        metrics.llm_queue_tokens.set(waiting.tokens as i64);
        let (main, fresh) = models.index.sizes();
        metrics.index_vectors.with_label_values(&["main"]).set(main as i64);
        metrics.index_vectors.with_label_values(&["fresh"]).set(fresh as i64);
    }
    let (base, overlay) = bundle.catalogue.sizes();
    metrics.catalogue_items.with_label_values(&["bundle"]).set(base as i64);
    metrics.catalogue_items.with_label_values(&["overlay"]).set(overlay as i64);
}

/// Reads the store's gauges again and again, once there is a store, until told to stop.
pub async fn follow_store(state: Arc<AdminState>, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            _ = ticks.tick() => {}
        }
        let Some(served) = state.served.get() else { continue };
        match look(served, &state.metrics).await {
            Ok(()) => state.age.begin_anew(),
            Err(error) => StoreCallFailed { operation: "gauges", error: &error }.emit(&state.metrics),
        }
    }
}

async fn look(served: &Served, metrics: &Metrics) -> Result<(), StoreError> {
    let fast = served.store.queue_depth(Queue::Fast).await?;
    let depth = served.store.queue_depth(Queue::Due).await?;
    let now_ms = served.store.now_ms().await?;
    let stats = served.store.stats().await?;
    metrics.queue_fast.set(fast.classes.iter().map(|(_, users, _)| *users as i64).sum());
    metrics.queue_leased.set(depth.leased as i64);
    for class in 0u8..=3 {
        let label = class.to_string();
        let found = depth.classes.iter().find(|(found, ..)| *found == class);
        let (users, oldest_ms) = found.map(|(_, users, oldest_ms)| (*users, *oldest_ms)).unwrap_or((0, now_ms));
        metrics.queue_users.with_label_values(&[&label]).set(users as i64);
        // A user whose time has not come yet is not late.
        let age = (now_ms - oldest_ms).max(0) as f64 / 1000.0;
        metrics.queue_age.with_label_values(&[&label]).set(age);
    }
    metrics.store_users.set(stats.users as i64);
    metrics.store_bytes.set(stats.disk_bytes as i64);
    metrics.queue_held.set(stats.held as i64);
    metrics.store_memory.set(stats.memory_bytes as i64);
    Ok(())
}
