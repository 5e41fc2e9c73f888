//! The three estimators.
//!
//! In: a log, the chance that the target policy gives to an item at a record's place. Out: values with 95 % intervals (Student's t over the
//! records; SNIPS by the delta method). Caller: the command line.

use super::{Log, OffPolicyError, Record};
use crate::stats::{Interval, Sample, interval};

const LEVEL: f64 = 0.95;
/// Parts of the log; the model of the reward for one is fitted on the others.
const FOLDS: usize = 5;
/// Records of the mean reward that are added to each item and position: they pull those with little in the log towards it.
const PRIOR: f64 = 100.0;

/// Values of a target policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimates {
    /// Inverse propensity scoring.
    pub ips: Interval,
    /// The same over the sum of its weights.
    pub snips: Interval,
    /// Doubly robust.
    pub dr: Interval,
    /// Mean weight: near 1 where the propensities are true.
    pub mean_weight: f64,
    /// Largest weight.
    pub largest_weight: f64,
    /// (Σ w)² / Σ w²: records of the target's own log that would say as much, about (Kish 1965).
    pub effective_size: f64,
}

/// Values of a policy by all three. `chance(record, item)`: that the policy shows the item at the record's place; sums to 1 over the items.
pub fn estimate(log: &Log, chance: &dyn Fn(&Record, usize) -> f64) -> Result<Estimates, OffPolicyError> {
    let records = &log.records;
    let weights: Vec<f64> = records.iter().map(|record| chance(record, record.item) / record.propensity).collect();
    let (sum, squares) = weights.iter().fold((0.0, 0.0), |(sum, squares), w| (sum + w, squares + w * w));
    if sum <= 0.0 {
        let message = "the policy shows nothing of what the log has: no value can be estimated".to_string();
        return Err(OffPolicyError::Nothing { message });
    }
    let models: Vec<Rewards> = (0..FOLDS).map(|fold| Rewards::without(log, fold)).collect();
    let robust = |(place, (record, weight)): (usize, (&Record, &f64))| {
        let model = &models[place % FOLDS];
        let under_target: f64 =
            (0..log.shape.items).map(|item| chance(record, item) * model.of(record.position, item)).sum();
        under_target + weight * (record.reward - model.of(record.position, record.item))
    };
    let weighted: Vec<f64> = records.iter().zip(&weights).map(|(record, weight)| weight * record.reward).collect();
    let value = weighted.iter().sum::<f64>() / sum;
    let mean_weight = sum / records.len() as f64;
    // To first order the ratio moves with these.
    let moves =
        records.iter().zip(&weights).map(|(record, weight)| value + weight * (record.reward - value) / mean_weight);
    let doubly: Vec<f64> = records.iter().zip(&weights).enumerate().map(robust).collect();
    let of = |values: &[f64]| -> Result<Interval, OffPolicyError> { Ok(interval(&Sample::of_users(values)?, LEVEL)?) };
    Ok(Estimates {
        ips: of(&weighted)?,
        snips: of(&moves.collect::<Vec<_>>())?,
        dr: of(&doubly)?,
        mean_weight,
        largest_weight: weights.iter().copied().fold(0.0, f64::max),
        effective_size: sum * sum / squares,
    })
}

/// Mean reward of each item at each position, pulled towards the mean of all.
struct Rewards {
    items: usize,
    means: Vec<f64>,
}

impl Rewards {
    /// Fitted on every record but those of a fold: each FOLDS-th.
    fn without(log: &Log, fold: usize) -> Self {
        let used =
            || log.records.iter().enumerate().filter(|(place, _)| place % FOLDS != fold).map(|(_, record)| record);
        let mean = used().map(|record| record.reward).sum::<f64>() / used().count().max(1) as f64;
        let items = log.shape.items;
        let mut sums = vec![(PRIOR * mean, PRIOR); items * log.shape.positions];
        for record in used() {
            let sum = &mut sums[record.position * items + record.item];
            *sum = (sum.0 + record.reward, sum.1 + 1.0);
        }
        Self { items, means: sums.into_iter().map(|(sum, count)| sum / count).collect() }
    }

    fn of(&self, position: usize, item: usize) -> f64 {
        self.means[position * self.items + item]
    }
}
