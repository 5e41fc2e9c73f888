//! Pareto Optimal Policy Optimization (Taiji, arXiv 2606.03866, eq. 5 and 6): mirror descent on the weights.
//!
//! I_k = ⟨g_k, Σ_j g_j⟩ with g_k the policy gradient of reward k alone; w_k ← w_k · exp(η/μ · I_k), divided by the sum. It is the rule of DoGE
//! (arXiv 2310.15393) and of dynamic reward weighting (2509.11452). For two rewards I_1 − I_2 = ‖g_1‖² − ‖g_2‖²: the alignment cancels,
//! and weight goes to the longer gradient, the batch's noise included. What the paper leaves open: η/μ, and whether the g_k belong
//! to rewards or to normalised advantages ([`PopoForm`]).

use super::simplex::softmax;
use super::{
    Batch, Combined, Probe, Products, Weighting, WeightingError, checked_weights, divided_by_deviation, limited,
    one_a_reward,
};
use std::collections::VecDeque;

/// What the weights weigh, and so whose gradients are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PopoForm {
    /// Rewards, as the paper writes it: GRPO on Σ w_k r_k, gradients of r_k − group mean.
    Rewards,
    /// Normalised advantages, so that the policy's gradient is Σ w_k g_k, as the derivation has it.
    Advantages,
}

/// POPO as published: no guard.
#[derive(Debug, Clone)]
pub struct Popo {
    form: PopoForm,
    rate: f64,
    logarithms: Vec<f64>,
    step: usize,
}

impl Popo {
    /// `weights` at the beginning; `rate`: η/μ, per unit of ‖g‖².
    pub fn new(form: PopoForm, weights: &[f64], rate: f64) -> Result<Self, WeightingError> {
        let logarithms = checked_weights(weights)?.iter().map(|weight| weight.ln()).collect();
        Ok(Popo { form, rate: positive("rate", rate)?, logarithms, step: 0 })
    }
}

impl Weighting for Popo {
    fn probe(&self) -> Option<Probe> {
        Some(match self.form {
            PopoForm::Rewards => Probe::Centred,
            PopoForm::Advantages => Probe::Normalised,
        })
    }

    fn combine(&mut self, batch: &Batch, products: Option<&Products>) -> Result<Combined, WeightingError> {
        one_a_reward("weights", &self.logarithms, batch)?;
        self.step += 1;
        let products = products.ok_or(WeightingError::NoProducts)?.checked(batch.rewards(), self.step)?;
        let indicators = products.indicators();
        self.logarithms.iter_mut().zip(&indicators).for_each(|(weight, indicator)| *weight += self.rate * indicator);
        let weights = softmax(&self.logarithms);
        let advantages = match self.form {
            PopoForm::Rewards => batch.normalised_sum(std::slice::from_ref(&weights)),
            PopoForm::Advantages => batch.sum_of_normalised(&weights),
        };
        Ok(Combined { advantages: divided_by_deviation(advantages), weights })
    }
}

/// How far POPO is held back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guards {
    /// η/μ, of an indicator without unit.
    pub rate: f64,
    /// A gradient counts as at most so many times the running median of its norm.
    pub cap: f64,
    /// Norms that the median is of.
    pub window: usize,
    /// No weight below.
    pub floor: f64,
    /// Of the running means of indicators and norms.
    pub decay: f64,
    /// Steps between two updates of the weights.
    pub interval: usize,
    /// −1 turns the rule round: the placebo that takes weight from the longer gradient.
    pub sign: f64,
}

impl Default for Guards {
    fn default() -> Self {
        Guards { rate: 0.1, cap: 2.0, window: 25, floor: 0.1, decay: 0.9, interval: 5, sign: 1.0 }
    }
}

/// POPO on normalised advantages, with guards: indicators across half batches (symmetrised, so for two rewards their difference is exactly
/// ⟨g_1ᴬ,g_1ᴮ⟩ − ⟨g_2ᴬ,g_2ᴮ⟩), divided by the running mean of ‖g_i‖‖g_j‖ so that η/μ means something, a cap, a floor, running means, an interval.
#[derive(Debug, Clone)]
pub struct GuardedPopo {
    guards: Guards,
    weights: Vec<f64>,
    norms: Vec<VecDeque<f64>>,
    scale: Option<f64>,
    running: Option<Vec<f64>>,
    step: usize,
}

