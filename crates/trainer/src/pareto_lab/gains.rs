//! Gains of arms in cells, and what is said of them: pure functions of seeds that are counted.

use super::{ARMS, LabError};
use crate::stats::{Interval, Resampling, Sample, bootstrap, interval, percentile_interval};

/// What is said of an arm's two gains, each divided by that of the arm trained on that objective alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// The smaller one; mean over the cells.
    Balanced,
    /// The smaller one in the worst cell.
    Smallest,
    /// Their mean; mean over the cells.
    Sum,
    /// Their product, 0 where one is below 0: the hypervolume above SFT; mean over the cells.
    Volume,
}

impl Metric {
    pub const ALL: [Metric; 4] = [Metric::Balanced, Metric::Smallest, Metric::Sum, Metric::Volume];

    /// As declarations call it.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Balanced => "balanced",
            Metric::Smallest => "smallest",
            Metric::Sum => "sum",
            Metric::Volume => "volume",
        }
    }
}

/// Gains over greedy SFT, `[cell][arm][seed]`; the arms in the order of [`ARMS`], those of one objective first.
#[derive(Debug, Clone)]
pub(super) struct Gains {
    pub of: Vec<Vec<Vec<[f64; 2]>>>,
    seeds: usize,
}

impl Gains {
    pub fn new(of: Vec<Vec<Vec<[f64; 2]>>>) -> Self {
        let seeds = of.first().and_then(|cell| cell.first()).map_or(0, Vec::len);
        Gains { of, seeds }
    }

    /// Every seed once.
    pub fn whole(&self) -> Vec<f64> {
        vec![1.0; self.seeds]
    }

    /// Both gains of an arm in a cell, divided by those of the arms of one objective.
    pub fn shares(&self, cell: usize, arm: usize, seeds: &[f64]) -> [f64; 2] {
        let total = |arm: usize, objective: usize| -> f64 {
            self.of[cell][arm].iter().zip(seeds).map(|(gains, count)| count * gains[objective]).sum()
        };
        [0, 1].map(|objective| total(arm, objective) / total(objective, objective))
    }

    pub fn balanced(&self, cell: usize, arm: usize, seeds: &[f64]) -> f64 {
        let [first, second] = self.shares(cell, arm, seeds);
        first.min(second)
    }

    /// A metric of an arm over cells.
    pub fn metric(&self, metric: Metric, cells: &[usize], arm: usize, seeds: &[f64]) -> f64 {
        let mean = |of: &dyn Fn([f64; 2]) -> f64| {
            cells.iter().map(|cell| of(self.shares(*cell, arm, seeds))).sum::<f64>() / cells.len() as f64
        };
        match metric {
            Metric::Balanced => mean(&|[first, second]| first.min(second)),
            Metric::Smallest => cells.iter().map(|cell| self.balanced(*cell, arm, seeds)).fold(f64::INFINITY, f64::min),
            Metric::Sum => mean(&|[first, second]| 0.5 * (first + second)),
            Metric::Volume => mean(&|[first, second]| first.max(0.0) * second.max(0.0)),
        }
    }

    /// The gain that an objective's own arm has in a cell.
    pub fn alone(&self, cell: usize, objective: usize) -> Result<Interval, LabError> {
        let own: Vec<f64> = self.of[cell][objective].iter().map(|gains| gains[objective]).collect();
        Ok(interval(&Sample::of_seeds(&own)?, 0.95)?)
    }

    /// Cells in which both objectives' own arms gain for certain; in the others nothing is divided.
    pub fn accepted(&self) -> Result<Vec<usize>, LabError> {
        let mut accepted = Vec::new();
        for cell in 0..self.of.len() {
            if self.alone(cell, 0)?.low > 0.0 && self.alone(cell, 1)?.low > 0.0 {
                accepted.push(cell);
            }
        }
        Ok(accepted)
    }

    /// A statistic with its 95 % interval over seeds; numerators and denominators are drawn together.
    pub fn interval(&self, statistic: impl Fn(&[f64]) -> f64 + Sync) -> Result<Interval, LabError> {
        let draws = bootstrap(self.seeds, 1, Resampling::default(), |weights| statistic(&weights.seeds));
        Ok(percentile_interval(statistic(&self.whole()), draws, 0.95)?)
    }
}

/// Index of an arm.
pub(super) fn arm_at(name: &str) -> Result<usize, LabError> {
    ARMS.iter().position(|arm| arm.name == name).ok_or_else(|| LabError::NoArm(name.to_string()))
}
