//! Users of whom nothing came for long are erased, where `store.user_idle_ttl_ms` says so.
//!
//! In: a walk over all users. Out: erasures, of which [`super::Eraser`] does the rest. Whether a user is quiet is known by their `seq`:
//! the walk notes it, and finds it the same a whole time later. It is compared once more in the step that erases, so an event that
//! comes at that moment is either seen or newer than the erasure.

use crate::refresh::read_shown_neighbour;
use crate::store::chore::Chore;
use crate::store::{FeatureStore, StoreResult};
use crate::telemetry::Metrics;
use async_trait::async_trait;
use std::sync::Arc;

/// Walks all users of the store.
pub struct IdleUsers {
    /// How long nothing may come.
    pub ttl_ms: i64,
    /// Counts who is erased.
    pub metrics: Arc<Metrics>,
}

#[async_trait]
impl Chore for IdleUsers {
    fn name(&self) -> String {
        "idle".into()
    }

    async fn step(&mut self, store: &dyn FeatureStore, place: &str) -> StoreResult<String> {
        let (quiet, next) = store.quiet_users(self.ttl_ms, place).await?;
        for (user, seq) in quiet {
            if erase(store, &user, seq).await? {
                self.metrics.erasures.with_label_values(&["idle"]).inc();
            }
        }
        Ok(next)
    }
}

/// Erases a user whose `seq` is still this one; false, and nothing changed, where something came.
async fn erase(store: &dyn FeatureStore, user: &str, seq: u64) -> StoreResult<bool> {
    let mut shown = Vec::new();
    for space in store.spaces().await? {
        if let Some(neighbour) = read_shown_neighbour(store, &space, user).await? {
            shown.push((space, neighbour.user));
        }
    }
    let erasure = store.note_erasure(user).await?;
    let (state, is_erased) = store.erase_quiet_user(&erasure, seq).await?;
    if !is_erased {
        // A tombstone of the era they live in takes nothing out: every vector of theirs is above it.
        store.finish_erasure(&erasure, state.era).await?;
        return Ok(false);
    }
    for (space, neighbour) in shown {
        store.remove_referrer(&space, &neighbour, user).await?;
    }
    Ok(true)
}
