//! A language model behind an OpenAI-compatible endpoint as the teacher: chat completions, asked once each.
//!
//! In: [`Endpoint`] (where, which model, how fast), [`Origin`]s. Out: texts in order, what they cost. Replies are kept in a file as they come,
//! under the hash of what was asked, so that a run that was killed asks nothing twice. Caller: the stage `reason`.
//!
//! ```text
//! Origin ─ question ─► key ─┬─ asked before ─► cache ─────────────┬─► texts
//!                           └─ gate (rate) ─► call (retries) ─► cache ┘
//! ```

mod cache;
mod call;
mod gate;
#[cfg(test)]
mod tests;

use super::Origin;
use crate::progress::Progress;
use cache::{Cache, Reply};
use call::Caller;
use gate::Gate;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use taiji::prompt::{THINK_OPEN, answer_text};
use thiserror::Error;
use tokio::task::JoinSet;

/// What the teacher is told to do, unless the settings say otherwise: to explain from the evidence, as if it predicted.
const INSTRUCTION: &str = "You explain purchases. You are shown a customer's profile, searches and history, newest first, and what the \
customer bought next. Explain in two to four sentences why this customer buys it. Use only evidence of the profile, the searches and the \
history, and write as somebody would who predicts the purchase and does not know it. Never say that it was given to you and never write \
its title. The last sentence names the category path that follows. Write <think>, the explanation, </think>, and nothing else.";

/// Why an endpoint cannot be the teacher. What was answered before is kept.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum EndpointError {
    #[error("teacher.key_env: the environment has no {0}")]
    NoKey(String),
    #[error("teacher {url}: {message}")]
    Client { url: String, message: String },
    #[error("teacher {url}: status {status}: {body}")]
    Refused { url: String, status: u16, body: String },
    #[error(
        "teacher {url}: answered {kind} instead of JSON ({body}): give the base of an OpenAI-compatible API, mostly …/v1"
    )]
    NotJson { url: String, kind: String, body: String },
    #[error("teacher {url}: the answer has no choices[0].message.content: {body}")]
    Shape { url: String, body: String },
    #[error("teacher {url}: gave up after {attempts} attempts; the last: {last}. Run again to go on where it stopped")]
    GaveUp { url: String, attempts: u32, last: String },
    #[error("{path}: {message}")]
    Cache { path: String, message: String },
}

/// Where, whom, how. What stands behind `concurrency` does not decide what is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Base of the API, such as `http://127.0.0.1:8082/v1`.
    pub url: String,
    /// As the endpoint calls it.
    pub model: String,
    /// Of sampling.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// Of sampling.
    #[serde(default = "default_top_p")]
    pub top_p: f64,
    /// Of one reply.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// What the teacher is told to do.
    #[serde(default = "default_instruction")]
    pub instruction: String,
    /// Requests at once.
    #[serde(default = "default_concurrency")]
    pub concurrency: usize,
    /// Most requests a minute, 0 = no limit.
    #[serde(default)]
    pub requests_per_minute: f64,
    /// Seconds that one request may take.
    #[serde(default = "default_timeout")]
    pub timeout_s: f64,
    /// Attempts of one request, for time-outs, 429 and 5xx.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// Longest pause between two attempts, seconds; an endpoint that asks for more gets this.
    #[serde(default = "default_pause")]
    pub longest_pause_s: f64,
    /// Environment variable that holds the key [none].
    #[serde(default)]
    pub key_env: Option<String>,
    /// Of a million tokens, prompt and reply.
    #[serde(default)]
    pub price: [f64; 2],
}

fn default_temperature() -> f64 {
    0.8
}

fn default_top_p() -> f64 {
    0.95
}

fn default_max_tokens() -> usize {
    256
}

fn default_instruction() -> String {
    INSTRUCTION.to_string()
}

fn default_concurrency() -> usize {
    4
}

fn default_timeout() -> f64 {
    120.0
}

fn default_attempts() -> u32 {
    6
}

fn default_pause() -> f64 {
    60.0
}

/// Settings that do not decide what is written.
pub const INDIFFERENT: [&str; 7] =
    ["concurrency", "requests_per_minute", "timeout_s", "attempts", "longest_pause_s", "key_env", "price"];

/// What was spent on the replies that are used, earlier runs included.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Replies.
    pub replies: usize,
    /// Of them asked by this run.
    pub asked_now: usize,
    /// As the endpoint counts them.
    pub prompt_tokens: u64,
    /// As the endpoint counts them.
    pub completion_tokens: u64,
    /// By `price`.
    pub cost: f64,
}

