//! Supervised fine-tuning, from scratch or from a checkpoint: (prompt, completion) texts → tokenizer, decoder, report.
//!
//! In: [`SftExample`]s and [`SftSettings`] (recipe section `[sft]`). Out: a folder with `config.json`, `model.safetensors`,
//! `tokenizer.json` and `sft_report.json`, with adapters also `adapter/`. Called by `stages`; `export` reads the folder.
//!
//! ```text
//! texts → tokenizer → packing (batches without padding) → train (a task of `fit`) → report
//! ```

use std::path::PathBuf;

use taiji::prompt::{PromptMode, parse};
use thiserror::Error;

use super::fit::FitError;
use super::model::ModelError;
use super::nn::FileError;

pub mod packing;
pub mod samples;
pub mod settings;
mod start;
pub(crate) mod step;
pub mod tokenizer;
pub mod training;

#[cfg(test)]
mod demo_world;
#[cfg(test)]
mod sanity_tests;
#[cfg(test)]
mod tests;

pub use super::fit::{TrainEvent, training_progress};
pub use settings::SftSettings;
pub(crate) use start::keep_companions;
pub use tokenizer::TextTokenizer;
pub use training::{ADAPTER_FOLDER, SftReport, train};

/// One training text: the model reads `prompt` and is to write `completion`, which ends with `</answer>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftExample {
    /// Rendered prompt, which ends as its mode says.
    pub prompt: String,
    /// Reasoning, `</think>`, `<answer>`, answer, `</answer>`; the answer with its tags alone where the prompt asks for no reasoning.
    pub completion: String,
}

impl SftExample {
    /// What serving would embed if the model wrote this.
    pub fn embedding_text(&self) -> String {
        parse(&self.completion, PromptMode::of(&self.prompt)).embedding_text()
    }
}

/// What can go wrong in this stage.
#[derive(Debug, Error)]
pub enum SftError {
    /// A setting is out of range.
    #[error("[sft] {field} {message}")]
    Settings {
        /// Setting at fault.
        field: &'static str,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// There is nothing to train on.
    #[error("no usable training example: {0}")]
    NoExamples(String),
    /// The tokenizer could not be trained, read or written.
    #[error("tokenizer {path}: {message}")]
    Tokenizer {
        /// File, or `training`.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The thread pool could not be made.
    #[error("cannot start {threads} training threads: {message}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// Cause.
        message: String,
    },
    /// The decoder failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Fitting failed.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// A file of this stage could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// candle failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
