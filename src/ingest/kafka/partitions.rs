//! The ledgers of all assigned partitions, and how much is under way: what the consumer, its callbacks and the lanes share.
//!
//! In: assignments, deliveries, completions, rewinds. Out: places of records, offsets to store or to seek to. Callers:
//! [`super::consumer`], [`super::rebalance`], [`super::lanes`], [`super::dead_letter`].

use super::ledger::{Ledger, Millis, Ticket};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What a topic holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Events,
    Items,
}

/// One partition of one of our topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartitionKey {
    pub role: Role,
    pub partition: i32,
}

/// Where a record stands in its ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub key: PartitionKey,
    ticket: Ticket,
}

/// A partition at one moment, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionView {
    pub key: PartitionKey,
    pub unfinished: usize,
    /// Kafka's timestamp of the oldest unfinished record, unix ms.
    pub oldest_unfinished_ms: Option<i64>,
}

/// Shared by `Arc`; every method takes its one lock for microseconds, but [`Self::wait_started`].
pub(super) struct Partitions {
    state: Mutex<State>,
    /// Told when started work ended.
    settled: Condvar,
    /// Told when there is less under way.
    freed: Notify,
    records: AtomicUsize,
    bytes: AtomicUsize,
    commit_delay: Millis,
    epoch: Instant,
    /// What finished by then replicas have, where they are asked.
    confirmed: AtomicU64,
}

#[derive(Default)]
struct State {
    ledgers: BTreeMap<PartitionKey, Ledger>,
    generation: u64,
}

impl State {
    fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }
}

/// Counts a record as under way until dropped.
pub(super) struct InFlight {
    partitions: Arc<Partitions>,
    bytes: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.partitions.records.fetch_sub(1, Ordering::AcqRel);
        self.partitions.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.partitions.freed.notify_one();
    }
}

impl Partitions {
    pub fn new(commit_delay: Duration) -> Arc<Partitions> {
        Arc::new(Partitions {
            state: Mutex::new(State::default()),
            settled: Condvar::new(),
            freed: Notify::new(),
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            commit_delay: commit_delay.as_millis() as Millis,
            epoch: Instant::now(),
            confirmed: AtomicU64::new(0),
        })
    }

    /// The ledgers' clock.
    pub fn now(&self) -> Millis {
        self.epoch.elapsed().as_millis() as Millis
    }

    /// New ledgers for partitions that were given to us.
    pub fn assign(&self, keys: &[PartitionKey]) {
        let mut state = self.state.lock();
        for key in keys {
            let generation = state.next_generation();
            state.ledgers.insert(*key, Ledger::new(generation, self.commit_delay));
        }
    }

    /// The partitions are being taken away: unstarted records are dropped from now on.
    pub fn revoke(&self, keys: &[PartitionKey]) {
        let mut state = self.state.lock();
        for key in keys {
            if let Some(ledger) = state.ledgers.get_mut(key) {
                ledger.revoke();
            }
        }
    }

    /// Blocks until no work on these partitions is under way, at most so long; false when some still is.
    pub fn wait_started(&self, keys: &[PartitionKey], limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        let busy = |state: &State| keys.iter().any(|key| state.ledgers.get(key).is_some_and(|l| l.started() > 0));
        while busy(&state) {
            if self.settled.wait_until(&mut state, deadline).timed_out() {
                return !busy(&state);
            }
        }
        true
    }

    /// Forgets partitions that are no longer ours.
    pub fn remove(&self, keys: &[PartitionKey]) {
        let mut state = self.state.lock();
        for key in keys {
            state.ledgers.remove(key);
        }
        self.settled.notify_all();
    }

    /// The assigned partitions.
    pub fn keys(&self) -> Vec<PartitionKey> {
        self.state.lock().ledgers.keys().copied().collect()
    }

    /// Enters a delivered record; `None` if it must be dropped.
    pub fn deliver(&self, key: PartitionKey, offset: i64, timestamp_ms: i64) -> Option<Place> {
        let mut state = self.state.lock();
        let ticket = state.ledgers.get_mut(&key)?.deliver(offset, timestamp_ms)?;
        Some(Place { key, ticket })
    }

    /// Counts a record as under way.
    pub fn carry(self: &Arc<Self>, bytes: usize) -> InFlight {
        self.records.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        InFlight { partitions: self.clone(), bytes }
    }

