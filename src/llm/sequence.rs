//! One request on its way: the job as it was queued, and the row of the pool it fills.
//!
//! In: a [`Job`] from `queue`, then logits. Out: the answer to its caller. Pure but for the replies: `schedule` decides
//! when and in which row a sequence runs. Nothing here knows of other sequences.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::beam::slots_needed;
use super::measure::Ended;
use super::sample::{Sampler, greedy, log_probability};
use super::text::TextTail;
use super::trie::Trie;
use super::{Beam, Finish, Generation, LlmError, Piece, Priority, Scored};

/// Where one answer goes.
pub type Answer<T> = oneshot::Sender<Result<T, LlmError>>;

/// What was generated, before a caller's thread makes text of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Generated token ids, the stop token included.
    pub tokens: Vec<u32>,
    /// Natural-log probability of each, if asked for.
    pub logprobs: Vec<f64>,
    /// The text, where the engine had to make it.
    pub text: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens out of the prefix cache.
    pub cached_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

/// How a generation is answered.
pub enum Reply {
    /// Once, at the end.
    Whole(Answer<Written>),
    /// Token by token.
    Stream(mpsc::UnboundedSender<Piece>),
}

/// What to do with a text.
pub enum Task {
    /// Continue it.
    Generate(Box<Generating>),
    /// Log-probabilities of its tokens from `from` on, each given all before it.
    Score {
        /// First token to score, at least 1.
        from: usize,
        /// So far.
        scores: Vec<Scored>,
        /// Where they go.
        reply: Option<Answer<Vec<Scored>>>,
    },
    /// Find the best continuations of a trie.
    Beam {
        /// Beams kept.
        width: usize,
        /// What exists.
        trie: Arc<Trie>,
        /// Where they go.
        reply: Option<Answer<Vec<Beam>>>,
    },
}

/// State of a generation.
pub struct Generating {
    max_new_tokens: usize,
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    tail: Option<TextTail>,
    wants_logprobs: bool,
    reply: Option<Reply>,
    tokens: Vec<u32>,
    logprobs: Vec<f64>,
}

/// A request as it waits.
pub struct Job {
    /// Token ids of the prompt; of a score: of prompt and continuation.
    pub tokens: Vec<u32>,
    /// What to do.
    pub task: Task,
    /// Class.
    pub priority: Priority,
    deadline: Option<Instant>,
    queued: Instant,
}

/// A request that has, or will have, a row of the pool.
pub struct Sequence {
    /// The request.
    pub job: Job,
    /// Row of the pool; meaningless while it has none.
    pub row: usize,
    /// Tokens in the row.
    pub past: usize,
    /// Of these, tokens out of the prefix cache.
    pub cached: usize,
    started: bool,
}

/// What a sequence wants after logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// More of its prompt to read.
    Read,
    /// Another token, or another level.
    Continue,
    /// Nothing: it was answered.
    Done,
    /// Nothing: it was answered with an error.
    Failed,
    /// Nothing: no token of the trie was left, and it was answered so.
    NoLegalToken,
}

impl Next {
    /// How the request ended, if it did.
    pub fn ended(self) -> Option<Ended> {
        match self {
            Next::Read | Next::Continue => None,
            Next::Done => Some(Ended::Done),
            Next::Failed => Some(Ended::Failed),
            Next::NoLegalToken => Some(Ended::NoLegalToken),
        }
    }
}

impl Task {
    /// A generation of at least one token.
    pub fn generate(
        max_new_tokens: usize,
        sampler: Sampler,
        stop_tokens: Vec<u32>,
        tail: Option<TextTail>,
        wants_logprobs: bool,
        reply: Reply,
    ) -> Self {
        Task::Generate(Box::new(Generating {
            max_new_tokens,
            sampler,
            stop_tokens,
            tail,
            wants_logprobs,
            reply: Some(reply),
            tokens: Vec::new(),
            logprobs: Vec::new(),
        }))
    }
}

impl Job {
    /// A job that begins to wait now.
    pub fn new(tokens: Vec<u32>, task: Task, priority: Priority, deadline: Option<Instant>) -> Self {
        Self { tokens, task, priority, deadline, queued: Instant::now() }
    }

