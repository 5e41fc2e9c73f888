//! The clipped policy objective of PPO and GRPO on tokens, with a divergence from a reference policy.
//!
//! Sources: arXiv 1707.06347 eq. 7 (clip), arXiv 2402.03300 eq. 3 (GRPO), arXiv 2503.14476 (an upper bound of its own).

use super::divergence::KlEstimator;
use super::{Evaluation, Objective, ObjectiveError, check_normaliser, same_rows};

/// The ratio of new to old probability counts between 1 - low and 1 + high.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// Room below 1.
    pub low: f64,
    /// Room above 1; more of it than below ("clip-higher") lets rare tokens rise.
    pub high: f64,
}

/// A divergence from a reference policy, added to an objective.
#[derive(Debug, Clone)]
pub struct KlPenalty {
    /// Factor of the divergence.
    pub strength: f64,
    /// Estimator.
    pub estimator: KlEstimator,
    /// The reference's log-likelihood of every row.
    pub reference: Vec<f64>,
}

/// Σ weight·( -min(ρ·A, clip(ρ)·A) + strength·ρ·kl ), ρ = e^(log-likelihood - old).
///
/// ρ before the divergence corrects for who sampled the token and is held constant: with k2 the gradient is then that of
/// KL(policy ‖ reference) off policy, too (arXiv 2506.09477).
#[derive(Debug, Clone)]
pub struct ClippedPolicy {
    /// Factor of every row, all normalisation included; see [`response_weights`].
    pub weights: Vec<f64>,
    /// Advantage A of every row.
    pub advantages: Vec<f64>,
    /// Log-likelihoods under the policy that sampled.
    pub old: Vec<f64>,
    /// Bounds of the ratio.
    pub clip: Clip,
    /// Divergence, if any.
    pub penalty: Option<KlPenalty>,
}

/// -min(ρ·A, clip(ρ)·A) of one token and its derivative with respect to `policy`: -ρ·A, or 0 where the clip holds.
pub fn clipped_surrogate(policy: f64, old: f64, advantage: f64, clip: Clip) -> (f64, f64) {
    let ratio = (policy - old).exp();
    let free = ratio * advantage;
    let clipped = ratio.clamp(1.0 - clip.low, 1.0 + clip.high) * advantage;
    if clipped < free { (-clipped, 0.0) } else { (-free, -free) }
}

/// Weights of GRPO: every response counts the same, every token of it 1/length; all divided by `normaliser`, which is the
/// number of responses. One weight per row, in the order of the lengths.
pub fn response_weights(lengths: &[usize], normaliser: f64) -> Result<Vec<f64>, ObjectiveError> {
    let normaliser = check_normaliser(normaliser)?;
    Ok(lengths.iter().flat_map(|&length| std::iter::repeat_n(1.0 / (length as f64 * normaliser), length)).collect())
}

impl Objective for ClippedPolicy {
    fn evaluate(&self, log_likelihoods: &[f64]) -> Result<Evaluation, ObjectiveError> {
        for (field, column) in [("weights", &self.weights), ("advantages", &self.advantages), ("old", &self.old)] {
            same_rows(field, column, log_likelihoods)?;
        }
        if let Some(penalty) = &self.penalty {
            same_rows("reference", &penalty.reference, log_likelihoods)?;
        }
        let mut total = 0.0;
        let mut derivatives = Vec::with_capacity(log_likelihoods.len());
        for (row, &policy) in log_likelihoods.iter().enumerate() {
            let (mut value, mut slope) = clipped_surrogate(policy, self.old[row], self.advantages[row], self.clip);
            if let Some(penalty) = &self.penalty {
                let factor = penalty.strength * (policy - self.old[row]).exp();
                let (divergence, pull) = penalty.estimator.at(policy, penalty.reference[row]);
                value += factor * divergence;
                slope += factor * pull;
            }
            total += self.weights[row] * value;
            derivatives.push(self.weights[row] * slope);
        }
        Ok(Evaluation { value: total, derivatives })
    }
}
