//! A ranker: P(click) and P(conversion | click) of items shown to a user, from what was known before they were shown.
//!
//! In: a [`Dataset`](crate::data::Dataset) and the labels of its impressions. Out: a trained [`RankModel`] and its figures on later
//! impressions. The ranker is the judge of what taiji's features are worth, and the ID reward of the alignment. Callers: `stages`.
//!
//! ```text
//! dataset, labels → points (a user, a time, the impressions of the session that follows) → inputs (numbers, by vocabularies of the
//! training points) → model (DIN, token mixer, OnePiece) → training (a task of `fit`) → metrics (AUC, GAUC, log-loss, calibration), catalogue (NDCG@10 among all items);
//! graph (ONNX) → session (parity, latency)
//! ```

mod batch;
mod catalogue;
mod factors;
mod file;
mod graph;
mod inputs;
mod interest;
mod layer;
mod log;
mod metrics;
mod mixer;
mod mixer_graph;
mod model;
mod onepiece;
mod onepiece_graph;
mod points;
mod session;
mod settings;
mod training;

#[cfg(test)]
mod tests;

pub use catalogue::{PointNdcg, catalogue_ndcg, popularity};
pub use file::Ranker;
pub use inputs::{FeatureShape, Features, Inputs, Vocabulary};
pub use log::{FeatureLine, FeatureLog};
pub use metrics::{Bucket, Scored, TargetFigures, figures};
pub use mixer::MixerSettings;
pub use model::RankModel;
pub use onepiece::OnePieceSettings;
pub use points::{Impression, LeftOut, Point, points, sessions};
pub use session::{Latency, latency};
pub use settings::{Arch, RankSettings};
pub use training::{RankReport, score, train};

use crate::data::DataError;
use crate::fit::FitError;
use crate::nn::FileError;
use taiji::onnx::runtime::RuntimeError;
use taiji_export::ExportError;
use thiserror::Error;

/// What can go wrong between impressions and a ranker.
#[derive(Debug, Error)]
pub enum RankError {
    /// A setting is out of range.
    #[error("{field} {message}")]
    Settings {
        /// Setting at fault.
        field: &'static str,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// A part of the points is empty.
    #[error("no {part} points: {points} points in all, cut by time; give more data, or other shares")]
    NoPoints {
        /// `training`, `validation` or `test`.
        part: &'static str,
        /// Points in all.
        points: usize,
    },
    /// Figures by activity need a user in each slice.
    #[error("test points of {users} users cannot be told apart in {slices} slices of activity; give more data")]
    FewUsers {
        /// Users tested on.
        users: usize,
        /// Slices.
        slices: usize,
    },
    /// A label that is always, or never, given cannot be learned or judged.
    #[error("among the {part} impressions {label} is constant: {positive} of {count}; give more data")]
    ConstantLabel {
        /// `training`, `test`, or a slice of the latter.
        part: &'static str,
        /// `clicked` or `converted`.
        label: &'static str,
        /// Impressions with it.
        positive: usize,
        /// Impressions.
        count: usize,
    },
    /// Features were made after the impressions that they are to explain.
    #[error(
        "features of user {user} are of {made_ms}, not before the impressions of {shown_ms}: join them as of the impression"
    )]
    FromTheFuture {
        /// Whose.
        user: String,
        /// Time of the features.
        made_ms: i64,
        /// Time of the first impression.
        shown_ms: i64,
    },
    /// The threads cannot be started.
    #[error("cannot start {threads} threads: {message}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// Cause.
        message: String,
    },
    /// The graph does not say what the model says.
    #[error(
        "chances of the ONNX graph and of the model differ by {most:.2e}, at most {bound:.0e} is allowed: a fault of the export, report it"
    )]
    Parity {
        /// Greatest difference.
        most: f64,
        /// Allowed.
        bound: f64,
    },
    /// The graph could not be written.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// ONNX Runtime is not there.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The graph cannot be opened or run.
    #[error("the ranker's graph does not run: {0}")]
    Session(#[from] ort::Error),
    /// Data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Fitting.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// candle.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