    /// Slots of a row it may need: prompt, and what may be generated.
    pub fn cost(&self) -> usize {
        match &self.task {
            Task::Generate(generating) => self.tokens.len() + generating.max_new_tokens,
            Task::Score { .. } => self.tokens.len(),
            Task::Beam { width, trie, .. } => slots_needed(trie, *width, self.tokens.len()),
        }
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        match &self.task {
            Task::Generate(generating) => match &generating.reply {
                Some(Reply::Whole(answer)) => answer.is_closed(),
                Some(Reply::Stream(pieces)) => pieces.is_closed(),
                None => true,
            },
            Task::Score { reply, .. } => reply.as_ref().is_none_or(|answer| answer.is_closed()),
            Task::Beam { reply, .. } => reply.as_ref().is_none_or(|answer| answer.is_closed()),
        }
    }

    /// Whether its deadline has passed.
    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// When it was queued.
    pub fn queued(&self) -> Instant {
        self.queued
    }

    /// Time since it was queued.
    pub fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.queued)
    }

    /// Answers with the passed deadline; a caller that has gone does not hear it.
    pub fn give_up(mut self) {
        let new_tokens = self.new_tokens();
        self.fail(LlmError::Deadline { new_tokens });
    }

    /// Answers a generation that was asked for no token.
    pub fn answer_nothing(mut self) {
        let prompt_tokens = self.tokens.len();
        if let Task::Generate(generating) = &mut self.task {
            // Without a token there is no text to make either.
            let written = generating.take_written(Finish::Length, prompt_tokens, 0);
            generating.answer(Written { text: Some(String::new()), ..written });
        }
    }

    /// Tokens generated so far.
    pub fn new_tokens(&self) -> usize {
        match &self.task {
            Task::Generate(generating) => generating.tokens.len(),
            _ => 0,
        }
    }

    /// Answers with an error. Whoever went away meanwhile does not hear it.
    pub fn fail(&mut self, error: LlmError) {
        match &mut self.task {
            Task::Generate(generating) => match generating.reply.take() {
                Some(Reply::Whole(answer)) => drop(answer.send(Err(error))),
                Some(Reply::Stream(pieces)) => drop(pieces.send(Piece::End(Err(error)))),
                None => {}
            },
            Task::Score { reply, .. } => drop(reply.take().map(|answer| answer.send(Err(error)))),
            Task::Beam { reply, .. } => drop(reply.take().map(|answer| answer.send(Err(error)))),
        }
    }

    /// Answers a beam search.
    pub fn answer_beams(&mut self, found: Result<Vec<Beam>, LlmError>) {
        if let Task::Beam { reply, .. } = &mut self.task {
            drop(reply.take().map(|answer| answer.send(found)));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // What a panicking call held is answered, too, not only what the schedule still knows of.
        if std::thread::panicking() {
            self.fail(LlmError::Run("the engine panicked".to_owned()));
        }
    }
}

impl Sequence {
    /// A sequence without a row, with nothing in it.
    pub fn new(job: Job) -> Self {
        Self { job, row: usize::MAX, past: 0, cached: 0, started: false }
    }

    /// Tokens to read before anything can be said. A score does not read its last token, which is only predicted.
    pub fn to_read(&self) -> usize {
        let all = match self.job.task {
            Task::Score { .. } => self.job.tokens.len() - 1,
            _ => self.job.tokens.len(),
        };
        all - self.past
    }

    /// The token a decode step feeds.
    pub fn last_token(&self) -> u32 {
        match &self.job.task {
            Task::Generate(generating) => generating.tokens.last().copied(),
            _ => None,
        }
        .unwrap_or_default()
    }

    /// Positions, within the next `count` tokens to read, at which logits are wanted.
    pub fn wanted(&self, count: usize) -> std::ops::Range<usize> {
        match self.job.task {
            Task::Score { from, .. } => (from - 1).saturating_sub(self.past).min(count)..count,
            _ if count == self.to_read() => count - 1..count,
            _ => 0..0,
        }
    }

    /// `true` the first time: the sequence has its first result.
    pub fn is_first(&mut self) -> bool {
        !std::mem::replace(&mut self.started, true)
    }

