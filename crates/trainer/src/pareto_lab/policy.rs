//! The policy: a softmax over a user's candidates of scores linear in their features, with one addend a leaf.

use super::world::{CANDIDATES, LEAVES, Tables, WIDTH};

/// Numbers of a policy: one a feature, then one a leaf.
pub(super) const PARAMETERS: usize = WIDTH + LEAVES;
/// The feature that says in which leaf a candidate lies: each leaf is seen seldom, so it learns in longer steps.
const LEAF: f64 = 6.0;
const SFT_STEPS: usize = 150;
const SFT_RATE: f64 = 4.0;

/// Its parameters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Policy(pub [f64; PARAMETERS]);

impl Policy {
    /// Taught the users' target leaves by maximum likelihood: full-batch gradient steps from 0.
    pub fn taught(tables: &Tables, users: usize) -> Self {
        let mut policy = Policy([0.0; PARAMETERS]);
        let mut chances = [0.0; CANDIDATES];
        for _ in 0..SFT_STEPS {
            let mut slope = [0.0; PARAMETERS];
            for user in 0..users {
                policy.chances(tables, user, &mut chances);
                let places = 2 * tables.targets[user]..2 * tables.targets[user] + 2;
                let mass: f64 = chances[places.clone()].iter().sum();
                for place in places {
                    add(&mut slope, tables, user, place, chances[place] / mass);
                }
                for (place, chance) in chances.iter().enumerate() {
                    add(&mut slope, tables, user, place, -chance);
                }
            }
            policy.step(&slope, SFT_RATE / users as f64);
        }
        policy
    }

    /// Of each candidate of a user.
    pub fn chances(&self, tables: &Tables, user: usize, chances: &mut [f64; CANDIDATES]) {
        let largest = self.scores(tables, user, chances);
        let mut total = 0.0;
        for chance in chances.iter_mut() {
            *chance = (*chance - largest).exp();
            total += *chance;
        }
        chances.iter_mut().for_each(|chance| *chance /= total);
    }

    /// The served answer.
    pub fn greedy(&self, tables: &Tables, user: usize) -> usize {
        let mut scores = [0.0; CANDIDATES];
        let largest = self.scores(tables, user, &mut scores);
        scores.iter().position(|score| *score == largest).unwrap_or_default()
    }

    /// Fills the scores; returns the largest.
    fn scores(&self, tables: &Tables, user: usize, scores: &mut [f64; CANDIDATES]) -> f64 {
        let (weights, leaves) = self.0.split_at(WIDTH);
        let rows = &tables.features[user * CANDIDATES..(user + 1) * CANDIDATES];
        let mut largest = f64::NEG_INFINITY;
        for (place, (score, row)) in scores.iter_mut().zip(rows).enumerate() {
            let linear: f64 = row.iter().zip(weights).map(|(feature, weight)| feature * weight).sum();
            *score = linear + LEAF * leaves[place / 2];
            largest = largest.max(*score);
        }
        largest
    }

    /// A step along a gradient.
    pub fn step(&mut self, slope: &[f64; PARAMETERS], rate: f64) {
        self.0.iter_mut().zip(slope).for_each(|(parameter, slope)| *parameter += rate * slope);
    }
}

/// Adds a multiple of a candidate's features.
pub(super) fn add(sum: &mut [f64; PARAMETERS], tables: &Tables, user: usize, place: usize, factor: f64) {
    let row = &tables.features[user * CANDIDATES + place];
    sum.iter_mut().zip(row).for_each(|(total, feature)| *total += factor * feature);
    sum[WIDTH + place / 2] += LEAF * factor;
}
