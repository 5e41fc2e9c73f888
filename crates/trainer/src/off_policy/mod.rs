//! What a policy would have earned, out of what another one logged.
//!
//! In: a log of shown items with the chance that the logging policy gave them ([`Log`]), and the policy that is asked about. Out: its value by
//! three estimators with 95 % intervals ([`Estimates`]), and how much of the log speaks of it (effective size, largest weight). Callers:
//! `taiji-trainer off-policy`.
//!
//! * IPS (Horvitz and Thompson 1952): mean of w·r, w = target / logging chance. Unbiased where logging gives a chance to all that the
//!   target shows.
//! * SNIPS (Swaminathan and Joachims, NeurIPS 2015): Σ w·r / Σ w. A little bias, less variance.
//! * DR (Dudík et al., ICML 2011): a model of the reward under the target, plus w times what the model leaves over; the model is fitted on
//!   the other folds of the log, so that no record is explained by itself.

mod estimate;
mod log;
mod table;

#[cfg(test)]
mod tests;

pub use estimate::{Estimates, estimate};
pub use log::{Log, Record, Shape};
pub use table::random_policy;

use crate::data::DataError;
use crate::stats::StatsError;
use thiserror::Error;

/// Why a log says nothing.
#[derive(Debug, Error)]
pub enum OffPolicyError {
    /// Too few records, or a reward that never varies.
    #[error("{message}")]
    Nothing {
        /// What is missing.
        message: String,
    },
    /// A file, or a line of one.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Intervals.
    #[error(transparent)]
    Stats(#[from] StatsError),
}