impl GuardedPopo {
    /// `weights` at the beginning.
    pub fn new(weights: &[f64], guards: Guards) -> Result<Self, WeightingError> {
        positive("rate", guards.rate)?;
        positive("cap", guards.cap)?;
        if guards.interval == 0 || guards.window == 0 {
            return Err(WeightingError::Setting { what: "interval and window", value: 0.0, range: "1 or above" });
        }
        if !(0.0..=1.0 / weights.len() as f64).contains(&guards.floor) {
            return Err(WeightingError::Setting { what: "floor", value: guards.floor, range: "0 to 1/rewards" });
        }
        let weights = checked_weights(weights)?;
        let norms = vec![VecDeque::new(); weights.len()];
        Ok(GuardedPopo { guards, weights, norms, scale: None, running: None, step: 0 })
    }

    /// How much of each gradient counts, and the norms after that.
    fn capped(&mut self, products: &Products) -> (Vec<f64>, Vec<f64>) {
        let (mut factors, mut norms) = (Vec::new(), Vec::new());
        for (reward, seen) in self.norms.iter_mut().enumerate() {
            let norm = products.norm(reward);
            let limit = self.guards.cap * median(seen).unwrap_or(norm);
            let factor = if norm > limit { limit / norm } else { 1.0 };
            seen.push_back(norm);
            if seen.len() > self.guards.window {
                seen.pop_front();
            }
            factors.push(factor);
            norms.push(factor * norm);
        }
        (factors, norms)
    }

    /// This step's indicators, without a unit.
    fn indicators(&mut self, products: &Products) -> Vec<f64> {
        let (factors, norms) = self.capped(products);
        let count = norms.len();
        let pairs = (0..count).flat_map(|one| (0..one).map(move |other| (one, other)));
        let product: f64 = pairs.map(|(one, other)| norms[one] * norms[other]).sum();
        let product = product / (count * (count - 1) / 2).max(1) as f64;
        let decay = self.guards.decay;
        let scale = self.scale.map_or(product, |before| decay * before + (1.0 - decay) * product);
        self.scale = Some(scale);
        let row = |reward: usize| -> f64 {
            let products = products.across[reward].iter().zip(&factors);
            factors[reward] * products.map(|(product, factor)| product * factor).sum::<f64>()
        };
        let unit = if scale > 0.0 { self.guards.sign / scale } else { 0.0 };
        (0..count).map(|reward| row(reward) * unit).collect()
    }
}

impl Weighting for GuardedPopo {
    fn probe(&self) -> Option<Probe> {
        Some(Probe::Normalised)
    }

    fn combine(&mut self, batch: &Batch, products: Option<&Products>) -> Result<Combined, WeightingError> {
        one_a_reward("weights", &self.weights, batch)?;
        self.step += 1;
        let products = products.ok_or(WeightingError::NoProducts)?.checked(batch.rewards(), self.step)?;
        let found = self.indicators(products);
        let decay = self.guards.decay;
        let running: Vec<f64> = match self.running.take() {
            None => found,
            Some(before) => before.iter().zip(&found).map(|(old, new)| decay * old + (1.0 - decay) * new).collect(),
        };
        if self.step.is_multiple_of(self.guards.interval) {
            let moved = self.weights.iter().zip(&running).map(|(weight, one)| weight.ln() + self.guards.rate * one);
            self.weights = limited(&softmax(&moved.collect::<Vec<f64>>()), self.guards.floor);
        }
        self.running = Some(running);
        let advantages = divided_by_deviation(batch.sum_of_normalised(&self.weights));
        Ok(Combined { advantages, weights: self.weights.clone() })
    }
}

fn median(values: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { 0.5 * (upper + sorted[sorted.len() / 2 - 1]) })
}

fn positive(what: &'static str, value: f64) -> Result<f64, WeightingError> {
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(WeightingError::Setting { what, value, range: "above 0" }),
    }
}
