//! Continuous batching: which rows run next, and in which call.
//!
//! In: jobs out of `queue`, logits out of a [`Backend`]. Out: answers (through `sequence`). Owned by the engine thread
//! (`worker`), which calls [`Schedule::turn`] again and again: one piece of prefill, one decode step for all, one level of
//! beams. `prefill`, `decode` and `beams` are those three; `calls` makes graph calls of sequences.
//!
//! ```text
//! rows of the pool:  [ decoding 0..n )  ··· free ···  [ staged: long prompts and scores; searching: beams ]
//! ```
//!
//! - Decoding rows are the first n, so that one call covers them; when one ends, the last one moves into the hole.
//! - Short prompts (`ready`) are read in groups of like length straight into the rows behind n.
//! - Long ones are read in pieces (`staged`) in rows from the top, so that decoding goes on between two pieces; at their
//!   end they move down. Where a prompt is cut depends on the prompt alone, never on the load: same prompt, same numbers.

mod beams;
mod calls;
mod decode;
mod prefill;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod toy;

use std::sync::Arc;
use std::time::Instant;

use super::LlmError;
use super::beam::BeamDriver;
use super::device::{Backend, PoolShape};
use super::measure::{Ended, Measures};
use super::queue::Queue;
use super::sequence::{Job, Next, Sequence, Task};
use calls::piece_call;

/// Cached tokens below this are not worth a call of their own.
const MIN_CACHED: usize = 16;
/// Pieces of long prompts are a multiple of this.
const PIECE_STEP: usize = 16;

/// How to schedule.
#[derive(Debug, Clone)]
pub struct ScheduleOptions {
    /// Most tokens of a piece of prefill while others decode.
    pub prefill_chunk: usize,
    /// Most tokens (prompts and answers) under way; a single request is always taken.
    pub max_tokens: usize,
    /// Width d of the model: attention to 7 d past tokens costs about as much as a token's linear layers.
    pub hidden: usize,
}

/// The rows and their sequences.
pub struct Schedule<B> {
    backend: B,
    options: ScheduleOptions,
    shape: PoolShape,
    measures: Arc<Measures>,
    /// Sequence i stands in row i.
    decoding: Vec<Sequence>,
    /// Admitted, without a row yet.
    ready: Vec<Sequence>,
    staged: Vec<Sequence>,
    searching: Vec<Sequence>,
    driver: BeamDriver,
    /// Token ids whose keys and values the backend keeps.
    prefix: Vec<u32>,
    /// Whether the last piece of prefill was a group: groups and pieces take turns.
    group_was_last: bool,
}

impl<B: Backend> Schedule<B> {
    /// Nothing under way.
    pub fn new(backend: B, options: ScheduleOptions, measures: Arc<Measures>) -> Self {
        let shape = backend.shape();
        Self {
            backend,
            options,
            shape,
            measures,
            decoding: Vec::new(),
            ready: Vec::new(),
            staged: Vec::new(),
            searching: Vec::new(),
            driver: BeamDriver::default(),
            prefix: Vec::new(),
            group_was_last: false,
        }
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way().next().is_none()
    }

    /// Reads a prefix once and keeps it; prompts that begin with it, or with a part of it, go on from there.
    pub fn keep_prefix(&mut self, tokens: Vec<u32>) -> Result<(), String> {
        self.prefix.clear();
        if tokens.len() < MIN_CACHED || tokens.len() >= self.shape.slots {
            return Ok(());
        }
        let mut past = 0;
        while past < tokens.len() {
            let count = self.piece(past, tokens.len() - past);
            self.backend.run(&piece_call(0, &tokens[past..past + count], past, 0..0))?;
            past += count;
        }
        self.backend.save_prefix(0, tokens.len())?;
        self.prefix = tokens;
        Ok(())
    }

    /// One round: who has gone, who comes, one piece of prefill, one decode step, who comes, one level of beams.
    pub fn turn(&mut self, queue: &Queue) {
        let now = Instant::now();
        self.drop_dead(now);
        self.sweep(queue, now);
        self.admit(queue);
        self.prefill();
        self.decode();
        // Searches share their calls: those that came meanwhile must be seen before a search begins alone.
        self.admit(queue);
        self.search();
        let rows = self.under_way().count();
        self.measures.rows_under_way(rows);
    }

    /// Answers everything under way with an error and forgets it: after a panic nothing of it can be trusted.
    pub fn fail_all(&mut self, error: &LlmError) {
        self.driver.clear();
        let lists = [&mut self.decoding, &mut self.ready, &mut self.staged, &mut self.searching];
        for mut sequence in lists.into_iter().flat_map(std::mem::take) {
            self.measures.ended(Ended::Failed);
            sequence.job.fail(error.clone());
        }
        self.backend.reset();
    }

