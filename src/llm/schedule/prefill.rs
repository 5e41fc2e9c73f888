//! Reading prompts: short ones in groups, long ones in pieces; the two take turns.

use std::time::Instant;

use super::beams::begin;
use super::calls::{group_call, piece_call};
use super::{Schedule, grow};
use crate::llm::device::Backend;
use crate::llm::measure::Step;
use crate::llm::sequence::{Next, Sequence, Task};

/// Most logits of one call (numbers): scoring takes smaller pieces where the vocabulary is large.
const MAX_LOGITS: usize = 1 << 24;
/// Prompts of one group may be padded by at most this share of the group.
const MAX_PADDING: f64 = 0.25;
/// While nothing decodes, a group may be this many pieces large: nobody's next token waits for it.
const IDLE_PIECES: usize = 8;

impl<B: Backend> Schedule<B> {
    pub(super) fn prefill(&mut self) {
        let takes_group = match (self.ready.is_empty(), self.staged.is_empty()) {
            (true, true) => return,
            (false, true) => true,
            (true, false) => false,
            (false, false) => !self.group_was_last,
        };
        self.group_was_last = takes_group;
        match takes_group {
            true => self.prefill_group(),
            false => self.prefill_piece(),
        }
    }

    /// Reads a group of short prompts of like length into the rows behind the decoding ones. A prompt that several sequences have is read
    /// once, for the first of them; the others' rows are copies of its row.
    fn prefill_group(&mut self) {
        let mut group = self.take_group();
        let read = group.len();
        let twins = self.take_twins(&group);
        let leaders: Vec<usize> = twins.iter().map(|(leader, _)| *leader).collect();
        group.extend(twins.into_iter().map(|(_, twin)| twin));
        let first = self.decoding.len();
        if let Err(message) = self.make_room(first, group.len()) {
            return self.fail(group, &message);
        }
        let cached = group[0].cached;
        let prepared = match cached {
            0 => Ok(group_call(first, &group[..read])),
            _ => self.backend.load_prefix(first, cached).map(|()| {
                let tokens = &group[0].job.tokens[cached..];
                piece_call(first, tokens, cached, tokens.len() - 1..tokens.len())
            }),
        };
        let started = Instant::now();
        let logits = match prepared.and_then(|call| self.backend.run(&call)) {
            Ok(logits) => logits,
            Err(message) => return self.fail(group, &message),
        };
        let rows: Vec<&[f32]> = logits.chunks(self.shape.vocabulary).collect();
        let mut next = Vec::with_capacity(group.len());
        for (place, sequence) in group.iter_mut().enumerate() {
            let leader = place.checked_sub(read).map(|twin| leaders[twin]);
            if leader.is_some() {
                sequence.cached = sequence.to_read();
            }
            self.measures.read(sequence.to_read() - sequence.cached, sequence.cached);
            sequence.past = sequence.job.tokens.len();
            next.push(grow(sequence, rows[leader.unwrap_or(place)], &self.measures));
        }
        let shared = leaders.iter().enumerate().try_for_each(|(twin, leader)| {
            self.backend.share_row(first + leader, first + read + twin, group[*leader].past)
        });
        if let Err(message) = shared {
            return self.fail(group, &message);
        }
        self.measures.step(Step::Prefill, started);
        self.decoding.extend(group);
        self.retire(first, &next);
    }

    /// Those that wait with the same prompt as one of a group that is read whole, each with the place of that one.
    fn take_twins(&mut self, group: &[Sequence]) -> Vec<(usize, Sequence)> {
        if group[0].cached > 0 {
            return Vec::new();
        }
        let leader = |sequence: &Sequence| group.iter().position(|one| one.job.tokens == sequence.job.tokens);
        let twins: Vec<Sequence> = self.ready.extract_if(.., |sequence| leader(sequence).is_some()).collect();
        twins.into_iter().filter_map(|twin| Some((leader(&twin)?, twin))).collect()
    }

    /// Takes the oldest prompt of the most urgent class, and those of like length that fit beside it.
    fn take_group(&mut self) -> Vec<Sequence> {
        self.ready.sort_by_key(|sequence| (sequence.job.priority, sequence.job.queued()));
        let oldest = self.ready.remove(0);
        let budget = match self.decoding.is_empty() {
            true => IDLE_PIECES * self.options.prefill_chunk,
            false => self.options.prefill_chunk,
        };
        let (mut longest, mut tokens) = (oldest.to_read(), oldest.to_read());
        let is_alone = oldest.cached > 0; // a row with a past is read alone (note onnx 3.1)
        let mut group = vec![oldest];
        if is_alone {
            return group;
        }
        self.ready.sort_by_key(Sequence::to_read);
        let mut index = 0;
        while index < self.ready.len() {
            let length = self.ready[index].to_read();
            let cells = longest.max(length) * (group.len() + 1);
            let padding = 1.0 - (tokens + length) as f64 / cells as f64;
            let is_twin = group.iter().any(|one| one.job.tokens == self.ready[index].job.tokens);
            if is_twin || self.ready[index].cached > 0 || cells > budget || padding > MAX_PADDING {
                index += 1;
                continue;
            }
            (longest, tokens) = (longest.max(length), tokens + length);
            group.push(self.ready.remove(index));
        }
        group
    }

