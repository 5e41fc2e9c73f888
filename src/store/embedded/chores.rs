//! When chores were done. One process holds the folder, so this lives in memory: after a restart they begin anew.

use super::EmbeddedStore;
use crate::store::{ChoreLease, Chores, StoreResult};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// Every chore begun since the store was opened.
pub type Held = Mutex<HashMap<String, Chore>>;

#[derive(Debug, Default)]
pub struct Chore {
    token: u64,
    ends_ms: i64,
    place: String,
    /// `None`: not yet.
    done_ms: Option<i64>,
}

#[async_trait]
impl Chores for EmbeddedStore {
    async fn begin_chore(&self, chore: &str, every: Duration, lease: Duration) -> StoreResult<Option<ChoreLease>> {
        let (now_ms, mut held) = (self.inner.now_ms(), self.inner.chores.lock());
        let known = held.entry(chore.to_string()).or_default();
        let was_done = known.done_ms.is_some_and(|done_ms| done_ms.saturating_add(millis(every)) > now_ms);
        if known.ends_ms > now_ms || known.place.is_empty() && was_done {
            return Ok(None);
        }
        (known.token, known.ends_ms) = (rand::random(), now_ms.saturating_add(millis(lease)));
        Ok(Some(ChoreLease { chore: chore.to_string(), token: known.token, place: known.place.clone() }))
    }

    async fn go_on_with_chore(&self, held: &ChoreLease, place: &str, lease: Duration) -> StoreResult<bool> {
        let (now_ms, mut all) = (self.inner.now_ms(), self.inner.chores.lock());
        let Some(known) = all.get_mut(&held.chore).filter(|known| known.token == held.token) else { return Ok(false) };
        known.place = place.to_string();
        if place.is_empty() {
            (known.token, known.ends_ms, known.done_ms) = (0, 0, Some(now_ms));
        } else {
            known.ends_ms = now_ms.saturating_add(millis(lease));
        }
        Ok(true)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
