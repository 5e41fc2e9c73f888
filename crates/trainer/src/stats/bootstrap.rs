//! The paired cluster bootstrap: seeds and users are drawn with replacement, each for itself (the "pigeonhole" bootstrap of crossed
//! data: Owen, Annals of Applied Statistics 1, 2007). A draw is a pair of counts, so any statistic of weighted seeds and users can
//! be resampled, numerator and denominator of a ratio together.

use super::{Interval, Method, Sample, StatsError, interval, proper_share};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// How much is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    /// Draws.
    pub draws: usize,
    /// Same seed, same figures, with any number of threads.
    pub seed: u64,
}

impl Default for Resampling {
    fn default() -> Self {
        Resampling { draws: 4_000, seed: 1 }
    }
}

/// How often each seed and each user was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Sum to the number of seeds.
    pub seeds: Vec<f64>,
    /// Sum to the number of users.
    pub users: Vec<f64>,
}

impl Weights {
    fn draw(seeds: usize, users: usize, random: &mut impl Rng) -> Self {
        let mut counts = |among: usize| {
            let mut counts = vec![0.0; among];
            for _ in 0..among {
                counts[random.random_range(0..among as u32) as usize] += 1.0;
            }
            counts
        };
        Weights { seeds: counts(seeds), users: counts(users) }
    }

    /// The weighted mean of a sample; `None` where the shapes differ.
    pub fn mean(&self, sample: &Sample) -> Option<f64> {
        if (self.seeds.len(), self.users.len()) != (sample.seeds(), sample.users()) {
            return None;
        }
        let drawn = self.seeds.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
        let sum: f64 = drawn
            .map(|(seed, weight)| {
                weight * sample.of_seed(seed).iter().zip(&self.users).map(|(value, count)| value * count).sum::<f64>()
            })
            .sum();
        Some(sum / (sample.seeds() * sample.users()) as f64)
    }
}

/// A statistic on many draws, in the order of the draws. Draw `n` has a random stream of its own.
pub fn bootstrap(
    seeds: usize,
    users: usize,
    resampling: Resampling,
    statistic: impl Fn(&Weights) -> f64 + Sync,
) -> Vec<f64> {
    let draw = |number: usize| {
        let mut random = ChaCha8Rng::seed_from_u64(resampling.seed);
        random.set_stream(number as u64);
        statistic(&Weights::draw(seeds, users, &mut random))
    };
    (0..resampling.draws).into_par_iter().map(draw).collect()
}

/// The mean of a sample on many draws.
pub fn resampled_means(sample: &Sample, resampling: Resampling) -> Vec<f64> {
    // The weights have the sample's own shape.
    let mean = |weights: &Weights| weights.mean(sample).unwrap_or(f64::NAN);
    bootstrap(sample.seeds(), sample.users(), resampling, mean)
}

/// Percentile interval of a statistic: its value on the whole sample and on the draws. The p-value counts draws on the other side of 0.
pub fn percentile_interval(estimate: f64, mut draws: Vec<f64>, level: f64) -> Result<Interval, StatsError> {
    let tail = (1.0 - proper_share("level", level)?) / 2.0;
    if draws.is_empty() {
        return Err(StatsError::TooFew);
    }
    draws.sort_by(f64::total_cmp);
    let beyond = |other_side: fn(&f64) -> bool| draws.iter().filter(|value| other_side(value)).count() + 1;
    let fewest = beyond(|value| *value <= 0.0).min(beyond(|value| *value >= 0.0));
    Ok(Interval {
        estimate,
        low: quantile(&draws, tail),
        high: quantile(&draws, 1.0 - tail),
        level,
        p: (2.0 * fewest as f64 / (draws.len() + 1) as f64).min(1.0),
        method: Method::Bootstrap,
    })
}

/// The ratio of two means of the same seeds and users, such as a balanced gain; numerator and denominator are drawn together.
/// Refused where the denominator may be 0.
pub fn ratio_of_means(
    numerator: &Sample,
    denominator: &Sample,
    level: f64,
    resampling: Resampling,
) -> Result<Interval, StatsError> {
    // Refuses unlike shapes, too.
    numerator.minus(denominator)?;
    let below = interval(denominator, level)?;
    if below.covers(0.0) {
        return Err(StatsError::DenominatorTouchesZero { low: below.low, high: below.high });
    }
    let ratio = |weights: &Weights| match (weights.mean(numerator), weights.mean(denominator)) {
        (Some(above), Some(below)) => above / below,
        _ => f64::NAN,
    };
    let draws = bootstrap(numerator.seeds(), numerator.users(), resampling, ratio);
    percentile_interval(numerator.mean() / denominator.mean(), draws, level)
}

/// The value below which a share of the sorted values lies, linear between neighbours, as NumPy's default. There must be one value.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = sorted[(below + 1).min(sorted.len() - 1)];
    sorted[below] + part * (above - sorted[below])
}