    /// Moves those from the top out of the rows `[first, first + count)`.
    fn make_room(&mut self, first: usize, count: usize) -> Result<(), String> {
        for row in first..first + count {
            if self.on_top().all(|sequence| sequence.row != row) {
                continue;
            }
            let is_free = |free: &usize| self.on_top().all(|sequence| sequence.row != *free);
            let target = (first + count..self.shape.rows).rev().find(is_free);
            let target = target.ok_or("no row is free, though there must be one")?;
            self.backend.copy_row(row, target, self.used(row))?;
            self.relocate(row, target);
        }
        Ok(())
    }

    /// Reads the next piece of the most urgent long prompt.
    fn prefill_piece(&mut self) {
        let (row, cached) = (self.staged[0].row, self.staged[0].cached);
        if self.staged[0].past == 0 && cached > 0 {
            if let Err(message) = self.backend.load_prefix(row, cached) {
                return self.fail_staged(&message);
            }
            self.staged[0].past = cached;
            self.measures.read(0, cached);
        }
        let sequence = &self.staged[0];
        let past = sequence.past;
        let mut count = self.piece(past, sequence.to_read());
        if matches!(sequence.job.task, Task::Score { .. }) {
            count = count.min((MAX_LOGITS / self.shape.vocabulary).max(1));
        }
        let wanted = sequence.wanted(count);
        let call = piece_call(row, &sequence.job.tokens[past..past + count], past, wanted.clone());
        let started = Instant::now();
        let logits = match self.backend.run(&call) {
            Ok(logits) => logits,
            Err(message) => return self.fail_staged(&message),
        };
        let sequence = &mut self.staged[0];
        self.measures.read(count, 0);
        sequence.past += count;
        let next = match &sequence.job.task {
            _ if wanted.is_empty() => Next::Read,
            Task::Generate(_) => grow(sequence, logits, &self.measures),
            Task::Score { .. } => sequence.score(logits, self.shape.vocabulary, past + wanted.start + 1),
            Task::Beam { .. } => begin(&mut self.driver, sequence, logits),
        };
        self.measures.step(Step::Prefill, started);
        match next.ended() {
            Some(ended) => {
                self.measures.ended(ended);
                self.staged.remove(0);
            }
            None if next == Next::Read => {}
            None if matches!(self.staged[0].job.task, Task::Beam { .. }) => {
                let sequence = self.staged.remove(0);
                self.searching.push(sequence);
            }
            None => self.promote(),
        }
    }

    /// The first staged sequence is read: it moves down to the decoding rows.
    fn promote(&mut self) {
        let mut sequence = self.staged.remove(0);
        let (row, target) = (sequence.row, self.decoding.len());
        let is_taken = self.on_top().any(|other| other.row == target);
        let moved = match is_taken {
            _ if row == target => Ok(()),
            false => self.backend.copy_row(row, target, sequence.past),
            true => {
                let tokens = sequence.past.max(self.used(target));
                self.relocate(target, row);
                self.backend.swap_rows(row, target, tokens)
            }
        };
        sequence.row = target;
        match moved {
            Ok(()) => self.decoding.push(sequence),
            Err(message) => self.fail(vec![sequence], &message),
        }
    }

    fn fail_staged(&mut self, message: &str) {
        let failed = self.staged.remove(0);
        self.fail(vec![failed], message);
    }

    /// Slots of a row from the top that hold something.
    pub(super) fn used(&self, row: usize) -> usize {
        if let Some(used) = self.driver.used(row) {
            return used;
        }
        self.on_top().find(|sequence| sequence.row == row).map_or(0, |sequence| sequence.past)
    }

    /// Notes that what stood in a row from the top stands in another.
    fn relocate(&mut self, from: usize, to: usize) {
        self.driver.relocate(from, to);
        let mut on_top = self.staged.iter_mut().chain(&mut self.searching);
        if let Some(sequence) = on_top.find(|sequence| sequence.row == from) {
            sequence.row = to;
        }
    }
}
