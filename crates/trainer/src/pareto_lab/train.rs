//! One run: from SFT by policy-gradient steps on a cell's rewards to gains over greedy SFT on users that were not trained on.
//!
//! All arms of a seed and cell see the same prompts, uniforms and noise.

use super::arm::{Arm, Rule};
use super::cell::Cell;
use super::policy::{PARAMETERS, Policy, add};
use super::world::{CANDIDATES, Tables};
use super::{LabError, OBJECTIVES, ROLLOUTS, Size};
use crate::draw::normal;
use crate::weighting::{Batch, Products};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Instant;

/// Length of a step at factor 1.
const RATE: f64 = 0.4;
/// Steps between two points of the weights' trace.
pub(super) const TRACED: usize = 5;
/// Streams of a seed: cell `c` draws from `c`, its start from this far above.
const START_STREAM: u64 = 1 << 20;

/// What all arms of a seed and cell begin with.
pub(super) struct Start<'a> {
    tables: &'a Tables,
    cell: &'a Cell,
    size: Size,
    policy: Policy,
    /// True value of every candidate, by objective.
    truth: [Vec<f64>; 2],
    /// Of the noise on a reward.
    noise: [f64; 2],
    /// Of the rewards in groups under SFT, as drawn with noise.
    deviations: Vec<f64>,
    /// Mean reward of each user under SFT, as drawn.
    means: [Vec<f64>; 2],
    /// Under greedy SFT, on the users that are judged.
    zero: [f64; 2],
    seed: u64,
    stream: u64,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    /// True objectives under greedy decoding, minus greedy SFT's.
    pub gains: [f64; 2],
    /// Mean over the steps of similarity's weight.
    pub weight: f64,
    /// Similarity's weight every few steps.
    pub trace: Vec<f64>,
    /// Of its thread.
    pub seconds: f64,
}

impl<'a> Start<'a> {
    pub fn new(
        tables: &'a Tables,
        policy: &Policy,
        cell: &'a Cell,
        size: Size,
        seed: u64,
        stream: u64,
    ) -> Result<Self, LabError> {
        let mut truth = [0, 1].map(|objective| tables.values(objective, cell.conflict).to_vec());
        for (values, _) in truth.iter_mut().zip(cell.spent).filter(|(_, spent)| *spent) {
            let limit = served(policy, tables, 0..size.trained, values);
            values.iter_mut().for_each(|value| *value = value.min(limit));
        }
        let zero = [0, 1].map(|objective| served(policy, tables, size.trained..tables.users, &truth[objective]));
        let policy = policy.clone();
        let mut start = Start {
            tables,
            cell,
            size,
            policy,
            truth,
            noise: [0.0; 2],
            deviations: Vec::new(),
            means: [Vec::new(), Vec::new()],
            zero,
            seed,
            stream,
        };
        // The noise's size from roll-outs without it; then what a trainer would see: roll-outs with it.
        let clean = start.sft_rollouts()?.0;
        start.noise = [0, 1].map(|objective| cell.noise[objective] * clean[objective]);
        (start.deviations, start.means) = start.sft_rollouts()?;
        Ok(start)
    }

    /// Deviations in groups and users' means under SFT.
    fn sft_rollouts(&self) -> Result<(Vec<f64>, [Vec<f64>; 2]), LabError> {
        let mut random = self.random(START_STREAM);
        let group = self.cell.group;
        let mut rewards = vec![Vec::new(), Vec::new()];
        let mut chances = [0.0; CANDIDATES];
        for user in 0..self.size.trained {
            self.policy.chances(self.tables, user, &mut chances);
            for _ in 0..group {
                let place = drawn(&chances, random.random());
                self.reward(user, place, &mut random, &mut rewards);
            }
        }
        let batch = Batch::new(&OBJECTIVES, &rewards, &[0.0; 2], group)?;
        let deviations = (0..2).map(|objective| batch.pooled_deviation(objective)).collect();
        let means = [0, 1].map(|objective| {
            rewards[objective].chunks(group).map(|own: &[f64]| own.iter().sum::<f64>() / group as f64).collect()
        });
        Ok((deviations, means))
    }

    fn random(&self, offset: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(self.stream + offset);
        random
    }

    /// Rewards of an answer, as the cell gives them; draws as many numbers in any cell of the same noise.
    fn reward(&self, user: usize, place: usize, random: &mut ChaCha8Rng, rewards: &mut [Vec<f64>]) {
        for (objective, given) in rewards.iter_mut().enumerate() {
            let mut value = self.truth[objective][user * CANDIDATES + place];
            if self.noise[objective] > 0.0 {
                value += self.noise[objective] * normal(random);
            }
            let share = self.cell.given[objective];
            if share < 1.0 && random.random::<f64>() >= share {
                value = 0.0;
            }
            given.push(value);
        }
    }