    /// Takes the logits behind its newest token. After an error the job has been answered.
    pub fn grow(&mut self, logits: &[f32]) -> Next {
        let (prompt_tokens, cached_tokens) = (self.job.tokens.len(), self.cached);
        let Task::Generate(generating) = &mut self.job.task else { return Next::Failed };
        match generating.grow(logits) {
            Ok(None) => Next::Continue,
            Ok(Some(finish)) => {
                let written = generating.take_written(finish, prompt_tokens, cached_tokens);
                generating.answer(written);
                Next::Done
            }
            Err(message) => {
                self.job.fail(LlmError::Run(message));
                Next::Failed
            }
        }
    }

    /// Takes the logits in front of tokens to score, [count, vocabulary]; `first` is the index of the first such token.
    pub fn score(&mut self, logits: &[f32], vocabulary: usize, first: usize) -> Next {
        let Task::Score { scores, reply, .. } = &mut self.job.task else { return Next::Failed };
        for (row, &token) in logits.chunks(vocabulary).zip(&self.job.tokens[first..]) {
            let Some(logprob) = log_probability(row, token) else {
                self.job.fail(LlmError::Run(NOT_FINITE.to_owned()));
                return Next::Failed;
            };
            scores.push(Scored { logprob, is_best: greedy(row) == Some(token) });
        }
        if self.past + 1 < self.job.tokens.len() {
            return Next::Read;
        }
        let all = std::mem::take(scores);
        drop(reply.take().map(|answer| answer.send(Ok(all))));
        Next::Done
    }
}

const NOT_FINITE: &str = "the logits are not finite: the model or its precision is broken";

impl Generating {
    /// The next token, and why it was the last, if it was.
    fn grow(&mut self, logits: &[f32]) -> Result<Option<Finish>, String> {
        let token = self.sampler.choose(logits).ok_or(NOT_FINITE)?;
        self.tokens.push(token);
        let logprob = match self.wants_logprobs {
            true => Some(log_probability(logits, token).ok_or(NOT_FINITE)?),
            false => None,
        };
        self.logprobs.extend(logprob);
        let mut text = String::new();
        let mut finish = self.stop_tokens.contains(&token).then_some(Finish::Stop);
        if let Some(tail) = &mut self.tail {
            let grown = tail.push(token)?;
            text = grown.text;
            if grown.stopped {
                finish = Some(Finish::Stop);
            }
            if finish.is_none() && self.tokens.len() >= self.max_new_tokens {
                finish = Some(Finish::Length);
            }
            if finish.is_some() && !grown.stopped {
                text.push_str(&tail.finish()?);
            }
        } else if finish.is_none() && self.tokens.len() >= self.max_new_tokens {
            finish = Some(Finish::Length);
        }
        if let Some(Reply::Stream(pieces)) = &self.reply {
            // A caller that has gone is found by the next look at `is_gone`.
            drop(pieces.send(Piece::Token { token, text, logprob }));
        }
        Ok(finish)
    }

    fn take_written(&mut self, finish: Finish, prompt_tokens: usize, cached_tokens: usize) -> Written {
        Written {
            tokens: std::mem::take(&mut self.tokens),
            logprobs: std::mem::take(&mut self.logprobs),
            text: self.tail.as_ref().map(|tail| tail.shown().to_owned()),
            prompt_tokens,
            cached_tokens,
            finish,
        }
    }

    fn answer(&mut self, written: Written) {
        match self.reply.take() {
            Some(Reply::Whole(answer)) => drop(answer.send(Ok(written))),
            // A stream always has a tail, so the text is there.
            Some(Reply::Stream(pieces)) => drop(pieces.send(Piece::End(Ok(written.into_generation(String::new()))))),
            None => {}
        }
    }
}

impl Written {
    /// With its text; `decoded` is used where the engine did not have to make it.
    pub fn into_generation(self, decoded: String) -> Generation {
        Generation {
            text: self.text.unwrap_or(decoded),
            new_tokens: self.tokens.len(),
            tokens: self.tokens,
            logprobs: self.logprobs,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            finish: self.finish,
        }
    }
}
