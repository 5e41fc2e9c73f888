//! Ours: ascends the product of the gains over the start (Nash's bargaining solution with the start as the point of disagreement; for one
//! policy the hypervolume above it).
//!
//! ∇ Σ w_k ln(gain_k) = Σ w_k ∇r_k / gain_k, so A = Σ w_k λ_k (r_k − group mean) with λ_k = 1 / max(ĝ_k, .1 s_k): ĝ_k is the running gain in
//! mean reward over the start's on the same prompts, s_k the deviation in the groups at the start. The λ_k s_k are brought to sum 1 and
//! kept from .1 to .9. No backward pass of its own; noise around a reward does not move its mean, and a reward that is spent keeps its
//! gain, so neither moves the weights. Nothing is tuned.

use super::{
    Batch, Combined, Products, Weighting, WeightingError, checked_deviations, checked_weights, divided_by_deviation,
    limited, one_a_reward,
};

/// Running mean of the gains.
const DECAY: f64 = 0.9;
/// A gain counts as at least so many deviations: at the beginning all gains are noise.
const LEAST_GAIN: f64 = 0.1;
/// No share below.
const FLOOR: f64 = 0.1;

/// See the module. Reported weights: w_k λ_k s_k, brought to sum 1.
#[derive(Debug, Clone)]
pub struct Nash {
    weights: Vec<f64>,
    deviations: Vec<f64>,
    gains: Vec<f64>,
}

impl Nash {
    /// `weights`: the parties' power, sum 1. `deviations`: [`Batch::pooled_deviation`] of the start's roll-outs.
    pub fn new(weights: &[f64], deviations: &[f64]) -> Result<Self, WeightingError> {
        let (weights, deviations) = (checked_weights(weights)?, checked_deviations(deviations)?);
        let gains = vec![0.0; weights.len()];
        Ok(Nash { weights, deviations, gains })
    }
}

impl Weighting for Nash {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        one_a_reward("weights", &self.weights, batch)?;
        one_a_reward("deviations", &self.deviations, batch)?;
        for (reward, gain) in self.gains.iter_mut().enumerate() {
            *gain = DECAY * *gain + (1.0 - DECAY) * batch.gain(reward);
        }
        let share = |(gain, deviation): (&f64, &f64)| deviation / gain.max(LEAST_GAIN * deviation);
        let shares: Vec<f64> = self.gains.iter().zip(&self.deviations).map(share).collect();
        let powers: Vec<f64> =
            limited(&shares, FLOOR).iter().zip(&self.weights).map(|(share, weight)| share * weight).collect();
        let factors: Vec<f64> =
            powers.iter().zip(&self.deviations).map(|(power, deviation)| power / deviation).collect();
        let advantages = divided_by_deviation(batch.sum_of_centred(&factors));
        Ok(Combined { advantages, weights: limited(&powers, 0.0) })
    }
}
