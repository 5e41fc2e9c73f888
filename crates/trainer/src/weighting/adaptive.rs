//! Rules whose weights follow the batch, without POPO's mirror descent.

use super::{
    Batch, Combined, Probe, Products, Weighting, WeightingError, divided_by_deviation, limited, min_norm, telemetry,
};

/// POPO-light: in every group w_k ∝ σ_k / (|μ_k| + ε), GRPO on Σ w_k r_k (Taiji, arXiv 2606.03866, eq. 7, as published). Reported weights:
/// mean over the groups in which any reward differs.
#[derive(Debug, Clone, Copy)]
pub struct PopoLight {
    /// Added to the mean, in the rewards' units.
    pub epsilon: f64,
}

impl Default for PopoLight {
    fn default() -> Self {
        PopoLight { epsilon: 1e-3 }
    }
}

impl Weighting for PopoLight {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        let mut spreads: Vec<Vec<f64>> = vec![Vec::new(); batch.rollouts() / batch.group()];
        for reward in 0..batch.rewards() {
            for (spread, (mean, deviation)) in spreads.iter_mut().zip(batch.groups(reward)) {
                spread.push(deviation / (mean.abs() + self.epsilon));
            }
        }
        let rows: Vec<Vec<f64>> = spreads.iter().map(|spread| limited(spread, 0.0)).collect();
        let differing = || rows.iter().zip(&spreads).filter(|(_, spread)| spread.iter().any(|one| *one > 0.0));
        let mean = |reward: usize| differing().map(|(row, _)| row[reward]).sum::<f64>();
        let weights = limited(&(0..batch.rewards()).map(mean).collect::<Vec<f64>>(), 0.0);
        Ok(Combined { advantages: divided_by_deviation(batch.normalised_sum(&rows)), weights })
    }
}

/// SAW on advantages: w_k ∝ σ_k / (|μ_k| + ε) over the whole batch, on normalised advantages (arXiv 2606.07705). A shift of a reward moves
/// its weight.
#[derive(Debug, Clone, Copy)]
pub struct Saw {
    /// Added to the mean, in the rewards' units.
    pub epsilon: f64,
}

impl Default for Saw {
    fn default() -> Self {
        Saw { epsilon: 1e-6 }
    }
}

impl Weighting for Saw {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        let spread = |reward: usize| batch.whole_deviation(reward) / (batch.mean(reward).abs() + self.epsilon);
        let weights = limited(&(0..batch.rewards()).map(spread).collect::<Vec<f64>>(), 0.0);
        let advantages = divided_by_deviation(batch.sum_of_normalised(&weights));
        Ok(Combined { advantages, weights })
    }
}

/// Weights of the shortest convex combination of the rewards' gradients (MGDA), on normalised advantages: a direction that hurts no reward.
/// Its residual and that one's noise floor: [`Products::residual`].
#[derive(Debug, Clone, Copy, Default)]
pub struct MinNorm {
    step: usize,
}

impl Weighting for MinNorm {
    fn probe(&self) -> Option<Probe> {
        Some(Probe::Normalised)
    }

    fn combine(&mut self, batch: &Batch, products: Option<&Products>) -> Result<Combined, WeightingError> {
        self.step += 1;
        let products = products.ok_or(WeightingError::NoProducts)?.checked(batch.rewards(), self.step)?;
        let weights = min_norm(&products.whole);
        let advantages = divided_by_deviation(batch.sum_of_normalised(&weights));
        Ok(Combined { advantages, weights })
    }
}

/// GDPO without roll-outs on which normalised advantages differ in sign, each group weighted by the share of its roll-outs that is kept,
/// the kept ones whitened among themselves (GD²PO, hard filter: arXiv 2606.16771, its code at f1ad765). Equal weights.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConflictFilter;

impl ConflictFilter {
    /// An advantage of less has no sign.
    const SIGN: f64 = 1e-8;
}

impl Weighting for ConflictFilter {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        let weights = limited(&vec![1.0; batch.rewards()], 0.0);
        let normalised: Vec<Vec<f64>> = (0..batch.rewards()).map(|reward| batch.normalised(reward)).collect();
        let any = |at: usize, holds: fn(f64) -> bool| normalised.iter().any(|advantages| holds(advantages[at]));
        let agrees = |at: usize| !(any(at, |one| one > Self::SIGN) && any(at, |one| one < -Self::SIGN));
        let kept: Vec<bool> = (0..batch.rollouts()).map(agrees).collect();
        let mut advantages = batch.sum_of_normalised(&weights);
        for (values, kept) in advantages.chunks_mut(batch.group()).zip(kept.chunks(batch.group())) {
            let share = kept.iter().filter(|one| **one).count() as f64 / kept.len() as f64;
            values.iter_mut().for_each(|value| *value *= share);
        }
        let chosen: Vec<f64> = advantages.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(one, _)| *one).collect();
        let mean = chosen.iter().sum::<f64>() / chosen.len().max(1) as f64;
        let scaled = divided_by_deviation(chosen.iter().map(|one| one - mean).collect());
        let mut scaled = scaled.into_iter();
        let advantages = kept.iter().map(|kept| if *kept { scaled.next().unwrap_or(0.0) } else { 0.0 }).collect();
        Ok(Combined { advantages, weights })
    }
}

/// CTWA (arXiv 2602.06869, its code at e387891): an objective improves if its reward correlates with the advantage; the weight of one whose
/// running correlation is below the target is raised, ln λ_k ← ln λ_k + rate · max(0, target − correlation). GRPO on Σ λ_k r_k; the
/// correlation is the code's option beside the covariance, since it has no unit. Weights: λ_k, their sum set to 1.
#[derive(Debug, Clone)]
pub struct CovarianceTargets {
    target: f64,
    rate: f64,
    decay: f64,
    logarithms: Vec<f64>,
    running: Option<Vec<f64>>,
}

impl CovarianceTargets {
    /// `weights` at the beginning; `target`: a correlation, 0 to 1. Rate .05 and running mean .9 are the code's.
    pub fn new(weights: &[f64], target: f64) -> Result<Self, WeightingError> {
        if !(0.0..=1.0).contains(&target) {
            return Err(WeightingError::Setting { what: "target", value: target, range: "0 to 1" });
        }
        let logarithms = super::checked_weights(weights)?.iter().map(|weight| weight.ln()).collect();
        Ok(CovarianceTargets { target, rate: 0.05, decay: 0.9, logarithms, running: None })
    }
}

impl Weighting for CovarianceTargets {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        super::one_a_reward("weights", &self.logarithms, batch)?;
        let weights = super::simplex::softmax(&self.logarithms);
        let advantages = divided_by_deviation(batch.normalised_sum(std::slice::from_ref(&weights)));
        let found = telemetry(batch, &advantages).correlations;
        let decay = self.decay;
        let running = match self.running.take() {
            None => found,
            Some(before) => before.iter().zip(&found).map(|(old, new)| decay * old + (1.0 - decay) * new).collect(),
        };
        for (logarithm, correlation) in self.logarithms.iter_mut().zip(&running) {
            *logarithm += self.rate * (self.target - correlation).max(0.0);
        }
        self.running = Some(running);
        Ok(Combined { advantages, weights })
    }
}
