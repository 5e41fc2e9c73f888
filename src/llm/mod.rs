//! The decoder LLM through ONNX Runtime: prompt text in, reasoning and answer text out.
//!
//! Callers: `refresh` (one [`LlmEngine::generate`] per user, many at once: the engine batches them), `train` (evaluation,
//! index building, scoring). The graph's contract is checked by `graph`; `train::export` writes such graphs.

pub(crate) mod batch;
pub mod beam;
pub(crate) mod folder;
pub(crate) mod graph;
mod null;
mod onnx;
pub(crate) mod pool;
mod queue;
#[allow(dead_code)] // until the new front is merged
mod request;
pub mod runtime;
mod sample;
pub mod trie;
mod worker;

#[cfg(test)]
mod tests;

pub use folder::{GENERATION_FILE, GRAPH_FILE};
pub use null::NullLlm;
pub use onnx::{LlmOptions, OnnxLlm};
pub use request::{Beam, BeamRequest};
pub use worker::LlmStats;

use async_trait::async_trait;
use thiserror::Error;

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
    #[error("llm queue is full ({depth} waiting): retry later")]
    Overloaded {
        /// Requests waiting.
        depth: usize,
    },
    /// No sequence of the trie is left to continue with.
    #[error("no legal token at level {level}: the trie has no active item here")]
    NoLegalToken {
        /// Level of the trie, from 0.
        level: usize,
    },
    /// The runtime failed on this batch.
    #[error("llm run failed: {0}")]
    Run(String),
    /// The engine was shut down.
    #[error("llm engine is shut down")]
    Closed,
}

/// One prompt.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Full prompt text, special tokens spelled out.
    pub prompt: String,
    /// Upper bound of generated tokens.
    pub max_new_tokens: usize,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token (`</answer>`, end of text) was produced.
    Stop,
    /// The token budget ran out.
    Length,
}

/// What the LLM wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Generated text, special tokens kept (the parser needs the tags), the stop token included.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub new_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Sum of the chosen tokens' log-probabilities (natural log).
    pub logprob: f64,
}

/// A decoder that many callers use at once. Implementations queue and batch; the queue is bounded.
#[async_trait]
pub trait LlmEngine: Send + Sync {
    /// Generates for one prompt, greedily.
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, LlmError>;

    /// Tokens of a text, as the model counts them.
    fn count_tokens(&self, text: &str) -> usize;

    /// Most tokens a prompt may have if `max_new_tokens` are to be generated.
    fn prompt_limit(&self, max_new_tokens: usize) -> usize;

    /// Model name and hash for provenance.
    fn model_id(&self) -> &str;

    /// Requests waiting now.
    fn queue_depth(&self) -> usize;
}
