//! What a step says about itself, under TRL's names where TRL has one.

use super::AlignSettings;
use super::batch::GroupBatch;
use super::sampler::RollOut;
use crate::objective::GroupPolicy;
use crate::weighting::{Batch, Combined, Products, differs, telemetry};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Figures of one step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepFigures {
    /// From 1.
    pub step: u64,
    /// By name.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}

impl StepFigures {
    pub(super) fn put(&mut self, name: impl Into<String>, value: f64) {
        // A share of nothing is no figure.
        if value.is_finite() {
            self.values.insert(name.into(), value);
        }
    }

    /// A figure.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }

    /// Lengths of the answers.
    pub(super) fn answers(&mut self, answers: &[RollOut]) {
        let lengths =
            |ended: bool| answers.iter().filter(move |one| !ended || !one.truncated).map(|one| one.tokens.len() as f64);
        for (name, ended) in [("", false), ("terminated_", true)] {
            self.put(format!("completions/mean_{name}length"), mean(lengths(ended)));
            self.put(format!("completions/min_{name}length"), lengths(ended).fold(f64::INFINITY, f64::min));
            self.put(format!("completions/max_{name}length"), lengths(ended).fold(f64::NEG_INFINITY, f64::max));
        }
        self.put("completions/clipped_ratio", mean(answers.iter().map(|answer| f64::from(u8::from(answer.truncated)))));
    }

    /// Rewards and what became of them. `names` in the batch's order; `start`: deviations at the start, where known.
    pub(super) fn rewards(
        &mut self,
        names: &[&str],
        batch: &Batch<'_>,
        values: &[Vec<f64>],
        combined: &Combined,
        start: Option<&[f64]>,
    ) {
        let seen = telemetry(batch, &combined.advantages);
        for (reward, name) in names.iter().enumerate() {
            self.put(format!("rewards/{name}/mean"), batch.mean(reward));
            self.put(format!("rewards/{name}/std"), deviation(&values[reward]));
            self.put(format!("frac_reward_zero_std/{name}"), seen.without_deviation[reward]);
            self.put(format!("covariance/{name}"), seen.covariances[reward]);
            self.put(format!("weights/{name}"), combined.weights[reward]);
            if let Some(start) = start {
                self.put(format!("gains/{name}"), batch.gain(reward));
                self.put(format!("std_to_start/{name}"), seen.deviations[reward] / start[reward]);
            }
        }
        // By equal weights, whatever the rule makes of them: so that it moves when rewards do.
        let equal = 1.0 / names.len() as f64;
        let group = batch.group();
        let dull = |at: usize| values.iter().all(|of| !differs(&of[at * group..][..group]));
        let groups = batch.rollouts() / group;
        self.put("frac_reward_zero_std", (0..groups).filter(|at| dull(*at)).count() as f64 / groups as f64);
        let sum = |rollout: usize| values.iter().map(|of| equal * of[rollout]).sum::<f64>();
        let sums: Vec<f64> = (0..batch.rollouts()).map(sum).collect();
        self.put("reward", mean(sums.iter().copied()));
        self.put("reward_std", mean(sums.chunks(group).map(deviation)));
        self.put("conflict_share", seen.conflicts);
    }

    /// Gradients of the rewards, where a rule asked for them.
    pub(super) fn products(&mut self, names: &[&str], products: &Products, weights: &[f64]) {
        for (reward, indicator) in products.indicators().into_iter().enumerate() {
            self.put(format!("indicator/{}", names[reward]), indicator);
            self.put(format!("gradient_norm/{}", names[reward]), products.norm(reward));
        }
        if names.len() == 2 {
            self.put("gradient_cosine", products.cosine(0, 1));
        }
        let (residual, noise) = products.residual(weights);
        self.put("pareto_residual", residual);
        self.put("pareto_residual_noise", noise);
    }
}

/// What backward passes of a step saw of likelihoods; sums over tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct Likelihoods {
    tokens: f64,
    surprise: f64,
    gap: f64,
    most_gap: f64,
    k3: f64,
    kl: f64,
    low: f64,
    high: f64,
    raw_ratio: f64,
    cut_ratio: f64,
    least_ratio: f64,
    most_ratio: f64,
    changed: f64,
}

impl Likelihoods {
    /// Adds a batch: its objective and the log-likelihoods before the step.
    pub(super) fn add(&mut self, batch: &GroupBatch, policy: &GroupPolicy, found: &[f64], settings: &AlignSettings) {
        let (cut, raw) = policy.corrections(found);
        let ratios = policy.log_ratios(found);
        if self.tokens == 0.0 {
            (self.least_ratio, self.most_ratio) = (f64::INFINITY, f64::NEG_INFINITY);
        }
        for (row, log_likelihood) in found.iter().enumerate() {
            let gap = log_likelihood - batch.sampled[row];
            self.tokens += 1.0;
            self.surprise -= log_likelihood;
            self.gap += gap.abs();
            self.most_gap = self.most_gap.max(gap.abs());
            self.k3 += (-gap).exp_m1() + gap;
            let [low, high] = policy.surrogate.cuts(ratios[row], policy.advantages[row]);
            self.low += f64::from(u8::from(low));
            self.high += f64::from(u8::from(high));
            self.raw_ratio += raw[row];
            self.cut_ratio += cut[row];
            self.least_ratio = self.least_ratio.min(cut[row]);
            self.most_ratio = self.most_ratio.max(cut[row]);
            self.changed += f64::from(u8::from(cut[row] != raw[row]));
        }
        if let Some(reference) = &batch.reference {
            self.kl += found
                .iter()
                .zip(reference)
                .map(|(policy, base)| settings.estimator().at(*policy, *base).0)
                .sum::<f64>();
        }
    }

    /// Mean |difference| of sampler and trainer, nats a token.
    pub(super) fn mean_gap(&self) -> f64 {
        self.gap / self.tokens.max(1.0)
    }

    /// `synced`: roll-outs were of the present weights, so that a gap is the engine's; later it is mostly the policy's own way since.
    pub(super) fn report(&self, figures: &mut StepFigures, has_reference: bool, synced: bool) {
        let share = |sum: f64| sum / self.tokens;
        // An estimate by the drawn tokens; TRL's is the mean over all tokens of the vocabulary.
        figures.put("entropy", share(self.surprise));
        if has_reference {
            figures.put("kl", share(self.kl));
        }
        figures.put("clip_ratio/low_mean", share(self.low));
        figures.put("clip_ratio/high_mean", share(self.high));
        figures.put("clip_ratio/region_mean", share(self.low + self.high));
        if !synced {
            figures.put("policy_since_sync/logp_difference/mean", self.mean_gap());
            figures.put("policy_since_sync/logp_difference/max", self.most_gap);
            figures.put("policy_since_sync/kl", share(self.k3));
            return;
        }
        figures.put("sampling/sampling_logp_difference/mean", self.mean_gap());
        figures.put("sampling/sampling_logp_difference/max", self.most_gap);
        figures.put("sampling/kl", share(self.k3));
        figures.put("sampling/importance_sampling_ratio/min", self.least_ratio);
        figures.put("sampling/importance_sampling_ratio/mean", share(self.cut_ratio));
        figures.put("sampling/importance_sampling_ratio/max", self.most_ratio);
        figures.put("sampling/importance_sampling_ratio/raw_mean", share(self.raw_ratio));
        figures.put("sampling/importance_sampling_ratio/changed", share(self.changed));
    }
}

pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

fn deviation(values: &[f64]) -> f64 {
    let centre = mean(values.iter().copied());
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}
