//! Generative retrieval: a decoder that writes the semantic ID of the next item (TIGER, arXiv 2305.05065), over the items a user
//! took one after the other.
//!
//! In: a [`Dataset`](crate::data::Dataset) and a [`CodeTable`](crate::semantic_ids::CodeTable). Out: token sequences with their
//! split, a checkpoint, and, from its exported graphs, lists of items by the engine's beam with their figures. Callers: `stages`.
//!
//! ```text
//! dataset, codes → sequences (windows; validation and test cases) → training (a task of `fit`) → checkpoint → export
//!                                                        cases → lists (beam over the trie of codes) → judge
//! ```

mod judge;
mod lists;
mod sequences;
mod settings;
mod training;

#[cfg(test)]
mod tests;

pub use judge::{Judged, ListFigure, SplitFigures, judge};
pub use lists::Recommender;
pub use sequences::{Case, SequenceSettings, Sequences, cut};
pub use settings::GenerativeSettings;
pub use training::{GenerativeReport, train};

use crate::fit::FitError;
use crate::model::ModelError;
use crate::nn::FileError;
use crate::semantic_ids::CodeTableError;
use crate::sft::SftError;
use crate::stats::StatsError;
use taiji::llm::LlmError;
use thiserror::Error;

/// What can go wrong between items and lists.
#[derive(Debug, Error)]
pub enum GenerativeError {
    /// A setting is out of range.
    #[error("{field} {message}")]
    Settings {
        /// Setting at fault.
        field: &'static str,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// Nobody has three items of the action.
    #[error(
        "no user has an item to train on: {users} users, each keeps the last two of its items for validation and test"
    )]
    NoSequences {
        /// Users of the data.
        users: usize,
    },
    /// The threads cannot be started.
    #[error("cannot start {threads} threads: {message}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// Cause.
        message: String,
    },
    /// The codes are wrong.
    #[error(transparent)]
    Codes(#[from] CodeTableError),
    /// The decoder failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Fitting failed.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// The tokenizer of the codes failed.
    #[error(transparent)]
    Tokenizer(#[from] SftError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The engine failed.
    #[error(transparent)]
    Llm(#[from] LlmError),
    /// Figures could not be made.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// candle failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