impl Endpoint {
    /// Refuses what cannot work: key and message.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(self.url.starts_with("http://") || self.url.starts_with("https://")) {
            return Err(("teacher.url", format!("must begin with http:// or https://, got {:?}", self.url)));
        }
        for (key, value) in [("teacher.concurrency", self.concurrency), ("teacher.attempts", self.attempts as usize)] {
            if value == 0 {
                return Err((key, "must be positive".to_string()));
            }
        }
        for (key, value) in [("teacher.timeout_s", self.timeout_s), ("teacher.longest_pause_s", self.longest_pause_s)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err((key, format!("must be positive, got {value}")));
            }
        }
        match self.requests_per_minute >= 0.0 {
            true => Ok(()),
            false => Err(("teacher.requests_per_minute", "must not be negative".to_string())),
        }
    }

    /// Asks `k` times for each prompt; texts by prompt, in order. `folder` keeps the replies.
    pub fn ask(
        &self,
        origins: &[Origin],
        k: usize,
        max_title_chars: usize,
        folder: &Path,
        progress: &Progress,
    ) -> Result<(Vec<Vec<String>>, Spent), EndpointError> {
        let failed =
            |error: std::io::Error| EndpointError::Client { url: self.url.clone(), message: error.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let questions: Vec<Value> = origins
            .iter()
            .flat_map(|origin| (0..k).map(move |draw| self.question(origin, draw, max_title_chars)))
            .collect();
        let mut cache = Cache::open(folder)?;
        let keys: Vec<String> = questions.iter().map(|question| cache::key(&self.url, question)).collect();
        let missing: Vec<(String, Value)> =
            keys.iter().cloned().zip(questions).filter(|(key, _)| cache.get(key).is_none()).collect();
        let asked_now = missing.len();
        if asked_now > 0 {
            progress.say(&format!("{asked_now} of {} replies are asked of {}", keys.len(), self.url));
            cache = runtime.block_on(self.ask_all(missing, cache, progress))?;
        }
        cache.close()?;
        let mut spent = Spent { asked_now, ..Spent::default() };
        let mut texts = Vec::with_capacity(keys.len());
        for key in &keys {
            // Each is there: what was missing was asked, or the run has ended.
            let Some(reply) = cache.get(key) else { continue };
            spent.replies += 1;
            spent.prompt_tokens += reply.prompt_tokens;
            spent.completion_tokens += reply.completion_tokens;
            texts.push(reply.text.clone());
        }
        spent.cost =
            (spent.prompt_tokens as f64 * self.price[0] + spent.completion_tokens as f64 * self.price[1]) / 1e6;
        Ok((texts.chunks(k).map(<[String]>::to_vec).collect(), spent))
    }

    /// P_rupr: role, profile, searches and history as the student sees them, and the true next item.
    fn question(&self, origin: &Origin, draw: usize, max_title_chars: usize) -> Value {
        let seen = origin.prompt.trim_end().trim_end_matches(THINK_OPEN).trim_end();
        let bought = answer_text(&origin.categories, &origin.title, max_title_chars);
        json!({
            "model": self.model,
            "messages": [
                { "role": "system", "content": self.instruction },
                { "role": "user", "content": format!("{seen}\nbought next: {bought}") },
            ],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": draw,
        })
    }

    async fn ask_all(
        &self,
        missing: Vec<(String, Value)>,
        cache: Cache,
        progress: &Progress,
    ) -> Result<Cache, EndpointError> {
        let caller = Arc::new(Caller::new(self)?);
        let gate = Arc::new(Gate::new(self.requests_per_minute));
        let cache = Arc::new(Mutex::new(cache));
        let mut bar = progress.bar("replies", missing.len() as u64);
        let mut waiting = missing.into_iter();
        let mut running: JoinSet<Result<(), EndpointError>> = JoinSet::new();
        loop {
            while running.len() < self.concurrency {
                let Some((key, question)) = waiting.next() else { break };
                let (caller, gate, cache) = (caller.clone(), gate.clone(), cache.clone());
                running.spawn(async move {
                    let reply: Reply = caller.call(&question, &gate).await?;
                    cache.lock().unwrap_or_else(PoisonError::into_inner).put(key, reply)
                });
            }
            let Some(ended) = running.join_next().await else { break };
            // The first failure ends the run and those under way with it; what came before is kept.
            ended.map_err(|error| EndpointError::Client { url: self.url.clone(), message: error.to_string() })??;
            bar.add(1);
        }
        drop(bar);
        let message = "a request still holds the cache".to_string();
        let cache = Arc::into_inner(cache).ok_or(EndpointError::Client { url: self.url.clone(), message })?;
        Ok(cache.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_s)
    }

    fn longest_pause(&self) -> Duration {
        Duration::from_secs_f64(self.longest_pause_s)
    }
}
