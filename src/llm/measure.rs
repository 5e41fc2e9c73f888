//! What the engine counts: one place where happenings of `schedule` and `worker` become metrics and log lines.
//!
//! In: happenings. Out: the process's metrics (`telemetry`), or private ones where nobody scrapes (trainer, tests).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::sequence::Job;
use crate::telemetry::{Metrics, Progress};

/// Counters of one engine.
pub struct Measures {
    metrics: Arc<Metrics>,
    panicked: AtomicBool,
    progress: Arc<Progress>,
}

/// Kinds of graph calls.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Prompts, or a piece of one.
    Prefill,
    /// One token for every row.
    Decode,
    /// One level of beam searches.
    Beam,
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub enum Ended {
    /// Answered.
    Done,
    /// Answered with an error of the run.
    Failed,
    /// Its caller went away.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// Refused: the queue was full.
    Overloaded,
    /// A beam search without a legal token.
    NoLegalToken,
}

impl Ended {
    fn name(self) -> &'static str {
        match self {
            Ended::Done => "done",
            Ended::Failed => "failed",
            Ended::Cancelled => "cancelled",
            Ended::Deadline => "deadline",
            Ended::Overloaded => "overloaded",
            Ended::NoLegalToken => "no_legal_token",
        }
    }
}

impl Measures {
    /// Counts into these metrics.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, panicked: AtomicBool::new(false), progress: Arc::default() }
    }

    /// The metrics counted into.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether the engine's thread, when it has work, makes steps.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// A graph call ended now.
    pub fn step(&self, step: Step, started: Instant) {
        self.progress.step();
        let name = match step {
            Step::Prefill => "prefill",
            Step::Decode => "decode",
            Step::Beam => "beam",
        };
        self.metrics.llm_steps.with_label_values(&[name]).observe(started.elapsed().as_secs_f64());
    }

    /// Tokens of a prompt were read, or came out of the prefix cache.
    pub fn read(&self, tokens: usize, cached: usize) {
        self.metrics.llm_tokens.with_label_values(&["prompt"]).inc_by(tokens as u64);
        self.metrics.llm_tokens.with_label_values(&["cached"]).inc_by(cached as u64);
    }

    /// Tokens were generated.
    pub fn generated(&self, tokens: usize) {
        self.metrics.llm_tokens.with_label_values(&["generated"]).inc_by(tokens as u64);
    }

    /// A request has its first token.
    pub fn first_token(&self, job: &Job) {
        let seconds = job.waited(Instant::now()).as_secs_f64();
        self.metrics.llm_first_token.with_label_values(&[job.priority.name()]).observe(seconds);
    }

    /// A prompt was looked up in the prefix cache.
    pub fn prefix(&self, hit: bool) {
        self.metrics.llm_prefix.with_label_values(&[if hit { "hit" } else { "miss" }]).inc();
    }

    /// A request ended.
    pub fn ended(&self, ended: Ended) {
        self.metrics.llm_requests.with_label_values(&[ended.name()]).inc();
    }

    /// A request is given up: its caller has gone, or its deadline has passed.
    pub fn gave_up(&self, job: &Job) {
        self.ended(if job.is_gone() { Ended::Cancelled } else { Ended::Deadline });
    }

    /// Requests under way.
    pub fn rows_under_way(&self, rows: usize) {
        self.metrics.llm_rows.set(rows as i64);
    }

    /// A graph call failed; these requests were answered with it.
    pub fn call_failed(&self, requests: usize, message: &str) {
        self.metrics.llm_requests.with_label_values(&[Ended::Failed.name()]).inc_by(requests as u64);
        tracing::error!(requests, error = message, "llm call failed");
    }

    /// The engine thread caught a panic.
    pub fn panicked(&self, message: &str) {
        self.metrics.llm_panics.inc();
        self.panicked.store(true, Ordering::Release);
        tracing::error!(message, "the llm engine panicked: its requests were answered, the process should be replaced");
    }

    /// No panic so far.
    pub fn is_healthy(&self) -> bool {
        !self.panicked.load(Ordering::Acquire)
    }
}
