//! What a training step minimises, as pure f64 functions of token log-likelihoods.
//!
//! In: the log-likelihood (nats) of every learned row of a batch, in the batch's order. Out: a value to minimise and its
//! derivative with respect to each of them. Caller: `model`, between its two passes over the rows.
//!
//! ```text
//! model, pass 1: rows → log-likelihoods → Objective → derivatives → model, pass 2: gradients
//! ```
//!
//! Each objective says what it divides by: nothing is normalised behind its back, so a policy gradient keeps the scale of its
//! advantages. The functions of single tokens and groups are public, for a laboratory without a decoder to call the same ones.

use thiserror::Error;

mod cross_entropy;
mod divergence;
mod policy;
mod preference;

pub use cross_entropy::CrossEntropy;
pub use divergence::{KlEstimator, k2, k3};
pub use policy::{
    Clip, Correction, GroupPolicy, KlPenalty, KlRatio, Normaliser, RatioLevel, Sampled, Surrogate, clipped_surrogate,
    response_weights,
};
pub use preference::{Preference, SoftmaxDpo, SoftmaxDpoTerm, softmax_dpo};

/// Turns the log-likelihoods of a batch's rows into a value to minimise.
pub trait Objective {
    /// Value and derivative; one log-likelihood (nats) per learned row, in the batch's order.
    fn evaluate(&self, log_likelihoods: &[f64]) -> Result<Evaluation, ObjectiveError>;

    /// The derivatives, where they do not depend on the log-likelihoods: the model then makes its logits once whatever their
    /// size, and values and gradients in one pass.
    fn fixed_derivatives(&self) -> Option<&[f64]> {
        None
    }

    /// ε of label smoothing: [`Self::evaluate`] is given the log-likelihood of the distribution (1 - ε)·target + ε·uniform
    /// instead of the target's.
    fn label_smoothing(&self) -> f64 {
        0.0
    }
}

/// What an objective says about log-likelihoods.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Value to minimise.
    pub value: f64,
    /// ∂value/∂log-likelihood of each row.
    pub derivatives: Vec<f64>,
}

/// Why an objective cannot be set up or evaluated.
#[derive(Debug, Error)]
pub enum ObjectiveError {
    /// The batch has other rows than the objective was made for.
    #[error("objective: {field} is made for {expected} rows, the batch has {found}: make it from the same batch")]
    Rows {
        /// Part of the objective.
        field: &'static str,
        /// Rows it holds.
        expected: usize,
        /// Rows of the batch.
        found: usize,
    },
    /// A setting makes no objective.
    #[error("objective: {field} {message}")]
    Setting {
        /// Setting at fault.
        field: &'static str,
        /// What is wrong and how to mend it.
        message: String,
    },
}

/// Refuses a column of another length than the batch's rows.
fn same_rows(field: &'static str, column: &[f64], log_likelihoods: &[f64]) -> Result<(), ObjectiveError> {
    let (expected, found) = (column.len(), log_likelihoods.len());
    if expected != found {
        return Err(ObjectiveError::Rows { field, expected, found });
    }
    Ok(())
}

/// Refuses a normaliser that is not a positive number.
fn check_normaliser(normaliser: f64) -> Result<f64, ObjectiveError> {
    if normaliser > 0.0 && normaliser.is_finite() {
        return Ok(normaliser);
    }
    Err(ObjectiveError::Setting { field: "normaliser", message: format!("must be positive, got {normaliser}") })
}

#[cfg(test)]
mod tests;
