//! A stand-in for the decoder: canned, well-formed answers without a model, for `--engine null` and tests.
//!
//! In: any prompt. Out: reasoning and answer decided by the prompt's hash alone. Whoever uses it must flag the features.

use async_trait::async_trait;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Beam, BeamRequest, Finish, GenerateRequest, Generation, LlmEngine, LlmError, Piece, Prompt, QueueDepth, Scored,
};
use crate::prompt::{PromptMode, completion};
use crate::telemetry::{Progress, Work};

const INTERESTS: [&str; 16] = [
    "running shoes",
    "coffee beans",
    "wireless headphones",
    "board games",
    "garden tools",
    "winter jackets",
    "mystery novels",
    "camping gear",
    "skin care",
    "guitar strings",
    "dog food",
    "desk lamps",
    "yoga mats",
    "phone cases",
    "baking tins",
    "model trains",
];

/// The engine without a model; every text has any length it likes.
#[derive(Debug)]
pub struct NullLlm {
    latency: Duration,
    rows: Semaphore,
    /// Answers after which no further one comes; `None` = all come.
    hangs_after: Option<u64>,
    asked: AtomicU64,
    progress: Arc<Progress>,
    /// What never ends: like a device that hangs, it goes on when its caller has gone.
    hung: Mutex<Vec<Work>>,
}

impl Default for NullLlm {
    fn default() -> NullLlm {
        NullLlm::new(Duration::ZERO, Semaphore::MAX_PERMITS)
    }
}

impl NullLlm {
    /// An engine each of whose answers takes `latency`, `rows` of them at once: a device of known speed.
    pub fn new(latency: Duration, rows: usize) -> NullLlm {
        NullLlm {
            latency,
            rows: Semaphore::new(rows),
            hangs_after: None,
            asked: AtomicU64::new(0),
            progress: Arc::default(),
            hung: Mutex::default(),
        }
    }

    /// The same engine, but no answer comes after the first `answers`: for tests of what a hung device does to others.
    pub fn hanging_after(self, answers: u64) -> NullLlm {
        NullLlm { hangs_after: Some(answers), ..self }
    }

    async fn take_time(&self) {
        let work = self.progress.begin();
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        if self.hangs_after.is_some_and(|answers| asked >= answers) {
            self.hung.lock().push(work);
            return std::future::pending().await;
        }
        if self.latency.is_zero() {
            return;
        }
        // The semaphore is never closed, so there is always a permit in the end.
        let _row = self.rows.acquire().await;
        tokio::time::sleep(self.latency).await;
    }

    /// The answer to a prompt; after a reasoning that is closed already the answer alone.
    pub fn answer(prompt: &str) -> String {
        let hash = xxh3_64(prompt.as_bytes());
        let pick = |shift: u32| INTERESTS[(hash >> shift) as usize % INTERESTS.len()];
        let (first, second) = (pick(0), pick(8));
        completion(&format!("recent interest in {first}"), &format!("{first}, {second}"), PromptMode::of(prompt))
    }
}

impl NullLlm {
    /// What it answers; a text longer than asked for is cut by words, as tokens are counted here.
    fn generation(&self, request: &GenerateRequest) -> Result<Generation, LlmError> {
        let Prompt::Text(prompt) = &request.prompt else {
            return Err(LlmError::Invalid("the canned engine has no token ids: send the prompt as text".to_owned()));
        };
        let answer = Self::answer(prompt);
        let words: Vec<&str> = answer.split_inclusive(' ').take(request.max_new_tokens).collect();
        let text = words.concat();
        let finish = if text.len() == answer.len() { Finish::Stop } else { Finish::Length };
        Ok(Generation {
            prompt_tokens: self.count_tokens(prompt),
            new_tokens: words.len(),
            text,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            cached_tokens: 0,
            finish,
        })
    }
}

#[async_trait]
impl LlmEngine for NullLlm {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, LlmError> {
        self.take_time().await;
        self.generation(&request)
    }

    async fn stream(&self, request: GenerateRequest) -> Result<mpsc::UnboundedReceiver<Piece>, LlmError> {
        self.take_time().await;
        let generation = self.generation(&request)?;
        let (pieces, receiver) = mpsc::unbounded_channel();
        for word in generation.text.split_inclusive(' ') {
            drop(pieces.send(Piece::Token { token: 0, text: word.to_owned(), logprob: None }));
        }
        drop(pieces.send(Piece::End(Ok(generation))));
        Ok(receiver)
    }

    async fn beam(&self, _request: BeamRequest) -> Result<Vec<Beam>, LlmError> {
        Err(LlmError::Invalid("the canned engine has no beams: serve with --engine onnx".to_owned()))
    }

    async fn score(&self, _prompt: Vec<u32>, _continuation: Vec<u32>) -> Result<Vec<Scored>, LlmError> {
        Err(LlmError::Invalid("the canned engine has no scores: serve with --engine onnx".to_owned()))
    }

    fn tokenize(&self, _text: &str) -> Result<Vec<u32>, LlmError> {
        Err(LlmError::Invalid("the canned engine has no token ids: serve with --engine onnx".to_owned()))
    }

    fn count_tokens(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn prompt_limit(&self, _max_new_tokens: usize) -> usize {
        usize::MAX
    }

    fn model_id(&self) -> &str {
        "null"
    }

    fn queue_depth(&self) -> QueueDepth {
        QueueDepth::default()
    }

    fn stalled(&self) -> Option<Duration> {
        self.progress.stalled()
    }

    fn healthy(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::prompt::parse;

    #[test]
    fn answers_are_well_formed_and_decided_by_the_prompt() {
        let answer = NullLlm::answer("user likes tea<think>");
        assert_eq!(answer, NullLlm::answer("user likes tea<think>"));
        assert!(parse(&answer, PromptMode::Think).format_ok, "{answer}");
        let at_once = NullLlm::answer("user likes tea<think></think>");
        assert!(parse(&at_once, PromptMode::NoThink).format_ok, "{at_once}");
        let different: std::collections::BTreeSet<String> = (0..50).map(|n| NullLlm::answer(&n.to_string())).collect();
        assert!(different.len() > 30);
    }
    #[tokio::test]
    async fn answers_take_their_time_and_only_so_many_go_at_once() {
        let engine = NullLlm::new(Duration::from_millis(20), 2);
        let started = std::time::Instant::now();
        let answers = (0..6).map(|n| engine.generate(GenerateRequest::new(format!("prompt {n}"), 50)));
        let answers = futures::future::join_all(answers).await;
        assert!(answers.iter().all(Result::is_ok));
        assert!(started.elapsed() >= Duration::from_millis(60), "six answers, two at once, 20 ms each");
    }
}
