//! What may be released for commit of one partition: the offsets up to which every record is stored, a while ago (DESIGN 5.5).
//!
//! In: records in order of delivery, completions in any order, rewinds, the time. Out: the offset to consume next that
//! may be committed, or to seek back to. Callers: [`super::partitions`]. Pure: no clock, no Kafka.
//!
//! A record is *finished* when the store has it, or when its dead letter is acknowledged. The head of the unbroken run of
//! finished records is released `commit_delay` after they finished, because a store that comes back may have lost its last
//! moments; and only what finished before replicas were last found to have everything, because one of them may take over. The run is in order of **delivery**: offsets of transactional and compacted topics have gaps, and arithmetic
//! on them would wait for records that never come. A *generation* is one assignment, or what follows one rewind;
//! completions of an older generation say nothing about this one.

use std::collections::VecDeque;

/// A point of a monotonic clock, in ms.
pub type Millis = u64;

/// One delivered record of one generation of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    generation: u64,
    serial: u64,
}

/// The ledger of one assigned partition.
#[derive(Debug)]
pub struct Ledger {
    generation: u64,
    commit_delay: Millis,
    /// Serial of the first entry.
    head: u64,
    /// Delivered and not released, in order of delivery.
    entries: VecDeque<Entry>,
    unfinished: usize,
    /// Work under way that the ledger waits for before a revoke.
    started: usize,
    /// Offset of the first record of this assignment: where consumption began.
    began: Option<i64>,
    /// Offset after the last record released in this assignment; never falls.
    released: Option<i64>,
    /// A rewind's seek is not done: what is delivered comes from before it.
    seeking: Option<i64>,
    /// Nothing is begun any more.
    revoking: bool,
}

#[derive(Debug)]
struct Entry {
    offset: i64,
    timestamp_ms: i64,
    started: bool,
    finished: Option<Millis>,
}

impl Ledger {
    /// The ledger of a partition just assigned. `generation` must never have been used before in this process.
    pub fn new(generation: u64, commit_delay: Millis) -> Ledger {
        Ledger {
            generation,
            commit_delay,
            head: 0,
            entries: VecDeque::new(),
            unfinished: 0,
            started: 0,
            began: None,
            released: None,
            seeking: None,
            revoking: false,
        }
    }

    /// Enters a delivered record; `timestamp_ms` is Kafka's. `None`: it comes from before a seek or from a partition
    /// that is being taken away, and must be dropped.
    pub fn deliver(&mut self, offset: i64, timestamp_ms: i64) -> Option<Ticket> {
        if self.seeking.is_some() || self.revoking {
            return None;
        }
        self.began.get_or_insert(offset);
        let serial = self.head + self.entries.len() as u64;
        self.entries.push_back(Entry { offset, timestamp_ms, started: false, finished: None });
        self.unfinished += 1;
        Some(Ticket { generation: self.generation, serial })
    }

    /// Whether work on a record may begin; from then on a revoke waits for it. False for records of an older generation,
    /// of a partition that is being taken away, and for finished ones.
    pub fn start(&mut self, ticket: Ticket) -> bool {
        if self.revoking {
            return false;
        }
        let Some(entry) = self.entry(ticket) else { return false };
        if entry.finished.is_some() {
            return false;
        }
        if !entry.started {
            entry.started = true;
            self.started += 1;
        }
        true
    }

    /// The record is stored, or its dead letter acknowledged. False if the ticket is of an older generation: ignored.
    pub fn complete(&mut self, ticket: Ticket, now: Millis) -> bool {
        let Some(entry) = self.entry(ticket) else { return false };
        if entry.finished.is_some() {
            return true;
        }
        entry.finished = Some(now);
        let was_started = std::mem::take(&mut entry.started);
        self.started -= usize::from(was_started);
        self.unfinished -= 1;
        true
    }

    /// Work on a record was given up; it stays unfinished.
    pub fn abandon(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entry(ticket)
            && std::mem::take(&mut entry.started)
        {
            self.started -= 1;
        }
    }

    /// Lets go what is finished since `commit_delay`, and was by `confirmed`: what finished by then the replicas have. Returns
    /// the offset to commit if there is a new one.
    pub fn release(&mut self, now: Millis, confirmed: Millis) -> Option<i64> {
        let limit = now.checked_sub(self.commit_delay)?;
        self.let_go_finished_by(limit.min(confirmed))
    }

    /// Lets go everything in the unbroken run, however fresh: for a drain after which the store can lose nothing.
    pub fn release_finished(&mut self) -> Option<i64> {
        self.let_go_finished_by(Millis::MAX)
    }

    fn let_go_finished_by(&mut self, limit: Millis) -> Option<i64> {
        let before = self.released;
        while let Some(entry) = self.entries.front()
            && entry.finished.is_some_and(|finished| finished <= limit)
        {
            // A log that was cut may deliver lower offsets again: what was released stays released.
            self.released = self.released.max(Some(entry.offset + 1));
            self.entries.pop_front();
            self.head += 1;
        }
        if self.released == before { None } else { self.released }
    }

    /// The store may have lost its tail: forgets everything that was not released and begins a new generation. Returns the
    /// offset to seek to, which must be followed by [`Self::sought`]; `None` if nothing was delivered yet.
    pub fn rewind(&mut self, generation: u64) -> Option<i64> {
        self.generation = generation;
        self.entries.clear();
        (self.unfinished, self.started) = (0, 0);
        self.seeking = self.released.or(self.began);
        self.seeking
    }

    /// The consumer stands at the offset that [`Self::rewind`] returned.
    pub fn sought(&mut self) {
        self.seeking = None;
    }

    /// The seek that is still to be done.
    pub fn seeking(&self) -> Option<i64> {
        self.seeking
    }

    /// The partition is being taken away: nothing is delivered or started any more.
    pub fn revoke(&mut self) {
        self.revoking = true;
    }

    /// Records whose work was started and is not done.
    pub fn started(&self) -> usize {
        self.started
    }

    /// Records delivered and not finished.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Finished, but not released yet.
    pub fn held_back(&self) -> usize {
        self.entries.len() - self.unfinished
    }

    /// Kafka's timestamp of the first record that is not finished, unix ms.
    pub fn oldest_unfinished_ms(&self) -> Option<i64> {
        if self.unfinished == 0 {
            return None;
        }
        self.entries.iter().find(|entry| entry.finished.is_none()).map(|entry| entry.timestamp_ms)
    }

    fn entry(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        if ticket.generation != self.generation {
            return None;
        }
        let place = ticket.serial.checked_sub(self.head)?;
        self.entries.get_mut(usize::try_from(place).ok()?)
    }
}

#[cfg(test)]
mod tests;