    /// (records, bytes) under way.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.records.load(Ordering::Acquire), self.bytes.load(Ordering::Acquire))
    }

    /// Waits until something under way ended.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Keeps those whose work may begin, in order.
    pub fn start<T>(&self, mut records: Vec<T>, place: impl Fn(&T) -> Place) -> Vec<T> {
        let mut state = self.state.lock();
        records.retain(|record| {
            let Place { key, ticket } = place(record);
            state.ledgers.get_mut(&key).is_some_and(|ledger| ledger.start(ticket))
        });
        records
    }

    /// Whether work on any of these records is still worth something: false once all were taken away or rewound.
    pub fn still_counts(&self, places: impl IntoIterator<Item = Place>) -> bool {
        let mut state = self.state.lock();
        places
            .into_iter()
            .any(|Place { key, ticket }| state.ledgers.get_mut(&key).is_some_and(|ledger| ledger.start(ticket)))
    }

    /// These records are stored, or their dead letters acknowledged.
    pub fn complete(&self, places: impl IntoIterator<Item = Place>) {
        let now = self.now();
        self.each(places, |ledger, ticket| {
            ledger.complete(ticket, now);
        });
    }

    /// Work on these records was given up.
    pub fn abandon(&self, places: impl IntoIterator<Item = Place>) {
        self.each(places, Ledger::abandon);
    }

    fn each(&self, places: impl IntoIterator<Item = Place>, change: impl Fn(&mut Ledger, Ticket)) {
        let mut state = self.state.lock();
        for Place { key, ticket } in places {
            if let Some(ledger) = state.ledgers.get_mut(&key) {
                change(ledger, ticket);
            }
        }
        self.settled.notify_all();
    }

    /// Replicas have everything that finished before `at`.
    pub fn confirm(&self, at: Millis) {
        // What finished in that very moment may have been stored after the question.
        self.confirmed.fetch_max(at.saturating_sub(1), Ordering::AcqRel);
    }

    /// What may be committed now, of the given partitions. `now` is when the store was last known to be whole.
    pub fn release(&self, keys: &[PartitionKey], now: Millis) -> Vec<(PartitionKey, i64)> {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        self.collect(keys, |ledger| ledger.release(now, confirmed))
    }

    /// Everything finished, however fresh (a drain whose store can lose nothing any more).
    pub fn release_finished(&self, keys: &[PartitionKey]) -> Vec<(PartitionKey, i64)> {
        self.collect(keys, Ledger::release_finished)
    }

    /// Begins a new generation everywhere; returns the seeks to be done.
    pub fn rewind(&self) -> Vec<(PartitionKey, i64)> {
        let mut state = self.state.lock();
        let mut generation = state.generation;
        let mut targets = Vec::new();
        for (key, ledger) in &mut state.ledgers {
            generation += 1;
            if let Some(offset) = ledger.rewind(generation) {
                targets.push((*key, offset));
            }
        }
        state.generation = generation;
        self.settled.notify_all();
        targets
    }

    /// Seeks that were not done yet.
    pub fn seeking(&self) -> Vec<(PartitionKey, i64)> {
        let keys = self.keys();
        self.collect(&keys, |ledger| ledger.seeking())
    }

    /// The consumer stands where the rewind wanted it.
    pub fn sought(&self, key: PartitionKey) {
        if let Some(ledger) = self.state.lock().ledgers.get_mut(&key) {
            ledger.sought();
        }
    }

    /// Records delivered and not finished, over all partitions; and those finished and not released.
    pub fn totals(&self) -> (usize, usize) {
        let state = self.state.lock();
        let sum = |count: fn(&Ledger) -> usize| state.ledgers.values().map(count).sum();
        (sum(Ledger::unfinished), sum(Ledger::held_back))
    }

    /// Every partition, for metrics.
    pub fn view(&self) -> Vec<PartitionView> {
        let state = self.state.lock();
        let view = |(key, ledger): (&PartitionKey, &Ledger)| PartitionView {
            key: *key,
            unfinished: ledger.unfinished(),
            oldest_unfinished_ms: ledger.oldest_unfinished_ms(),
        };
        state.ledgers.iter().map(view).collect()
    }

    fn collect(&self, keys: &[PartitionKey], take: impl Fn(&mut Ledger) -> Option<i64>) -> Vec<(PartitionKey, i64)> {
        let mut state = self.state.lock();
        let mut found = Vec::new();
        for key in keys {
            if let Some(offset) = state.ledgers.get_mut(key).and_then(&take) {
                found.push((*key, offset));
            }
        }
        found
    }
}
