//! Inner products of the rewards' own policy gradients: for rules that ask for them.

use super::batch::{Group, GroupBatch};
use super::{AlignError, AlignSettings};
use crate::fit::{Gradients, ParameterSet};
use crate::model::Decoder;
use crate::weighting::Products;

/// Of a step's groups, once a reward with the advantages of that reward alone: gradients of both halves of the prompts, every second in each.
pub(super) fn products(
    by_reward: &[Vec<Group<'_>>],
    decoder: &Decoder,
    set: &ParameterSet,
    settings: &AlignSettings,
    longest: usize,
) -> Result<Products, AlignError> {
    let half = |of: usize| gradients(by_reward, of, decoder, set, settings, longest);
    Ok(Products::of_halves(&half(0)?, &half(1)?))
}

/// `[reward][parameter]` of one half: one forward pass a group, one backward pass a reward.
fn gradients(
    by_reward: &[Vec<Group<'_>>],
    half: usize,
    decoder: &Decoder,
    set: &ParameterSet,
    settings: &AlignSettings,
    longest: usize,
) -> Result<Vec<Vec<f64>>, AlignError> {
    let mut parts: Vec<Vec<(f64, Gradients)>> = by_reward.iter().map(|_| Vec::new()).collect();
    let groups = by_reward.first().map_or(0, Vec::len);
    for place in (half..groups).step_by(2) {
        // All rewards' batches are laid out alike: they differ in their advantages.
        let of = |groups: &Vec<Group<'_>>| GroupBatch::all(&groups[place..=place], settings, longest, None);
        let batches: Vec<GroupBatch> =
            by_reward.iter().map(of).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        let Some(first) = batches.first() else { continue };
        let hidden = decoder.hidden(&first.batch.input)?;
        for (batch, part) in batches.iter().zip(&mut parts) {
            let loss = decoder.loss_of(&hidden, &batch.batch, &batch.objective(settings))?;
            part.push((batch.divisor, Gradients::collect(set, &loss.backward()?)?));
        }
    }
    let zeros = || vec![0.0; set.value_count()];
    let mean = |part| Ok(Gradients::mean(part)?.map(|mean| mean.values()).transpose()?.unwrap_or_else(zeros));
    parts.into_iter().map(mean).collect()
}
