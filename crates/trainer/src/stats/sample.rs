//! Figures of seeds × users, and the differences of two arms measured on the same ones.

use super::StatsError;

/// One figure a seed and user. Seeds are drawn independently; the users are the same ones for every seed.
///
/// Several runs of a seed (alignment seeds on one SFT checkpoint, say) are no independent seeds: their mean is the seed's figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    seeds: usize,
    users: usize,
    /// `[seed][user]`, means over the seed's runs.
    cells: Vec<f64>,
}

impl Sample {
    /// `values` is `[seed][run][user]`, flat. Figures that belong to no user (a lab's) have `users` = 1.
    pub fn new(seeds: usize, runs: usize, users: usize, values: &[f64]) -> Result<Self, StatsError> {
        if values.is_empty() || values.len() != seeds * runs * users {
            return Err(StatsError::Shape { seeds, runs, users, values: values.len() });
        }
        let mut cells = vec![0.0; seeds * users];
        for (place, value) in values.iter().enumerate() {
            let (seed, user) = (place / (runs * users), place % users);
            if !value.is_finite() {
                return Err(StatsError::NotFinite { seed, user });
            }
            cells[seed * users + user] += value / runs as f64;
        }
        Ok(Sample { seeds, users, cells })
    }

    /// One run's figures of its users.
    pub fn of_users(values: &[f64]) -> Result<Self, StatsError> {
        Sample::new(1, 1, values.len(), values)
    }

    /// One figure a seed.
    pub fn of_seeds(values: &[f64]) -> Result<Self, StatsError> {
        Sample::new(values.len(), 1, 1, values)
    }

    /// The paired difference: same seeds, same users.
    pub fn minus(&self, other: &Sample) -> Result<Self, StatsError> {
        let shape = |sample: &Sample| format!("({}, {})", sample.seeds, sample.users);
        if (self.seeds, self.users) != (other.seeds, other.users) {
            return Err(StatsError::Unpaired { left: shape(self), right: shape(other) });
        }
        let cells = self.cells.iter().zip(&other.cells).map(|(left, right)| left - right).collect();
        Ok(Sample { cells, ..*self })
    }

    /// Independent seeds.
    pub fn seeds(&self) -> usize {
        self.seeds
    }

    /// Users of each seed.
    pub fn users(&self) -> usize {
        self.users
    }

    /// The figures of one seed, by user.
    pub fn of_seed(&self, seed: usize) -> &[f64] {
        &self.cells[seed * self.users..(seed + 1) * self.users]
    }

    /// Over everything.
    pub fn mean(&self) -> f64 {
        self.cells.iter().sum::<f64>() / self.cells.len() as f64
    }

    /// Of each seed over the users.
    pub fn seed_means(&self) -> Vec<f64> {
        (0..self.seeds).map(|seed| self.of_seed(seed).iter().sum::<f64>() / self.users as f64).collect()
    }

    /// Of each user over the seeds.
    pub fn user_means(&self) -> Vec<f64> {
        let sum = |user: usize| (0..self.seeds).map(|seed| self.cells[seed * self.users + user]).sum::<f64>();
        (0..self.users).map(|user| sum(user) / self.seeds as f64).collect()
    }
}
