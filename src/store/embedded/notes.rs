//! What is noted beside a user's counters: a record of its own, which older programs neither read nor write.
//!
//! In: appends, erasures, the walks over all users. Out: [`Notes`]. Absent or unreadable notes are empty ones: each note only saves
//! work, or keeps a redelivery from counting, and comes again.

use super::engine::{Engine, corrupt};
use super::keys::{self, Kind};
use crate::store::{StoreResult, rehearsal};
use fjall::{OwnedWriteBatch, Snapshot};
use serde::{Deserialize, Serialize};

/// A user's notes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Notes {
    /// The `seq` before bulk history began to hold the user back, and the one up to which nothing else came since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<(u64, u64)>,
    /// Time and id of erased events that lay ahead of the clock.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remembered: Vec<(i64, String)>,
    /// A `seq`, and since when it has stood still, by the time of looks (`Erasures::quiet_time`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiet: Option<(u64, i64)>,
}

impl Notes {
    /// A user's notes.
    pub fn read(engine: &Engine, snapshot: &Snapshot, user: &str) -> StoreResult<Notes> {
        let stored = engine.get(snapshot, &engine.users, &keys::of_user(user, Kind::Notes))?;
        Ok(stored.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    /// Writes them; empty ones leave nothing.
    pub fn write(&self, engine: &Engine, batch: &mut OwnedWriteBatch, user: &str) -> StoreResult<()> {
        let key = keys::of_user(user, Kind::Notes);
        if *self == Notes::default() {
            batch.remove(&engine.users, key);
            return Ok(());
        }
        let bytes = rehearsal::json(self).map_err(|error| corrupt(&key, error.to_string()))?;
        batch.insert(&engine.users, key, bytes);
        Ok(())
    }

    /// Whether the event of that id was erased before its time, and the time has not come yet.
    pub fn remembers(&self, event_id: &str, now_ms: i64) -> bool {
        self.remembered.iter().any(|(ts_ms, id)| *ts_ms > now_ms && id == event_id)
    }
}
