//! Inner products of the rewards' own policy gradients: for rules that ask for them.

use super::batch::{Group, GroupBatch};
use super::{AlignError, AlignSettings};
use crate::fit::{Gradients, ParameterSet};
use crate::model::Decoder;
use crate::weighting::Products;

/// A step's groups once a reward, with the advantages of that reward alone.
pub(super) struct Probed<'a> {
    pub(super) by_reward: Vec<Vec<Group<'a>>>,
}

impl Probed<'_> {
    /// Gradients of both halves of the prompts, every second in each: one forward pass a group, one backward pass a reward.
    pub(super) fn products(
        &self,
        decoder: &Decoder,
        set: &ParameterSet,
        settings: &AlignSettings,
        longest: usize,
    ) -> Result<Products, AlignError> {
        let half = |of: usize| self.gradients(of, decoder, set, settings, longest);
        Ok(Products::of_halves(&half(0)?, &half(1)?))
    }

    /// `[reward][parameter]` of one half.
    fn gradients(
        &self,
        half: usize,
        decoder: &Decoder,
        set: &ParameterSet,
        settings: &AlignSettings,
        longest: usize,
    ) -> Result<Vec<Vec<f64>>, AlignError> {
        let mut parts: Vec<Vec<(f64, Gradients)>> = self.by_reward.iter().map(|_| Vec::new()).collect();
        let groups = self.by_reward.first().map_or(0, Vec::len);
        for place in (half..groups).step_by(2) {
            // All rewards' batches are laid out alike: they differ in their advantages.
            let of = |groups: &Vec<Group<'_>>| GroupBatch::all(&groups[place..=place], settings, longest, None);
            let batches: Vec<GroupBatch> =
                self.by_reward.iter().map(of).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
            let Some(first) = batches.first() else { continue };
            let hidden = decoder.hidden(&first.batch.input)?;
            for (batch, part) in batches.iter().zip(&mut parts) {
                let objective = batch.probe(batch.advantages.clone(), settings);
                let loss = decoder.loss_of(&hidden, &batch.batch, &objective)?;
                part.push((batch.divisor, Gradients::collect(set, &loss.backward()?)?));
            }
        }
        let zeros = || vec![0.0; set.value_count()];
        let mean = |part| Ok(Gradients::mean(part)?.map(|mean| mean.values()).transpose()?.unwrap_or_else(zeros));
        parts.into_iter().map(mean).collect()
    }
}
