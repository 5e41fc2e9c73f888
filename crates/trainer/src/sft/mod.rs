//! Supervised fine-tuning from scratch: (prompt, completion) texts → tokenizer, decoder, report.
//!
//! In: [`SftExample`]s and [`SftSettings`] (recipe section `[sft]`). Out: a folder with `config.json`, `model.safetensors`,
//! `tokenizer.json` and `sft_report.json`. Called by `pipeline`; `export` reads the folder.
//!
//! ```text
//! texts → tokenizer → packing (batches without padding) → train (loop, validation, resume) → report
//! ```

use std::path::PathBuf;

use thiserror::Error;

use super::model::ModelError;

pub mod packing;
pub mod progress;
mod resume;
pub mod settings;
pub mod tokenizer;
pub mod training;

#[cfg(test)]
mod demo_world;
#[cfg(test)]
mod tests;

pub use progress::{TrainEvent, default_progress};
pub use settings::SftSettings;
pub use tokenizer::TextTokenizer;
pub use training::{LossPoint, SftReport, train};

/// One training text: the model reads `prompt` and is to write `completion`, which ends with `</answer>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftExample {
    /// Rendered prompt, ends with `<think>`.
    pub prompt: String,
    /// Reasoning, `</think>`, `<answer>`, answer, `</answer>`.
    pub completion: String,
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
    /// A saved state belongs to other settings or data.
    #[error("{path} was made with other settings or data: remove it to start afresh")]
    OtherRun {
        /// The state's folder.
        path: PathBuf,
    },
    /// A file of this stage could not be read or written.
    #[error("{path}: {message}")]
    File {
        /// File or folder.
        path: PathBuf,
        /// Cause.
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
}
