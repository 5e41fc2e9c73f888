//! The trainer's data: three JSONL files → [`Dataset`] → training examples ([`SftSource`]).
//!
//! In: a folder with `items.jsonl`, `events.jsonl` and, where there are, `users.jsonl` and `labels.jsonl` (each may be `.gz`), made by
//! `synth`, by an importer, or by a user's own export. Out: [`Dataset`], [`SftSource`].
//! Callers: `sft` (examples), `index` (histories), `evaluate`, `semantic_ids`, `generative`, `rank`, `stages`.

mod dataset;
pub mod examples;
mod import;
mod read;
mod record;
mod sampled_labels;
mod shared_words;
mod targets;
mod test_cases;
mod time_split;
mod write;

pub use dataset::{Behaviour, Cut, Dataset, ProfileValue, UserRow};
pub use examples::{ExampleSettings, SftSource, build_examples};
pub use import::{ImportSummary, KuaiRandFiles, KuaiRandSummary, RejectedRow, import_amazon, import_kuairand};
pub(crate) use read::find;
pub(crate) use read::open as open_text;
pub use read::{read_events, read_items, read_labels, read_lines, read_users};
pub use record::{Interest, Label, Latent, NextPurchase, UserRecord};
pub use sampled_labels::{SampledLabelSettings, sampled_labels};
pub(crate) use targets::targets_of;
pub use targets::{DEFAULT_TARGET, Holdout, Split, next_target};
pub use test_cases::{Protocol, TestCase, TestSet, test_cases};
pub(crate) use time_split::{day_of, events_with_split};
pub use write::write_jsonl;

use std::path::Path;
use thiserror::Error;

/// What can be wrong with data files. Every message names file and place.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file cannot be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: String,
        /// From the system.
        source: std::io::Error,
    },
    /// One line is not what it should be.
    #[error("{path} line {line}: {message}")]
    Line {
        /// File.
        path: String,
        /// 1-based.
        line: usize,
        /// Field or column and what would be right.
        message: String,
    },
    /// Reading ended in the midst of a file.
    #[error("{path} line {line}: cannot be read: {source}")]
    Unreadable {
        /// File.
        path: String,
        /// 1-based.
        line: usize,
        /// From the system or the decompressor.
        source: std::io::Error,
    },
    /// More rows are wrong than was allowed.
    #[error(
        "{path}: {bad} of {rows} rows are bad, more than {percent} % (--max-bad-share); the first, line {line}: {reason}"
    )]
    TooManyBadRows {
        /// File.
        path: String,
        /// Rows left out.
        bad: usize,
        /// Rows in all.
        rows: usize,
        /// What was allowed.
        percent: f64,
        /// 1-based, of the first bad row.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder lacks a file.
    #[error("{folder}: has neither {name} nor {name}.gz; make it with `taiji-trainer synth` or `taiji-trainer import`")]
    Missing {
        /// Folder.
        folder: String,
        /// File.
        name: String,
    },
}

impl DataError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataError {
        let path = path.display().to_string();
        move |source| DataError::Io { path, source }
    }

    pub(crate) fn line(path: &Path, line: usize, message: impl Into<String>) -> DataError {
        DataError::Line { path: path.display().to_string(), line, message: message.into() }
    }

    pub(crate) fn unreadable(path: &Path, line: usize, source: std::io::Error) -> DataError {
        DataError::Unreadable { path: path.display().to_string(), line, source }
    }
}
