//! Groups of answers with their advantages → batches of a token budget, and the objective on each.

use super::sampler::RollOut;
use super::{AlignError, AlignSettings};
use crate::model::{Decoder, TrainBatch};
use crate::objective::{GroupPolicy, KlPenalty, KlRatio, Sampled};

/// A prompt with what was answered and learned from.
pub(super) struct Group<'a> {
    pub(super) prompt: &'a [u32],
    /// Answers, each with its advantage.
    pub(super) answers: Vec<(&'a RollOut, f64)>,
}

/// What one backward pass looks at.
pub(super) struct GroupBatch {
    pub(super) batch: TrainBatch,
    /// Rows of each answer.
    pub(super) lengths: Vec<usize>,
    /// Of each row, before the division.
    pub(super) weights: Vec<f64>,
    /// What the sum is divided by; adds up over the batches of a step.
    pub(super) divisor: f64,
    /// Of each row.
    pub(super) advantages: Vec<f64>,
    /// Of each row, as the sampler says.
    pub(super) sampled: Vec<f64>,
    /// Of each row under the policy of the start, where it is asked.
    pub(super) reference: Option<Vec<f64>>,
}

impl GroupBatch {
    /// Lays groups out, as many in one batch as `settings.batch_tokens` allow, at least one.
    pub(super) fn all(
        groups: &[Group<'_>],
        settings: &AlignSettings,
        longest: usize,
        reference: Option<&Decoder>,
    ) -> Result<Vec<Self>, AlignError> {
        let cost = |group: &Group<'_>| {
            group.prompt.len() + group.answers.iter().map(|(answer, _)| answer.tokens.len()).sum::<usize>()
        };
        let mut batches = Vec::new();
        let (mut part, mut tokens) = (Vec::new(), 0);
        for group in groups.iter().filter(|group| !group.answers.is_empty()) {
            if !part.is_empty() && tokens + cost(group) > settings.batch_tokens {
                batches.push(Self::of(&std::mem::take(&mut part), settings, longest, reference)?);
                tokens = 0;
            }
            tokens += cost(group);
            part.push(group);
        }
        if !part.is_empty() {
            batches.push(Self::of(&part, settings, longest, reference)?);
        }
        Ok(batches)
    }

    fn of(
        groups: &[&Group<'_>],
        settings: &AlignSettings,
        longest: usize,
        reference: Option<&Decoder>,
    ) -> Result<Self, AlignError> {
        let mut batch = TrainBatch::default();
        let (mut lengths, mut advantages, mut sampled) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            let answers = group.answers.iter().map(|(answer, _)| answer.tokens.as_slice());
            batch.push_group(group.prompt, answers, 0.0)?;
            for (answer, advantage) in &group.answers {
                lengths.push(answer.tokens.len());
                advantages.extend(std::iter::repeat_n(*advantage, answer.tokens.len()));
                sampled.extend_from_slice(&answer.log_likelihoods);
            }
        }
        let counted = vec![true; lengths.len()];
        let (weights, divisor) = settings.normaliser(longest).weights(&lengths, &counted);
        let reference = reference.map(|reference| reference.log_likelihoods(&batch)).transpose()?;
        Ok(Self { batch, lengths, weights, divisor, advantages, sampled, reference })
    }

    /// The objective of the step, with the divergence where there is a reference.
    pub(super) fn objective(&self, settings: &AlignSettings) -> GroupPolicy {
        let stale = settings.sync_every > 1;
        GroupPolicy {
            weights: self.weights.iter().map(|weight| weight / self.divisor).collect(),
            advantages: self.advantages.clone(),
            lengths: self.lengths.clone(),
            old: stale.then(|| self.sampled.clone()),
            sampled: settings
                .correction()
                .map(|correction| Sampled { log_likelihoods: self.sampled.clone(), correction }),
            surrogate: settings.surrogate(),
            level: settings.level(),
            penalty: self.reference.as_ref().map(|reference| KlPenalty {
                strength: settings.kl(),
                estimator: settings.estimator(),
                ratio: KlRatio::Held,
                reference: reference.clone(),
            }),
        }
    }
}
