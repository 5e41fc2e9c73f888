//! What may be claimed of figures measured with a few seeds on many users: pure functions on f64.
//!
//! In: a [`Sample`] (paired differences of two arms, seeds × users), p-values, an experiment's declaration. Out: an [`Interval`]
//! that says which it is, decisions (non-inferiority, Holm, sequential looks), [`Verdict`]s of declared contrasts.
//! Callers: `evaluate` (intervals of a report), experiments. What covers and what does not was measured: docs/results.md.
//!
//! ```text
//! per-user figures ─► Sample ─┬─► interval (t) ──────┬─► Verdict, by the declaration and its looks
//!                             └─► bootstrap (no means)┘
//! ```

mod auc;
mod bootstrap;
mod decide;
mod declaration;
mod distribution;
mod interval;
mod sample;
mod sequential;
mod spearman;
#[cfg(test)]
mod tests;

pub use auc::{auc, auc_by_group};
pub(crate) use bootstrap::quantile;
pub use bootstrap::{Resampling, Weights, bootstrap, percentile_interval, ratio_of_means, resampled_means};
pub use decide::{NonInferiority, holm, non_inferiority};
pub use declaration::{Aim, Contrast, Curve, Experiment, Front, StopRule, Verdict, put_into};
pub use interval::{Interval, Method, interval, seed_means_interval};
pub use sample::Sample;
pub use sequential::{Look, Spending, looks};
pub use spearman::spearman;

use thiserror::Error;

/// Why a figure cannot be given.
#[derive(Debug, Error, PartialEq)]
#[allow(missing_docs)]
pub enum StatsError {
    #[error("{seeds} seeds × {runs} runs × {users} users are not {values} values")]
    Shape { seeds: usize, runs: usize, users: usize, values: usize },
    #[error(
        "samples of {left} and {right} (seeds, users) cannot be paired: measure both arms on the same seeds and users"
    )]
    Unpaired { left: String, right: String },
    #[error("one seed and one user have no interval: measure more of either")]
    TooFew,
    #[error("a value of the sample is not a finite number (user {user} of seed {seed})")]
    NotFinite { seed: usize, user: usize },
    #[error("{what} {value} must be {range}")]
    OutOfRange { what: &'static str, value: f64, range: &'static str },
    #[error("the gain divided by may be 0 ({low:.4} to {high:.4}): a ratio to it says nothing, report the difference")]
    DenominatorTouchesZero { low: f64, high: f64 },
    #[error("looks must rise from above 0 to 1, {least} apart at least: {fractions:?}")]
    Looks { fractions: Vec<f64>, least: f64 },
    #[error("{path}: {message}")]
    Declaration { path: String, message: String },
}

/// `value` if it lies strictly between 0 and 1.
fn proper_share(what: &'static str, value: f64) -> Result<f64, StatsError> {
    match value > 0.0 && value < 1.0 {
        true => Ok(value),
        false => Err(StatsError::OutOfRange { what, value, range: "between 0 and 1" }),
    }
}
