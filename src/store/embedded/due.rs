//! The queues and their durable copy: `queue | user` → class and due time, one record a user waiting or leased.
//!
//! In: marks and claims. Out: leases. A claim writes nothing: the record stays until the release, so a process that dies
//! leaves every user it had taken in the queue, and [`load`] gives them out again. Leases live in memory only.
//!
//! Programs before had queues of single spaces: [`load`] moves who waits there. Such a program opens the folder again; it finds its own
//! queue empty, and its sweep marks who is behind.

use super::aside::Bad;
use super::engine::{Engine, corrupt, failed, user_of_state_key};
use super::keys;
use super::notes::Notes;
use super::queue::{DueQueues, Mark};
use super::{EmbeddedStore, Inner};
use crate::store::codec;
use crate::store::{
    Claim, DueEntry, DueQueue, Queue, QueueDepth, RecordKind, SWEEP_CLASS, StoreResult, SweepStep, Unreadable,
};
use async_trait::async_trait;
use std::collections::HashMap;
use std::ops::Bound;
use std::time::Duration;

/// Users moved out of the queues of single spaces in one write.
const MOVE_STEP: usize = 10_000;
/// Users looked at in one step of a sweep.
const SWEEP_STEP: usize = 1000;

/// The queues as the process before left them; its leases are void. A place that cannot be read is put aside: the sweep finds
/// who was meant.
pub fn load(engine: &Engine, unreadable: &Unreadable, now_ms: i64) -> StoreResult<DueQueues> {
    let (mut queues, mut bad, mut former) = (DueQueues::default(), Vec::new(), Vec::new());
    for entry in engine.due.iter() {
        let (key, value) = entry.into_inner().map_err(|error| failed("open", &error))?;
        let (member, message) = match (keys::parse_due(&key), codec::decode_due(&value)) {
            (Some((queue, user, is_of_space)), Ok((class, due_ms))) => {
                queues.of(queue).mark(user, Mark { class, due_ms });
                if is_of_space {
                    former.push((queue, user.to_string(), key));
                }
                continue;
            }
            (Some((_, user, _)), Err(message)) => (user.as_bytes().to_vec(), message),
            (None, _) => (key.to_vec(), "not a due key".into()),
        };
        bad.push(Bad { key, value, member, message });
    }
    engine.set_aside(unreadable, RecordKind::Due, &engine.due, bad, now_ms)?;
    // A crash between two writes leaves the rest for the next start.
    for some in former.chunks(MOVE_STEP) {
        let mut batch = engine.batch();
        for (queue, user, key) in some {
            if let Some(mark) = queues.of(*queue).durable(user) {
                let value = codec::encode_due(mark.class, mark.due_ms);
                batch.insert(&engine.due, keys::of_due(*queue, user), value);
            }
            batch.remove(&engine.due, key.clone());
        }
        engine.commit("open", batch)?;
    }
    Ok(queues)
}

#[async_trait]
impl DueQueue for EmbeddedStore {
    async fn mark_due(&self, name: Queue, entries: &[DueEntry]) -> StoreResult<()> {
        self.write(|inner| {
            let mut queues = inner.queues.lock();
            let queue = queues.of(name);
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
                let mut batch = inner.engine.batch();
                for (user, mark) in durable {
                    batch.insert(
                        &inner.engine.due,
                        keys::of_due(name, user),
                        codec::encode_due(mark.class, mark.due_ms),
                    );
                }
                inner.engine.commit("mark due", batch)?;
            }
            for entry in entries {
                queue.mark(&entry.user, Mark { class: entry.class, due_ms: entry.due_ms });
            }
            Ok(())
        })
    }

    async fn mark_awaited(&self, users: &[String], due_ms: i64, until_ms: i64) -> StoreResult<()> {
        self.write(|inner| {
            let absent = Mark { class: SWEEP_CLASS, due_ms };
            let mut queues = inner.queues.lock();
            let queue = queues.of(Queue::Due);
            let mut batch = inner.engine.batch();
            for user in users.iter().filter(|user| !queue.contains(user)) {
                let key = keys::of_due(Queue::Due, user);
                batch.insert(&inner.engine.due, key, codec::encode_due(absent.class, absent.due_ms));
            }
            inner.engine.commit("mark due", batch)?;
            for user in users {
                queue.mark_awaited(user, due_ms, until_ms, absent);
            }
            Ok(())
        })
    }

    async fn claim(&self, queue: Queue, limit: usize, lease: Duration) -> StoreResult<Vec<Claim>> {
        self.write(|inner| {
            // Random tokens: a claim of a process that died never matches one of ours.
            Ok(inner.queues.lock().of(queue).claim(inner.now_ms(), limit, millis(lease), rand::random))
        })
    }

    async fn renew(&self, queue: Queue, claim: &Claim, lease: Duration) -> StoreResult<bool> {
        self.write(|inner| Ok(inner.queues.lock().of(queue).renew(inner.now_ms(), claim, millis(lease))))
    }

    async fn release(&self, name: Queue, claim: &Claim) -> StoreResult<bool> {
        self.write(|inner| {
            let mut queues = inner.queues.lock();
            let queue = queues.of(name);
            if !queue.holds(inner.now_ms(), claim) {
                return Ok(false);
            }
            let key = keys::of_due(name, &claim.user);
            let mut batch = inner.engine.batch();
            match queue.marked_again(&claim.user) {
                Some(mark) => batch.insert(&inner.engine.due, key, codec::encode_due(mark.class, mark.due_ms)),
                None => batch.remove(&inner.engine.due, key),
            }
            inner.engine.commit("release", batch)?;
            queue.release(&claim.user);
            Ok(true)
        })
    }

    async fn queue_depth(&self, queue: Queue) -> StoreResult<QueueDepth> {
        self.write(|inner| Ok(inner.queues.lock().of(queue).depth(inner.now_ms())))
    }

    /// A user refreshed while the sweep runs may be marked needlessly; that costs one refresh, which the unchanged prompt
    /// cuts short. The place is the last user looked at.
    async fn sweep_step(&self, spaces: &[String], place: &str) -> StoreResult<SweepStep> {
        let BehindAfter { behind: stale, held, next } = self.write(|inner| inner.behind_after(spaces, place))?;
        self.inner.count_held(place.is_empty(), held.len(), next.is_empty());
        let due_ms = self.inner.now_ms();
        let as_entry = |user| DueEntry { user, class: SWEEP_CLASS, due_ms };
        let entries: Vec<DueEntry> = stale.into_iter().map(as_entry).collect();
        self.mark_due(Queue::Due, &entries).await?;
        Ok(SweepStep { marked: entries.len(), next })
    }

    async fn forget_due(&self, user: &str) -> StoreResult<()> {
        self.write(|inner| {
            let mut queues = inner.queues.lock();
            let mut batch = inner.engine.batch();
            for name in Queue::ALL {
                let (queue, key) = (queues.of(name), keys::of_due(name, user));
                match queue.leased_mark(inner.now_ms(), user) {
                    Some(mark) => batch.insert(&inner.engine.due, key, codec::encode_due(mark.class, mark.due_ms)),
                    None if queue.contains(user) => batch.remove(&inner.engine.due, key),
                    None => {}
                }
            }
            inner.engine.commit("forget due", batch)?;
            Queue::ALL.into_iter().for_each(|name| queues.of(name).forget(user));
            Ok(())
        })
    }
}

