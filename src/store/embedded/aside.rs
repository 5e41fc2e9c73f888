//! What cannot be read of records about many: removed, and kept for a while in the keyspace `unreadable`, so that one bad
//! record costs no reader more than one look.
//!
//! In: records that could not be read. Callers: whoever walks a keyspace. Keys are `member | source`, so that an erasure finds
//! what is left of a user; values are the time and the first bytes.

use super::engine::{Engine, corrupt, failed};
use super::keys;
use crate::store::{RecordKind, StoreResult, Unreadable};
use fjall::{Keyspace, Slice};
use std::collections::BTreeMap;

/// The newest of each source that are kept.
const CAP: usize = 1000;
/// Of each record at most.
const BYTES: usize = 1024;

/// What is put aside of a source: by key the time, and the bytes where they are new.
type Kept = BTreeMap<Vec<u8>, (i64, Option<Vec<u8>>)>;

/// A record that is not what this version writes.
pub(super) struct Bad {
    /// In the keyspace it was found in.
    pub key: Slice,
    pub value: Slice,
    /// Whom or what it is about, where its key says so.
    pub member: Vec<u8>,
    /// What is wrong with it.
    pub message: String,
}

impl Engine {
    /// Counts these records of one source, removes them from their keyspace, and keeps the newest aside.
    pub(super) fn set_aside(
        &self,
        unreadable: &Unreadable,
        kind: RecordKind,
        from: &Keyspace,
        bad: Vec<Bad>,
        now_ms: i64,
    ) -> StoreResult<()> {
        if bad.is_empty() {
            return Ok(());
        }
        let source = kind.as_str();
        let mut batch = self.batch();
        // What stands there, and with its bytes what is new; a batch must not name a key twice.
        let mut all = self.kept_aside(source)?;
        for Bad { key, value, member, message } in bad {
            unreadable.note(kind, &corrupt(&key, message));
            let bytes = [now_ms.to_le_bytes().as_slice(), &value[..value.len().min(BYTES)]].concat();
            all.insert(keys::of_aside(&member, source), (now_ms, Some(bytes)));
            batch.remove(from, key);
        }
        let mut by_age: Vec<(i64, Vec<u8>)> = all.iter().map(|(key, (at_ms, _))| (*at_ms, key.clone())).collect();
        by_age.sort_unstable();
        for (_, oldest) in by_age.iter().take(by_age.len().saturating_sub(CAP)) {
            if let Some((_, None)) = all.remove(oldest) {
                batch.remove(&self.unreadable, oldest.as_slice());
            }
        }
        for (key, (_, bytes)) in all {
            if let Some(bytes) = bytes {
                batch.insert(&self.unreadable, key, bytes);
            }
        }
        self.commit("set aside", batch)
    }

    /// What is kept of a source: keys and times.
    fn kept_aside(&self, source: &str) -> StoreResult<Kept> {
        let mut kept = BTreeMap::new();
        for entry in self.unreadable.iter() {
            let (key, value) = entry.into_inner().map_err(|error| failed("set aside", &error))?;
            if key.ends_with(source.as_bytes()) {
                kept.insert(key.to_vec(), (time_of(&value), None));
            }
        }
        Ok(kept)
    }

    /// Forgets what is kept of an erased user.
    pub(super) fn clear_aside(&self, user: &str) -> StoreResult<()> {
        let mut gone = Vec::new();
        for entry in self.unreadable.prefix(keys::of_state(user)) {
            gone.push(entry.key().map_err(|error| failed("clear aside", &error))?);
        }
        self.forget_aside(gone)
    }

    /// Forgets what was put aside before that time.
    pub(super) fn expire_aside(&self, before_ms: i64) -> StoreResult<()> {
        let mut gone = Vec::new();
        for entry in self.unreadable.iter() {
            let (key, value) = entry.into_inner().map_err(|error| failed("expire aside", &error))?;
            if time_of(&value) < before_ms {
                gone.push(key);
            }
        }
        self.forget_aside(gone)
    }

    fn forget_aside(&self, gone: Vec<Slice>) -> StoreResult<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let mut batch = self.batch();
        for key in gone {
            batch.remove(&self.unreadable, key);
        }
        self.commit("forget aside", batch)
    }
}

fn time_of(value: &[u8]) -> i64 {
    value.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes))
}
