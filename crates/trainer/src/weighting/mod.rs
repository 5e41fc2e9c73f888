//! How several rewards become one advantage: the rules of 2026 behind one trait, as pure f64 functions.
//!
//! In: a step's [`Batch`] of rewards (reward × prompt × roll-out), and for rules that ask for them ([`Weighting::probe`]) the inner products
//! of each reward's own gradient ([`Products`]). Out: one advantage a roll-out and the weights that made it ([`Combined`]). Callers:
//! `pareto_lab`, trainers of policies.
//!
//! ```text
//! rewards ─► Batch ─┬─ per-reward advantages ─► the caller's backward passes ─► Products ─┐  (only where `probe` asks)
//!                   └───────────────────────────────────────────────────────► Weighting ─┴─► Combined ─► the policy's step
//! ```
//!
//! Standard deviations have ddof 1, in groups and over the batch, as torch's and TRL's. In a group whose rewards do not differ a reward has
//! advantage 0; that is decided for every reward by itself. Every rule ends with one division by the batch's deviation, so that no rule
//! takes longer steps than another. Nothing else is normalised behind a rule's back.

mod adaptive;
mod batch;
mod nash;
mod placebo;
mod popo;
mod products;
mod settings;
mod simplex;
mod sums;
mod telemetry;
#[cfg(test)]
mod tests;

pub use adaptive::{ConflictFilter, CovarianceTargets, MinNorm, PopoLight, Saw};
pub use batch::{Batch, differs, divided_by_deviation};
pub use nash::Nash;
pub use placebo::{GradientNorms, RandomWeights};
pub use popo::{GuardedPopo, Guards, Popo, PopoForm};
pub use products::Products;
pub use settings::{RuleKind, WeightingSettings};
pub use simplex::{limited, min_norm};
pub use sums::{CalibratedSum, Dvao, Gdpo, Sum};
pub use telemetry::{Telemetry, telemetry};

use thiserror::Error;

/// A rule that makes one advantage of several rewards. It may keep a state from step to step.
pub trait Weighting {
    /// Of which advantages it wants the gradients' inner products before [`Self::combine`]; `None`: it needs no backward pass of its own.
    fn probe(&self) -> Option<Probe> {
        None
    }

    /// The advantages of a batch. `products`: of the gradients that [`Self::probe`] asked for, on the same batch; others need not be given.
    fn combine(&mut self, batch: &Batch, products: Option<&Products>) -> Result<Combined, WeightingError>;
}

/// Advantages of one reward alone, [`Batch::probed`], whose policy gradient a rule wants to know. Divergences and rewards of form stay
/// out of that gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Reward minus its group's mean: the gradient has the reward's scale.
    Centred,
    /// That divided by the group's deviation.
    Normalised,
}

/// What a rule made of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Combined {
    /// One a roll-out, in the batch's order; deviation 1 over the batch, or all 0 where nothing differs.
    pub advantages: Vec<f64>,
    /// One a reward, above or equal to 0, sum 1: how the rule shares between them, in its own units (module of the rule).
    pub weights: Vec<f64>,
}

/// Why rewards cannot be combined.
#[derive(Debug, Error, PartialEq)]
#[allow(missing_docs)]
pub enum WeightingError {
    #[error("{what}: {expected} expected, {found} found; give one a reward")]
    Rewards { what: &'static str, expected: usize, found: usize },
    #[error(
        "reward {reward}: {found} values are no groups of {group}; a group needs two roll-outs and all rewards as many"
    )]
    Groups { reward: String, found: usize, group: usize },
    #[error(
        "reward {reward} of roll-out {rollout} is {value}: mend the reward or leave the roll-out out of every reward"
    )]
    NotFinite { reward: String, rollout: usize, value: f64 },
    #[error("{what} must be {range}, got {value}")]
    Setting { what: &'static str, value: f64, range: &'static str },
    #[error("{setting} is not read by this rule: leave it out")]
    Unused { setting: &'static str },
    #[error("this rule needs the gradients' products: ask `probe` and give them to `combine`")]
    NoProducts,
    #[error("a gradient of the {step}th step is no finite number: skip the step")]
    Gradient { step: usize },
}

/// Refuses weights that do not lie in the simplex.
fn checked_weights(weights: &[f64]) -> Result<Vec<f64>, WeightingError> {
    let sum: f64 = weights.iter().sum();
    if let Some(wrong) = weights.iter().find(|weight| !weight.is_finite() || **weight < 0.0) {
        return Err(WeightingError::Setting { what: "a weight", value: *wrong, range: "0 or above" });
    }
    if (sum - 1.0).abs() > 1e-9 {
        return Err(WeightingError::Setting { what: "the weights' sum", value: sum, range: "1" });
    }
    Ok(weights.to_vec())
}

/// Refuses deviations of the start that nothing can be divided by.
fn checked_deviations(deviations: &[f64]) -> Result<Vec<f64>, WeightingError> {
    match deviations.iter().find(|deviation| !deviation.is_finite() || **deviation <= 0.0) {
        Some(wrong) => {
            Err(WeightingError::Setting { what: "a reward's deviation at the start", value: *wrong, range: "above 0" })
        }
        None => Ok(deviations.to_vec()),
    }
}

/// Refuses a list that has not one entry a reward.
fn one_a_reward(what: &'static str, list: &[f64], batch: &Batch) -> Result<(), WeightingError> {
    let (expected, found) = (batch.rewards(), list.len());
    if expected == found { Ok(()) } else { Err(WeightingError::Rewards { what, expected, found }) }
}