impl Inner {
    /// Of the next users after one, those whose features are behind in one of the spaces and who neither wait nor are leased.
    pub(super) fn behind_after(&self, spaces: &[String], user: &str) -> StoreResult<BehindAfter> {
        let (mut found, mut seen) = (BehindAfter::default(), 0);
        let snapshot = self.engine.database.snapshot();
        let after = (Bound::Excluded(keys::of_state(user)), Bound::Unbounded);
        for entry in self.engine.states.range::<Vec<u8>, _>(after).take(SWEEP_STEP) {
            let (key, value) = entry.into_inner().map_err(|error| failed("sweep", &error))?;
            seen += 1;
            let Some(name) = self.unreadable.skip(RecordKind::State, user_of_state_key(&key))? else { continue };
            found.next = name.to_string();
            let record = codec::decode_user(&value).map_err(|message| corrupt(&key, message));
            let Some(record) = self.unreadable.skip(RecordKind::State, record)? else { continue };
            let refreshed_seq = record.least_refreshed(spaces).unwrap_or(0);
            // Also true for a user without features: `seq` counts from 1. One at 0, or at the seq of an erasure, has no
            // event to refresh from.
            let done = refreshed_seq.max(record.state.erased_seq);
            if record.state.seq <= done {
                continue;
            }
            let notes = Notes::read(&self.engine, &snapshot, &found.next)?;
            let is_held = notes.held.is_some_and(|(from, to)| from <= done && to == record.state.seq);
            if is_held { &mut found.held } else { &mut found.behind }.push(found.next.clone());
        }
        let mut queues = self.queues.lock();
        found.behind.retain(|user| !queues.of(Queue::Due).contains(user));
        if seen < SWEEP_STEP {
            found.next.clear();
        }
        Ok(found)
    }

    /// The next users after one, and the last of them, empty at the end.
    pub(super) fn users_after(&self, user: &str) -> StoreResult<(Vec<String>, String)> {
        let after = (Bound::Excluded(keys::of_state(user)), Bound::Unbounded);
        let (mut users, mut seen) = (Vec::new(), 0);
        for entry in self.engine.states.range::<Vec<u8>, _>(after).take(SWEEP_STEP) {
            let key = entry.key().map_err(|error| failed("walk", &error))?;
            seen += 1;
            let Some(name) = self.unreadable.skip(RecordKind::State, user_of_state_key(&key))? else { continue };
            users.push(name.to_string());
        }
        let last = if seen < SWEEP_STEP { None } else { users.last().cloned() };
        Ok((users, last.unwrap_or_default()))
    }

    /// Counts users held back on the way of a sweep.
    fn count_held(&self, is_first: bool, held: usize, is_last: bool) {
        let mut counting = self.held.lock();
        if is_first {
            counting.on_the_way = 0;
        }
        counting.on_the_way += held as u64;
        if is_last {
            counting.last = counting.on_the_way;
        }
    }
}

/// Users of a step of a walk.
#[derive(Default)]
pub(super) struct BehindAfter {
    /// The features are behind, and they stand in no queue.
    pub behind: Vec<String>,
    /// The features are behind by bulk history alone.
    pub held: Vec<String>,
    /// The last one looked at, empty at the end.
    pub next: String,
}

/// Users held back, as sweeps count them.
#[derive(Default)]
pub(super) struct Held {
    on_the_way: u64,
    /// By the last sweep.
    pub last: u64,
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