    /// Trains an arm; `factor` of the step length.
    pub fn run(&self, arm: &Arm, setting: f64, factor: f64) -> Result<Run, LabError> {
        let frozen = match arm.rule {
            Rule::Frozen => {
                let guarded = Arm::named("popo-guarded").ok_or(LabError::NoArm("popo-guarded".to_string()))?;
                let weight = self.run(guarded, setting, factor)?.weight;
                [weight, 1.0 - weight]
            }
            _ => [0.5, 0.5],
        };
        let began = Instant::now();
        let mut weighting = arm.weighting(setting, &self.deviations, &frozen, self.seed)?;
        let mut random = self.random(0);
        let mut policy = self.policy.clone();
        let (mut weight, mut trace) = (0.0, Vec::new());
        for step in 0..self.size.steps {
            let taken = Step::taken(self, &policy, &mut random);
            let gains = taken.gains();
            let batch = Batch::new(&OBJECTIVES, &taken.rewards, &gains, self.cell.group)?;
            let products = weighting.probe().map(|probe| {
                let advantages = [0, 1].map(|objective| batch.probed(probe, objective));
                let middle = ROLLOUTS / 2;
                let half = |from: usize| advantages.each_ref().map(|own| taken.slope(own, from, middle).to_vec());
                Products::of_halves(&half(0), &half(middle))
            });
            let combined = weighting.combine(&batch, products.as_ref())?;
            policy.step(&taken.slope(&combined.advantages, 0, ROLLOUTS), RATE * factor);
            weight += combined.weights[0] / self.size.steps as f64;
            if step % TRACED == 0 {
                trace.push(combined.weights[0]);
            }
        }
        let gain = |objective: usize| {
            let judged = self.size.trained..self.tables.users;
            served(&policy, self.tables, judged, &self.truth[objective]) - self.zero[objective]
        };
        Ok(Run { gains: [gain(0), gain(1)], weight, trace, seconds: began.elapsed().as_secs_f64() })
    }
}

/// One step's roll-outs.
struct Step {
    rewards: Vec<Vec<f64>>,
    start_means: [f64; 2],
    /// ∇ ln π of every roll-out.
    scores: Vec<[f64; PARAMETERS]>,
}

impl Step {
    fn taken(start: &Start, policy: &Policy, random: &mut ChaCha8Rng) -> Self {
        let group = start.cell.group;
        let prompts = ROLLOUTS / group;
        let mut step =
            Step { rewards: vec![Vec::new(), Vec::new()], start_means: [0.0; 2], scores: Vec::with_capacity(ROLLOUTS) };
        let mut chances = [0.0; CANDIDATES];
        for _ in 0..prompts {
            let user = random.random_range(0..start.size.trained as u32) as usize;
            policy.chances(start.tables, user, &mut chances);
            let mut expected = [0.0; PARAMETERS];
            for (place, chance) in chances.iter().enumerate() {
                add(&mut expected, start.tables, user, place, -chance);
            }
            for _ in 0..group {
                let place = drawn(&chances, random.random());
                start.reward(user, place, random, &mut step.rewards);
                let mut score = expected;
                add(&mut score, start.tables, user, place, 1.0);
                step.scores.push(score);
            }
            for (mean, means) in step.start_means.iter_mut().zip(&start.means) {
                *mean += means[user] / prompts as f64;
            }
        }
        step
    }

    /// Of the mean rewards over those of the start on the same users.
    fn gains(&self) -> [f64; 2] {
        let mean = |of: &Vec<f64>| of.iter().sum::<f64>() / of.len() as f64;
        [0, 1].map(|objective| mean(&self.rewards[objective]) - self.start_means[objective])
    }

    /// Mean of advantage · ∇ ln π over `count` roll-outs.
    fn slope(&self, advantages: &[f64], from: usize, count: usize) -> [f64; PARAMETERS] {
        let mut sum = [0.0; PARAMETERS];
        for (score, advantage) in self.scores[from..].iter().zip(&advantages[from..]).take(count) {
            let factor = advantage / count as f64;
            sum.iter_mut().zip(score).for_each(|(total, one)| *total += factor * one);
        }
        sum
    }
}

/// Mean value of the served answers.
fn served(policy: &Policy, tables: &Tables, users: std::ops::Range<usize>, values: &[f64]) -> f64 {
    let count = users.len() as f64;
    users.map(|user| values[user * CANDIDATES + policy.greedy(tables, user)]).sum::<f64>() / count
}

/// The candidate at a point of the cumulated chances.
fn drawn(chances: &[f64; CANDIDATES], point: f64) -> usize {
    let mut left = point;
    for (place, chance) in chances.iter().enumerate() {
        left -= chance;
        if left < 0.0 {
            return place;
        }
    }
    CANDIDATES - 1
}
