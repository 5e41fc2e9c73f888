//! The due queue and its durable copy: `space | user` → class and due time, one record a user waiting or leased.
//!
//! In: marks and claims. Out: leases. A claim writes nothing: the record stays until the release, so a process that dies
//! leaves every user it had taken in the queue, and [`load`] gives them out again. Leases live in memory only.

use super::Inner;
use super::engine::{Engine, corrupt, failed, user_of_state_key};
use super::keys;
use super::queue::{DueQueues, Mark};
use crate::store::codec;
use crate::store::{Claim, DueEntry, QueueDepth, SWEEP_CLASS, StoreResult};
use std::collections::HashMap;
use std::time::Duration;

/// Users a sweep marks in one step; the queue is free for others between steps.
const SWEEP_STEP: usize = 1000;

/// The queues as the process before left them; its leases are void.
pub fn load(engine: &Engine) -> StoreResult<DueQueues> {
    let mut queues = DueQueues::default();
    for entry in engine.due.iter() {
        let (key, value) = entry.into_inner().map_err(|error| failed("open", &error))?;
        let (class, due_ms) = codec::decode_due(&value).map_err(|message| corrupt(&key, message))?;
        let (space, user) = keys::parse_due(&key).ok_or_else(|| corrupt(&key, "not a due key".into()))?;
        queues.space(space).mark(user, Mark { class, due_ms });
    }
    Ok(queues)
}

impl Inner {
    /// See [`crate::store::FeatureStore::mark_due`].
    pub(super) fn mark_due(&self, space: &str, entries: &[DueEntry]) -> StoreResult<()> {
        let mut queues = self.queues.lock();
        let queue = queues.space(space);
        let mut durable: HashMap<&str, Mark> = HashMap::new();
        for entry in entries {
            let mark = Mark { class: entry.class, due_ms: entry.due_ms };
            let known = durable.get(entry.user.as_str()).copied().or_else(|| queue.durable(&entry.user));
            let merged = known.map_or(mark, |known| known.merge(mark));
            if known != Some(merged) {
                durable.insert(&entry.user, merged);
            }
        }
        if !durable.is_empty() {
            let mut batch = self.engine.batch();
            for (user, mark) in durable {
                batch.insert(&self.engine.due, keys::of_due(space, user), codec::encode_due(mark.class, mark.due_ms));
            }
            self.engine.commit("mark due", batch)?;
        }
        for entry in entries {
            queue.mark(&entry.user, Mark { class: entry.class, due_ms: entry.due_ms });
        }
        Ok(())
    }

    /// See [`crate::store::FeatureStore::claim`].
    pub(super) fn claim(&self, space: &str, limit: usize, lease: Duration) -> Vec<Claim> {
        // Random tokens: a claim of a process that died never matches one of ours.
        self.queues.lock().space(space).claim(self.now_ms(), limit, millis(lease), rand::random)
    }

    /// See [`crate::store::FeatureStore::renew`].
    pub(super) fn renew(&self, space: &str, claim: &Claim, lease: Duration) -> bool {
        self.queues.lock().space(space).renew(self.now_ms(), claim, millis(lease))
    }

    /// See [`crate::store::FeatureStore::release`].
    pub(super) fn release(&self, space: &str, claim: &Claim) -> StoreResult<bool> {
        let mut queues = self.queues.lock();
        let queue = queues.space(space);
        if !queue.holds(self.now_ms(), claim) {
            return Ok(false);
        }
        let key = keys::of_due(space, &claim.user);
        let mut batch = self.engine.batch();
        match queue.marked_again(&claim.user) {
            Some(mark) => batch.insert(&self.engine.due, key, codec::encode_due(mark.class, mark.due_ms)),
            None => batch.remove(&self.engine.due, key),
        }
        self.engine.commit("release", batch)?;
        queue.release(&claim.user);
        Ok(true)
    }

    /// See [`crate::store::FeatureStore::forget_due`].
    pub(super) fn forget_due(&self, space: &str, user: &str) -> StoreResult<()> {
        let mut queues = self.queues.lock();
        let queue = queues.space(space);
        let key = keys::of_due(space, user);
        let mut batch = self.engine.batch();
        match queue.leased_mark(self.now_ms(), user) {
            Some(mark) => batch.insert(&self.engine.due, key, codec::encode_due(mark.class, mark.due_ms)),
            None if queue.contains(user) => batch.remove(&self.engine.due, key),
            None => return Ok(()),
        }
        self.engine.commit("forget due", batch)?;
        queue.forget(user);
        Ok(())
    }

    /// See [`crate::store::FeatureStore::queue_depth`].
    pub(super) fn queue_depth(&self, space: &str) -> QueueDepth {
        self.queues.lock().space(space).depth(self.now_ms())
    }

    /// See [`crate::store::FeatureStore::sweep`]. A user refreshed while the sweep runs may be marked needlessly; that
    /// costs one refresh, which the unchanged prompt cuts short.
    pub(super) fn sweep(&self, space: &str) -> StoreResult<usize> {
        let mut marked = 0;
        let mut stale = Vec::with_capacity(SWEEP_STEP);
        for entry in self.engine.states.iter() {
            let (key, value) = entry.into_inner().map_err(|error| failed("sweep", &error))?;
            let record = codec::decode_user(&value).map_err(|message| corrupt(&key, message))?;
            let refreshed_seq = record.refreshed.get(space).map_or(0, |version| version.seq);
            // Also true for a user without features: `seq` counts from 1. One at 0, or at the seq of an erasure, has no
            // event to refresh from.
            if record.state.seq > refreshed_seq.max(record.state.erased_seq) {
                stale.push(user_of_state_key(&key)?.to_string());
            }
            if stale.len() == SWEEP_STEP {
                marked += self.mark_absent(space, &mut stale)?;
            }
        }
        Ok(marked + self.mark_absent(space, &mut stale)?)
    }

    /// Marks those of the users due who neither wait nor are leased, and empties the list.
    fn mark_absent(&self, space: &str, users: &mut Vec<String>) -> StoreResult<usize> {
        let due_ms = self.now_ms();
        let mut queues = self.queues.lock();
        users.retain(|user| !queues.space(space).contains(user));
        drop(queues);
        let as_entry = |user| DueEntry { user, class: SWEEP_CLASS, due_ms };
        let entries: Vec<DueEntry> = users.drain(..).map(as_entry).collect();
        self.mark_due(space, &entries)?;
        Ok(entries.len())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
