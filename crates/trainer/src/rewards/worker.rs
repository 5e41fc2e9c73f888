//! The thread that values answers: all requests that wait, up to a round's answers, in one call of the rewards.
//!
//! Rewards keep counts and caches and are asked one after the other; the encoder takes more texts at once sooner than the same ones apart.

use super::metrics::Metrics;
use crate::align::PromptCase;
use crate::reward::{Answered, RewardSet};
use crate::sft::{SftError, TextTokenizer};
use crate::simulate::CategoryGrounder;
use std::sync::Arc;
use std::time::Instant;
use taiji::event::Item;
use taiji::prompt::{ParsedAnswer, PromptMode, parse};
use tokio::sync::{mpsc, oneshot};

/// An answer that passed the checks of a request.
pub(super) struct Answer {
    /// Place among the prompts.
    pub(super) prompt: usize,
    pub(super) written: Written,
    pub(super) mode: PromptMode,
}

/// What was answered.
pub(super) enum Written {
    Tokens(Vec<u32>),
    Text(String),
}

/// A request's answers and who waits for what they are worth.
pub(super) struct Job {
    pub(super) answers: Vec<Answer>,
    pub(super) reply: oneshot::Sender<Result<Valued, String>>,
}

/// What a request's answers are worth.
#[derive(Debug, Default)]
pub(super) struct Valued {
    /// `[reward][answer]`
    pub(super) rewards: Vec<Vec<Option<f64>>>,
    pub(super) format: Vec<bool>,
    pub(super) items: Vec<Option<String>>,
}

/// What the thread owns.
pub(super) struct Worker {
    pub(super) prompts: Arc<Vec<PromptCase>>,
    pub(super) tokenizer: TextTokenizer,
    pub(super) rewards: RewardSet,
    pub(super) items: Vec<Item>,
    pub(super) grounder: CategoryGrounder,
    /// Most answers of a round.
    pub(super) most: usize,
    pub(super) metrics: Arc<Metrics>,
}

impl Worker {
    /// Until nobody can ask any more.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| jobs.blocking_recv()) {
            let mut answers = first.answers.len();
            let mut round = vec![first];
            while let Ok(job) = jobs.try_recv() {
                if answers + job.answers.len() > self.most {
                    next = Some(job);
                    break;
                }
                answers += job.answers.len();
                round.push(job);
            }
            // Who has hung up has most likely asked again.
            round.retain(|job| !job.reply.is_closed());
            if !round.is_empty() {
                self.value(round);
            }
        }
    }

    fn value(&mut self, round: Vec<Job>) {
        let started = Instant::now();
        let answers: Vec<&Answer> = round.iter().flat_map(|job| &job.answers).collect();
        let together = self.values(&answers);
        self.metrics.round(started.elapsed(), &self.rewards);
        match together {
            Ok(mut all) => {
                self.metrics.valued(all.format.len());
                for job in round {
                    let count = job.answers.len();
                    let rewards = all.rewards.iter_mut().map(|of| of.drain(..count).collect()).collect();
                    let (format, items) = (all.format.drain(..count).collect(), all.items.drain(..count).collect());
                    // Who no longer waits has hung up.
                    let _ = job.reply.send(Ok(Valued { rewards, format, items }));
                }
            }
            // One request's answer is at fault: the others' are worth what they are worth.
            Err(_) if round.len() > 1 => round.into_iter().for_each(|job| self.value(vec![job])),
            Err(message) => round.into_iter().for_each(|job| drop(job.reply.send(Err(message.clone())))),
        }
    }

    fn values(&mut self, answers: &[&Answer]) -> Result<Valued, String> {
        let texts = answers.iter().map(|answer| self.text(&answer.written)).collect::<Result<Vec<_>, SftError>>();
        let texts: Vec<(String, usize)> = texts.map_err(|error| error.to_string())?;
        let parsed: Vec<ParsedAnswer> =
            answers.iter().zip(&texts).map(|(answer, (text, _))| parse(text, answer.mode)).collect();
        let answered: Vec<Answered<'_>> = answers
            .iter()
            .zip(&texts)
            .zip(&parsed)
            .map(|((answer, (text, tokens)), parsed)| Answered {
                user_id: &self.prompts[answer.prompt].user_id,
                truth: self.prompts[answer.prompt].truth.as_ref(),
                text,
                parsed,
                tokens: *tokens,
            })
            .collect();
        let rewards = self.rewards.each(&answered).map_err(|error| error.to_string())?;
        let item = |one: &ParsedAnswer| self.grounder.ground(&one.answer).map(|place| self.items[place].id.clone());
        let (format, items) = (parsed.iter().map(|one| one.format_ok).collect(), parsed.iter().map(item).collect());
        Ok(Valued { rewards, format, items })
    }

    /// An answer as text, and its tokens.
    fn text(&self, written: &Written) -> Result<(String, usize), SftError> {
        match written {
            Written::Tokens(tokens) => Ok((self.tokenizer.decode(tokens)?, tokens.len())),
            Written::Text(text) => Ok((text.clone(), self.tokenizer.encode(text)?.len())),
        }
    }
}
