//! A step's rewards and what every rule makes of them.

use super::{Probe, WeightingError};

/// A group's rewards differ if their deviation is above this share of the largest of them: what is below is rounding of f32.
const SAME: f64 = 1e-6;

/// Rewards of the roll-outs of some prompts, checked; means and deviations of the groups (ddof 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<'a> {
    rewards: &'a [Vec<f64>],
    gains: &'a [f64],
    group: usize,
    /// `[reward][group]`; the deviation is 0 where the rewards of the group do not differ.
    groups: Vec<Vec<Group>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Group {
    mean: f64,
    deviation: f64,
}

impl Group {
    fn of(rewards: &[f64]) -> Self {
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        let deviation = deviation(rewards, mean);
        let largest = rewards.iter().fold(0.0f64, |largest, reward| largest.max(reward.abs()));
        Group { mean, deviation: if deviation > SAME * largest { deviation } else { 0.0 } }
    }
}

/// Whether a reward tells the answers of a group apart: by more than rounding.
pub fn differs(rewards: &[f64]) -> bool {
    Group::of(rewards).deviation > 0.0
}

/// Of values around their mean, ddof 1.
fn deviation(values: &[f64], mean: f64) -> f64 {
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

impl<'a> Batch<'a> {
    /// `rewards[k]`: of all roll-outs, those of a prompt together, `group` each. `names` of the rewards, for errors. `gains[k]`: by
    /// how much the mean of reward k is above that of the policy that training began with, over the same prompts; all that were asked, also
    /// those whose answers the batch leaves out since no reward tells them apart.
    pub fn new(
        names: &[&str],
        rewards: &'a [Vec<f64>],
        gains: &'a [f64],
        group: usize,
    ) -> Result<Self, WeightingError> {
        for (what, found) in [("names of rewards", names.len()), ("gains", gains.len())] {
            if found != rewards.len() {
                return Err(WeightingError::Rewards { what, expected: rewards.len(), found });
            }
        }
        let length = rewards.first().map_or(0, Vec::len);
        for (reward, values) in names.iter().zip(rewards) {
            let found = values.len();
            if group < 2 || found == 0 || found != length || !found.is_multiple_of(group) {
                return Err(WeightingError::Groups { reward: reward.to_string(), found, group });
            }
            if let Some(rollout) = values.iter().position(|value| !value.is_finite()) {
                let value = values[rollout];
                return Err(WeightingError::NotFinite { reward: reward.to_string(), rollout, value });
            }
        }
        let groups = rewards.iter().map(|values| values.chunks(group).map(Group::of).collect()).collect();
        Ok(Batch { rewards, gains, group, groups })
    }

    /// Number of rewards.
    pub fn rewards(&self) -> usize {
        self.rewards.len()
    }

    /// Number of roll-outs.
    pub fn rollouts(&self) -> usize {
        self.rewards.first().map_or(0, Vec::len)
    }

    /// Roll-outs of a prompt.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Mean of a reward over the batch.
    pub fn mean(&self, reward: usize) -> f64 {
        self.rewards[reward].iter().sum::<f64>() / self.rollouts() as f64
    }

    /// Of its mean over that under the policy of the start.
    pub fn gain(&self, reward: usize) -> f64 {
        self.gains[reward]
    }

    /// Over the whole batch, ddof 1: groups are not told apart.
    pub(super) fn whole_deviation(&self, reward: usize) -> f64 {
        deviation(&self.rewards[reward], self.mean(reward))
    }

    /// Deviation in the groups: root of the mean of their variances. Under the policy of the start it is what [`super::CalibratedSum`] and
    /// [`super::Nash`] divide by.
    pub fn pooled_deviation(&self, reward: usize) -> f64 {
        let groups = &self.groups[reward];
        (groups.iter().map(|group| group.deviation.powi(2)).sum::<f64>() / groups.len() as f64).sqrt()
    }

    /// Share of the groups in which a reward does not differ.
    pub fn share_without_deviation(&self, reward: usize) -> f64 {
        let groups = &self.groups[reward];
        groups.iter().filter(|group| group.deviation == 0.0).count() as f64 / groups.len() as f64
    }

    /// (mean, deviation) of each group.
    pub(super) fn groups(&self, reward: usize) -> impl Iterator<Item = (f64, f64)> {
        self.groups[reward].iter().map(|group| (group.mean, group.deviation))
    }

    /// Reward minus its group's mean; 0 where the group does not differ.
    pub fn centred(&self, reward: usize) -> Vec<f64> {
        self.scaled(reward, |_| 1.0)
    }

    /// That divided by the group's deviation: the advantage of GRPO for one reward alone.
    pub fn normalised(&self, reward: usize) -> Vec<f64> {
        self.scaled(reward, |deviation| 1.0 / deviation)
    }

    /// What a probe is about.
    pub fn probed(&self, probe: Probe, reward: usize) -> Vec<f64> {
        match probe {
            Probe::Centred => self.centred(reward),
            Probe::Normalised => self.normalised(reward),
        }
    }

    fn scaled(&self, reward: usize, factor: impl Fn(f64) -> f64) -> Vec<f64> {
        let groups = self.rewards[reward].chunks(self.group).zip(&self.groups[reward]);
        let of_group = |(values, group): (&'a [f64], &Group)| {
            let Group { mean, deviation } = *group;
            let factor = if deviation > 0.0 { factor(deviation) } else { 0.0 };
            values.iter().map(move |value| (value - mean) * factor).collect::<Vec<f64>>()
        };
        groups.flat_map(of_group).collect()
    }

    /// Σ weight · centred reward: weights by reward.
    pub(super) fn sum_of_centred(&self, weights: &[f64]) -> Vec<f64> {
        self.sum(weights, |reward| self.centred(reward))
    }

    /// Σ weight · normalised reward.
    pub(super) fn sum_of_normalised(&self, weights: &[f64]) -> Vec<f64> {
        self.sum(weights, |reward| self.normalised(reward))
    }

    fn sum(&self, weights: &[f64], of_reward: impl Fn(usize) -> Vec<f64>) -> Vec<f64> {
        let mut sum = vec![0.0; self.rollouts()];
        for (reward, weight) in weights.iter().enumerate() {
            let advantages = of_reward(reward);
            sum.iter_mut().zip(&advantages).for_each(|(total, advantage)| *total += weight * advantage);
        }
        sum
    }

    /// GRPO on a weighted sum of rewards: their sum, normalised in its group. `weights[group][reward]`, or one row for all groups.
    pub(super) fn normalised_sum(&self, weights: &[Vec<f64>]) -> Vec<f64> {
        let mut advantages = Vec::with_capacity(self.rollouts());
        for at in 0..self.rollouts() / self.group {
            let row = &weights[at % weights.len()];
            let of_rollout = |rollout: usize| -> f64 {
                row.iter().zip(self.rewards).map(|(weight, rewards)| weight * rewards[rollout]).sum()
            };
            let summed: Vec<f64> = (at * self.group..(at + 1) * self.group).map(of_rollout).collect();
            let Group { mean, deviation } = Group::of(&summed);
            let factor = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
            advantages.extend(summed.iter().map(|value| (value - mean) * factor));
        }
        advantages
    }
}

/// Advantages divided by their deviation (ddof 1) over the batch; all 0 where they do not differ.
pub fn divided_by_deviation(mut advantages: Vec<f64>) -> Vec<f64> {
    let mean = advantages.iter().sum::<f64>() / advantages.len() as f64;
    let deviation = deviation(&advantages, mean);
    let factor = if deviation > f64::MIN_POSITIVE { 1.0 / deviation } else { 0.0 };
    advantages.iter_mut().for_each(|advantage| *advantage *= factor);
    advantages
}
