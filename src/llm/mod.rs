//! The decoder LLM through ONNX Runtime: prompt in, text, log-probabilities or beams over semantic IDs out.
//!
//! Callers: `refresh` (one [`LlmEngine::generate`] per user, many at once: the engine batches them), `admin` (the OpenAI
//! port, [`LlmEngine::stream`]), `train` (evaluation, index building, scoring). The graph's contract is checked by
//! `graph`; `taiji_export` writes such graphs.

pub mod beam;
mod binding;
pub(crate) mod chat;
pub(crate) mod device;
mod device_beam;
pub(crate) mod generation;
pub(crate) mod graph;
mod measure;
mod mirror;
mod null;
mod onnx;
mod prepare;
mod queue;
mod request;
mod sample;
mod schedule;
mod sequence;
mod text;
pub mod trie;
mod worker;

#[cfg(test)]
mod graph_tests;
#[cfg(test)]
mod tests;

pub use chat::{ServedModel, TemplateError};
pub use generation::GENERATION_FILE;
pub use null::NullLlm;
pub use onnx::{LlmOptions, OnnxLlm};
pub use request::{Beam, BeamRequest, Finish, GenerateRequest, Generation, Piece, Priority, Prompt, Sampling, Scored};

use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::mpsc;

/// What can go wrong at load or per request.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum LlmError {
    /// The model folder cannot be served.
    #[error("llm {path}: {message}")]
    Load {
        /// File or folder.
        path: String,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// A prompt (plus what may be generated) does not fit the graph.
    #[error("prompt of {tokens} tokens does not fit: at most {limit}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Most that fit.
        limit: usize,
    },
    /// The request itself cannot be served; the message names the field.
    #[error("llm request: {0}")]
    Invalid(String),
    /// The queue is full; try again later.
    #[error("llm queue is full ({requests} requests, {tokens} tokens waiting): retry later")]
    Overloaded {
        /// Requests waiting.
        requests: usize,
        /// Tokens they may take, prompts and answers.
        tokens: usize,
    },
    /// The request's deadline passed before its end.
    #[error("llm deadline passed after {new_tokens} tokens")]
    Deadline {
        /// Tokens generated until then.
        new_tokens: usize,
    },
    /// No sequence of the trie is left to continue with.
    #[error("no legal token at level {level}: the trie has no active item here")]
    NoLegalToken {
        /// Level of the trie, from 0.
        level: usize,
    },
    /// The runtime failed on this request.
    #[error("llm run failed: {0}")]
    Run(String),
    /// The engine was shut down.
    #[error("llm engine is shut down")]
    Closed,
}

/// What waits for an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueDepth {
    /// Requests.
    pub requests: usize,
    /// Tokens they may take, prompts and answers.
    pub tokens: usize,
}

/// A decoder that many callers use at once. Implementations queue and batch; the queue is bounded.
#[async_trait]
pub trait LlmEngine: Send + Sync {
    /// Continues one prompt and waits for the end. Dropping the future cancels the request.
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, LlmError>;

    /// Continues one prompt token by token; the last event is [`Piece::End`]. An error here: it was not queued.
    async fn stream(&self, request: GenerateRequest) -> Result<mpsc::UnboundedReceiver<Piece>, LlmError>;

    /// The best sequences of a trie, best first, at most `width`. Dropping the future cancels the request.
    async fn beam(&self, request: BeamRequest) -> Result<Vec<Beam>, LlmError>;

    /// Log-probability of each continuation token, given the prompt and the tokens before it.
    async fn score(&self, prompt: Vec<u32>, continuation: Vec<u32>) -> Result<Vec<Scored>, LlmError>;

    /// Token ids of a text; special tokens are recognised where they are spelled out, none are added.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, LlmError>;

    /// Tokens of a text, as the model counts them.
    fn count_tokens(&self, text: &str) -> usize;

    /// Most tokens a prompt may have if `max_new_tokens` are to be generated.
    fn prompt_limit(&self, max_new_tokens: usize) -> usize;

    /// Model name and hash for provenance.
    fn model_id(&self) -> &str;

    /// What waits now.
    fn queue_depth(&self) -> QueueDepth;

    /// For how long the engine has had work without making a step; `None` without work.
    fn stalled(&self) -> Option<Duration>;

    /// `false` once a panic was caught in the engine: it goes on, but the process should be replaced.
    fn healthy(&self) -> bool;
}
