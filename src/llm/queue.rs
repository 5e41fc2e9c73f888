//! The bounded queue between callers and the engine thread.
//!
//! In: jobs from any thread. Out: batches for the one engine thread (`worker`). A full queue refuses, a closed one too;
//! a job whose caller has gone is dropped when its turn comes. Dropping a job tells its caller that the engine closed.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::LlmError;
use super::batch::{Prompt, Written};

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, LlmError>>;

/// One thing to do.
pub enum Job {
    /// Continue a prompt; batched with its neighbours.
    Generate(Prompt, Reply<Written>),
    /// Log-probabilities of the tokens from `from` on, each given all before it; runs alone.
    Score {
        /// Token ids of prompt and continuation.
        tokens: Vec<u32>,
        /// Index of the first token to score, at least 1.
        from: usize,
        /// Where the answer goes.
        reply: Reply<Vec<f64>>,
    },
}

/// What the engine thread does next.
pub enum Work {
    /// Prompts of one batch, oldest first.
    Batch(Vec<(Prompt, Reply<Written>)>),
    /// One sequence to score.
    Score {
        /// Token ids.
        tokens: Vec<u32>,
        /// First token to score.
        from: usize,
        /// Where the answer goes.
        reply: Reply<Vec<f64>>,
    },
}

/// The queue.
pub struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    room: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    /// An open queue for at most `limit` waiting jobs.
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), room: Condvar::new(), limit: limit.max(1) }
    }

    /// Adds a job, or says at once why not.
    pub fn push(&self, job: Job) -> Result<(), LlmError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(LlmError::Closed);
        }
        if state.jobs.len() >= self.limit {
            return Err(LlmError::Overloaded { depth: state.jobs.len() });
        }
        state.jobs.push_back(job);
        self.arrived.notify_one();
        Ok(())
    }

    /// Adds a job, waiting for room: for callers that bring their own bound (the trainer).
    pub fn push_waiting(&self, job: Job) -> Result<(), LlmError> {
        let mut state = self.state.lock();
        while !state.closed && state.jobs.len() >= self.limit {
            self.room.wait(&mut state);
        }
        if state.closed {
            return Err(LlmError::Closed);
        }
        state.jobs.push_back(job);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for work and takes up to `max_rows` prompts, without lingering for more. `None` = closed.
    pub fn take(&self, max_rows: usize) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let work = state.next(max_rows);
            self.room.notify_all();
            if work.is_some() {
                return work;
            }
            self.arrived.wait(&mut state);
        }
    }

    /// Refuses new jobs and drops the waiting ones.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.jobs.clear();
        self.arrived.notify_all();
        self.room.notify_all();
    }

    /// Jobs waiting.
    pub fn depth(&self) -> usize {
        self.state.lock().jobs.len()
    }
}

impl State {
    fn next(&mut self, max_rows: usize) -> Option<Work> {
        let mut batch = Vec::new();
        while batch.len() < max_rows.max(1) {
            match self.jobs.front() {
                Some(Job::Score { .. }) if !batch.is_empty() => break,
                None => break,
                Some(_) => {}
            }
            match self.jobs.pop_front() {
                Some(Job::Generate(prompt, reply)) if !reply.is_closed() => batch.push((prompt, reply)),
                Some(Job::Score { tokens, from, reply }) if !reply.is_closed() => {
                    return Some(Work::Score { tokens, from, reply });
                }
                _ => {} // its caller has gone
            }
        }
        (!batch.is_empty()).then_some(Work::Batch(batch))
    }
}
