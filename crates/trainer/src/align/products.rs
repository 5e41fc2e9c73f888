//! Inner products of the rewards' own policy gradients: for rules that ask for them.

use super::batch::{Group, GroupBatch};
use super::{AlignError, AlignSettings};
use crate::fit::{Gradients, ParameterSet};
use crate::model::Decoder;
use crate::weighting::Products;

/// A step's groups with the advantages of each reward alone: `advantages[reward][group]`, one an answer of the group.
pub(super) struct Probed<'a> {
    pub(super) groups: Vec<Group<'a>>,
    pub(super) advantages: Vec<Vec<Vec<f64>>>,
}

impl Probed<'_> {
    /// Gradients of both halves of the prompts, every second in each: one forward pass a batch, one backward pass a reward.
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
        let rewards = self.advantages.len();
        let mut parts: Vec<Vec<(f64, Gradients)>> = (0..rewards).map(|_| Vec::new()).collect();
        for (place, group) in self.groups.iter().enumerate().filter(|(place, _)| place % 2 == half) {
            // A batch a group: halves are small, and their advantages stay with their answers.
            let alone = Group { prompt: group.prompt, answers: group.answers.clone() };
            for batch in GroupBatch::all(&[alone], settings, longest, None)? {
                let hidden = decoder.hidden(&batch.batch.input)?;
                for (reward, part) in parts.iter_mut().enumerate() {
                    let of_answers = self.advantages[reward][place].iter().zip(&batch.lengths);
                    let rows = of_answers.flat_map(|(advantage, length)| std::iter::repeat_n(*advantage, *length));
                    let objective = batch.probe(rows.collect(), settings);
                    let loss = decoder.loss_of(&hidden, &batch.batch, &objective)?;
                    part.push((batch.divisor, Gradients::collect(set, &loss.backward()?)?));
                }
            }
        }
        let zeros = || vec![0.0; set.value_count()];
        let mean = |part| Ok(Gradients::mean(part)?.map(|mean| mean.values()).transpose()?.unwrap_or_else(zeros));
        parts.into_iter().map(mean).collect()
    }
}
