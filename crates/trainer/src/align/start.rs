//! What the rewards were under the policy of the start: means of each prompt, deviations in the groups.

use super::{AlignError, PromptCase};
use crate::reward::{Answered, RewardSet};
use crate::weighting::Batch;
use std::collections::HashMap;
use taiji::prompt::{ParsedAnswer, parse};

/// Of the start's roll-outs of every prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// `[prompt][reward]`
    pub(super) means: Vec<Vec<f64>>,
    /// [`Batch::pooled_deviation`] of each reward.
    pub deviations: Vec<f64>,
}

/// Prompts whose answers are valued together.
const CHUNK: usize = 64;

/// Rewards of what the start wrote, `[reward][answer]`: `written[user]`, as many answers to each prompt; also how many those are.
pub fn start_values(
    prompts: &[PromptCase],
    written: &HashMap<String, Vec<String>>,
    count_tokens: &dyn Fn(&str) -> usize,
    rewards: &mut RewardSet,
) -> Result<(Vec<Vec<f64>>, usize), AlignError> {
    let group = prompts.first().and_then(|prompt| written.get(&prompt.user_id)).map_or(0, Vec::len);
    let mut values: Vec<Vec<f64>> = vec![Vec::new(); rewards.names().len()];
    for chunk in prompts.chunks(CHUNK) {
        let mut parsed: Vec<(usize, &str, ParsedAnswer)> = Vec::new();
        for (place, prompt) in chunk.iter().enumerate() {
            let texts = written.get(&prompt.user_id).filter(|texts| texts.len() == group && group > 1);
            let texts = texts.ok_or_else(|| AlignError::Start { user_id: prompt.user_id.clone(), group })?;
            parsed.extend(texts.iter().map(|text| (place, text.as_str(), parse(text, prompt.mode))));
        }
        let answers: Vec<Answered<'_>> = parsed
            .iter()
            .map(|(place, text, parsed)| Answered {
                user_id: &chunk[*place].user_id,
                truth: chunk[*place].truth.as_ref(),
                text,
                parsed,
                tokens: count_tokens(text),
            })
            .collect();
        let found = rewards.values(&answers, group)?;
        values.iter_mut().zip(found.values).for_each(|(all, new)| all.extend(new));
    }
    Ok((values, group))
}

impl Start {
    /// Of the rewards that [`start_values`] found of these prompts' answers, `group` each.
    pub fn of(names: &[&str], values: &[Vec<f64>], group: usize) -> Result<Self, AlignError> {
        let none = vec![0.0; values.len()];
        let batch = Batch::new(names, values, &none, group)?;
        let mean = |prompt: usize, of: &Vec<f64>| of[prompt * group..][..group].iter().sum::<f64>() / group as f64;
        let prompts = values.first().map_or(0, |of| of.len() / group);
        Ok(Self {
            means: (0..prompts).map(|prompt| values.iter().map(|of| mean(prompt, of)).collect()).collect(),
            deviations: (0..values.len()).map(|reward| batch.pooled_deviation(reward)).collect(),
        })
    }

    /// Means of the rewards over the answers to a prompt.
    pub fn means(&self, prompt: usize) -> &[f64] {
        &self.means[prompt]
    }

    /// Mean of each reward over some prompts.
    pub(super) fn mean_over(&self, prompts: &[usize]) -> Vec<f64> {
        let of = |reward: usize| prompts.iter().map(|prompt| self.means[*prompt][reward]).sum::<f64>();
        (0..self.deviations.len()).map(|reward| of(reward) / prompts.len().max(1) as f64).collect()
    }
}