    fn under_way(&self) -> impl Iterator<Item = &Sequence> {
        self.decoding.iter().chain(&self.ready).chain(&self.staged).chain(&self.searching)
    }

    /// Those in rows from the top.
    fn on_top(&self) -> impl Iterator<Item = &Sequence> {
        self.staged.iter().chain(&self.searching)
    }

    fn drop_dead(&mut self, now: Instant) {
        let is_dead = |sequence: &Sequence| sequence.job.is_gone() || sequence.job.is_late(now);
        let mut dead = Vec::new();
        for index in (0..self.decoding.len()).rev() {
            // A failed move may have taken several away.
            if self.decoding.get(index).is_some_and(is_dead) {
                dead.push(self.take_decoding(index));
            }
        }
        dead.extend(self.ready.extract_if(.., |sequence| is_dead(sequence)));
        dead.extend(self.staged.extract_if(.., |sequence| is_dead(sequence)));
        for sequence in self.searching.extract_if(.., |sequence| is_dead(sequence)) {
            self.driver.cancel(sequence.row);
            dead.push(sequence);
        }
        for sequence in dead {
            self.measures.gave_up(&sequence.job);
            sequence.job.give_up();
        }
    }

    fn sweep(&self, queue: &Queue, now: Instant) {
        for job in queue.sweep(now) {
            self.measures.gave_up(&job);
            job.give_up();
        }
    }

    fn admit(&mut self, queue: &Queue) {
        loop {
            let rows = self.under_way().count();
            if rows >= self.shape.rows {
                return;
            }
            let tokens: usize = self.under_way().map(|sequence| sequence.job.cost()).sum();
            let fits = |job: &Job| rows == 0 || tokens + job.cost() <= self.options.max_tokens;
            let Some(job) = queue.pop(fits) else { return };
            self.take_in(Sequence::new(job));
        }
    }

    /// Short prompts wait for a group, everything else gets a row of its own from the top.
    fn take_in(&mut self, mut sequence: Sequence) {
        sequence.cached = self.cached(&sequence);
        let rest = sequence.to_read() - sequence.cached;
        let is_short = matches!(sequence.job.task, Task::Generate(_)) && rest <= self.piece(sequence.cached, rest);
        if is_short {
            self.ready.push(sequence);
            return;
        }
        // Everything under way counts as a row, so one is free.
        let free =
            (self.decoding.len()..self.shape.rows).rev().find(|&row| self.on_top().all(|other| other.row != row));
        match free {
            Some(row) => sequence.row = row,
            None => return self.fail(vec![sequence], "no row is free, though there must be one"),
        }
        self.staged.push(sequence);
        self.staged.sort_by_key(|staged| (staged.job.priority, staged.job.queued()));
    }

    /// Tokens of a sequence that the prefix cache has, if they are worth it.
    fn cached(&self, sequence: &Sequence) -> usize {
        if self.prefix.is_empty() {
            return 0;
        }
        let read = sequence.to_read();
        let most = match sequence.job.task {
            // The first scored token needs logits in front of it.
            Task::Score { from, .. } => from - 1,
            _ => read - 1,
        };
        let common =
            self.prefix.iter().zip(&sequence.job.tokens[..most]).take_while(|(one, other)| one == other).count();
        let is_worth = common >= MIN_CACHED && common * 4 >= read;
        self.measures.prefix(is_worth);
        if is_worth { common } else { 0 }
    }

    /// Tokens of the next piece of a row that holds `past`. Attention to a long past is dearer: the piece gets shorter, so
    /// that its time, and with it the others' wait, stays about the same.
    fn piece(&self, past: usize, rest: usize) -> usize {
        let slowdown = 1.0 + past as f64 / (7.0 * self.options.hidden.max(1) as f64);
        let tokens = (self.options.prefill_chunk as f64 / slowdown) as usize;
        rest.min(tokens.next_multiple_of(PIECE_STEP).max(PIECE_STEP))
    }

    fn fail(&self, sequences: Vec<Sequence>, message: &str) {
        self.measures.call_failed(sequences.len(), message);
        for mut sequence in sequences {
            sequence.job.fail(LlmError::Run(message.to_owned()));
        }
    }
}

/// Gives a sequence the logits behind its newest token.
fn grow(sequence: &mut Sequence, logits: &[f32], measures: &Measures) -> Next {
    let next = sequence.grow(logits);
    measures.generated(1);
    if sequence.is_first() {
        measures.first_token(&sequence.job);
    }
    next
}
