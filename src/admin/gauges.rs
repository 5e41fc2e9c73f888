//! Gauges that mirror what others hold: read when scraped, so that they cannot go stale.

use super::AdminState;
use crate::due::fast_queue;
use crate::store::StoreError;

/// Sets the queue, store, index and catalogue gauges from their sources.
pub async fn refresh_gauges(state: &AdminState) -> Result<(), StoreError> {
    let metrics = &state.metrics;
    state.look_at_parts();
    metrics.ready.set(i64::from(state.readiness.is_ready()));
    let Some(served) = state.served.get() else { return Ok(()) };
    if let Some(inference) = &served.bundle.inference {
        let waiting = inference.llm.queue_depth();
        metrics.llm_queue.set(waiting.requests as i64);
        metrics.llm_queue_tokens.set(waiting.tokens as i64);
        let (main, fresh) = inference.index.sizes();
        metrics.index_vectors.with_label_values(&["main"]).set(main as i64);
        metrics.index_vectors.with_label_values(&["fresh"]).set(fresh as i64);
    }
    let (base, overlay) = served.bundle.catalogue.sizes();
    metrics.catalogue_items.with_label_values(&["bundle"]).set(base as i64);
    metrics.catalogue_items.with_label_values(&["overlay"]).set(overlay as i64);

    let space = &served.bundle.manifest.space;
    let fast = served.store.queue_depth(&fast_queue(space)).await?;
    metrics.queue_fast.set(fast.classes.iter().map(|(_, users, _)| *users as i64).sum());
    let depth = served.store.queue_depth(space).await?;
    let now_ms = served.store.now_ms().await?;
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
    let stats = served.store.stats().await?;
    metrics.store_users.set(stats.users as i64);
    metrics.store_bytes.set(stats.disk_bytes as i64);
    Ok(())
}
