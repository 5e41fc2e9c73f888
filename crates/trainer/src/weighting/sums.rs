//! Rules with fixed weights. Weights are shares of what each rule adds up.

use super::{
    Batch, Combined, Products, Weighting, WeightingError, checked_deviations, checked_weights, divided_by_deviation,
    limited, one_a_reward,
};

/// GRPO on Σ w_k r_k, normalised in its group: the usual way, and the control of the paper on POPO. The louder reward decides.
#[derive(Debug, Clone)]
pub struct Sum {
    weights: Vec<f64>,
}

impl Sum {
    /// `weights`: one a reward, sum 1.
    pub fn new(weights: &[f64]) -> Result<Self, WeightingError> {
        Ok(Sum { weights: checked_weights(weights)? })
    }
}

impl Weighting for Sum {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        one_a_reward("weights", &self.weights, batch)?;
        let advantages = divided_by_deviation(batch.normalised_sum(std::slice::from_ref(&self.weights)));
        Ok(Combined { advantages, weights: self.weights.clone() })
    }
}

/// A = Σ w_k (r_k − group mean) / s_k with s_k the deviation in the groups under the policy of the start, fixed; no division by the
/// group's own deviation, so a noisy or a spent reward is not blown up again.
#[derive(Debug, Clone)]
pub struct CalibratedSum {
    weights: Vec<f64>,
    deviations: Vec<f64>,
}

impl CalibratedSum {
    /// `weights`: sum 1. `deviations`: [`Batch::pooled_deviation`] of the start's roll-outs, the rewards' own units.
    pub fn new(weights: &[f64], deviations: &[f64]) -> Result<Self, WeightingError> {
        Ok(CalibratedSum { weights: checked_weights(weights)?, deviations: checked_deviations(deviations)? })
    }
}

impl Weighting for CalibratedSum {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        one_a_reward("weights", &self.weights, batch)?;
        one_a_reward("deviations", &self.deviations, batch)?;
        let factors: Vec<f64> =
            self.weights.iter().zip(&self.deviations).map(|(weight, deviation)| weight / deviation).collect();
        let advantages = divided_by_deviation(batch.sum_of_centred(&factors));
        Ok(Combined { advantages, weights: self.weights.clone() })
    }
}

/// Each reward normalised in its group, then summed, then whitened (GDPO, arXiv 2601.05242; MO-GRPO, 2509.22047, without the
/// whitening; TRL's `normalize_then_sum`).
#[derive(Debug, Clone)]
pub struct Gdpo {
    weights: Vec<f64>,
}

impl Gdpo {
    /// `weights`: sum 1.
    pub fn new(weights: &[f64]) -> Result<Self, WeightingError> {
        Ok(Gdpo { weights: checked_weights(weights)? })
    }
}

impl Weighting for Gdpo {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        one_a_reward("weights", &self.weights, batch)?;
        let advantages = divided_by_deviation(batch.sum_of_normalised(&self.weights));
        Ok(Combined { advantages, weights: self.weights.clone() })
    }
}

/// A = Σ w_k σ_k A_k / Σ w_l σ_l with σ_k of the group and A_k the normalised advantage (DVAO, arXiv 2605.25604): the direction of the summed
/// rewards, another length in each group. Reported weights: mean of w_k σ_k / Σ w_l σ_l over the groups.
#[derive(Debug, Clone)]
pub struct Dvao {
    weights: Vec<f64>,
}

impl Dvao {
    /// `weights`: sum 1.
    pub fn new(weights: &[f64]) -> Result<Self, WeightingError> {
        Ok(Dvao { weights: checked_weights(weights)? })
    }
}

impl Weighting for Dvao {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        one_a_reward("weights", &self.weights, batch)?;
        let groups = batch.rollouts() / batch.group();
        let mut parts: Vec<Vec<f64>> = vec![Vec::new(); groups];
        for (reward, weight) in self.weights.iter().enumerate() {
            for (part, (_, deviation)) in parts.iter_mut().zip(batch.groups(reward)) {
                part.push(weight * deviation);
            }
        }
        let mut advantages = batch.sum_of_centred(&self.weights);
        for (values, part) in advantages.chunks_mut(batch.group()).zip(&parts) {
            let total: f64 = part.iter().sum();
            // Where no reward differs all advantages are 0 already.
            let factor = if total > 0.0 { 1.0 / total } else { 0.0 };
            values.iter_mut().for_each(|value| *value *= factor);
        }
        let differing: Vec<Vec<f64>> =
            parts.iter().filter(|part| part.iter().any(|one| *one > 0.0)).map(|part| limited(part, 0.0)).collect();
        let mean = |reward: usize| differing.iter().map(|part| part[reward]).sum::<f64>();
        let weights = limited(&(0..batch.rewards()).map(mean).collect::<Vec<f64>>(), 0.0);
        Ok(Combined { advantages: divided_by_deviation(advantages), weights })
    }
}
