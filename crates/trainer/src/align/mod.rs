//! Alignment of a language model with the recommender: GRPO on several rewards.
//!
//! In: a checkpoint (SFT), prompts whose truth is known ([`PromptCase`]), rewards, [`AlignSettings`]. Out: a checkpoint, and what was seen on
//! the way ([`StepFigures`], samples). Caller: the stage `align`.
//!
//! ```text
//! weights ─► sampler (ONNX engine) ─► groups of answers ─► rewards ─► weighting ─► advantages ─► objective ─► step of `fit`
//!    ▲                                                        │  products of gradients ▲ (only where a rule asks)     │
//!    └────────────────────────────────────────────────────────┴───────────────────────┴──────────────────────────────┘
//! ```
//!
//! Method: GRPO (arXiv 2402.03300) and its successors (`objective`), several rewards by a rule of `weighting`, POPO of Taiji
//! (arXiv 2606.03866) among them. Names of metrics are TRL's. A run that is killed goes on and ends with the same weights: roll-outs depend
//! on seed, step and weights, and the rules' states are made again from the rewards of the steps before (`replay.toml`).

mod batch;
mod log;
mod metrics;
mod products;
mod prompts;
mod sampler;
mod settings;
mod start;
mod task;
#[cfg(test)]
mod tests;
mod train;
#[cfg(test)]
mod trl_tests;

pub use metrics::StepFigures;
pub use prompts::PromptCase;
pub use settings::{AlignSettings, CorrectionBy, LossKind, Preset, Truncated};
pub use start::{Start, start_values};
pub use train::{AlignReport, REPORT_FILE, Sources, train};

use crate::data::DataError;
use crate::fit::FitError;
use crate::model::ModelError;
use crate::models::ModelsError;
use crate::nn::FileError;
use crate::objective::ObjectiveError;
use crate::reward::RewardError;
use crate::sft::SftError;
use crate::weighting::WeightingError;
use taiji::llm::LlmError;
use thiserror::Error;

/// Why a policy cannot be aligned.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum AlignError {
    #[error("{field} {message}")]
    Settings { field: &'static str, message: String },
    #[error(
        "the roll-outs of the start have not {group} (2 or more) answers for user {user_id}: raise users of that stage"
    )]
    Start { user_id: String, group: usize },
    #[error("no prompt to roll out: {0}")]
    NoPrompts(String),
    #[error(
        "the rule {rule} needs the rewards under the policy of the start: name a stage of kind roll-outs of the same checkpoint and data in from"
    )]
    NoStart { rule: String },
    #[error(
        "step {step}: log-probabilities of sampler and trainer differ by {mean:.2e} on average, at most {bound:.0e} may be: sampler and \
         trainer do not compute the same model"
    )]
    Gap { step: u64, mean: f64, bound: f64 },
    #[error("step {step}: the sampler: {source}")]
    Sampler { step: u64, source: LlmError },
    #[error("{path} does not fit the run's state: remove the stage's folder to start afresh")]
    Replay { path: String },
    #[error("cannot start {threads} training threads: {message}")]
    Threads { threads: usize, message: String },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Reward(#[from] RewardError),
    #[error(transparent)]
    Weighting(#[from] WeightingError),
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Fit(#[from] FitError),
    #[error(transparent)]
    Sft(#[from] SftError),
    #[error(transparent)]
    Models(#[from] ModelsError),
    #[error(transparent)]
    Llm(#[from] LlmError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
