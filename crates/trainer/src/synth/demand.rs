//! The conflict knob: what advertisers want sold, by leaf, added to the logit of cvr.
//!
//! In: number of leaves, spread, world-seed. Out: one addend a leaf. What is bought next does not depend on it, so the more it
//! spreads, the less does the item with the best click-and-conversion rate look like what the user buys. Callers: the worlds.

use crate::draw;
use clap::ValueEnum;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A stream of its own of the world-seed: the shelf stays as it is.
const STREAM: u64 = 1 << 32;

/// How much similarity to the next purchase the item with the best click-and-conversion rate keeps, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Conflict {
    /// No demand.
    #[serde(rename = "none")]
    None,
    /// 94 %.
    #[serde(rename = "94")]
    #[value(name = "94")]
    Kept94,
    /// 80 %.
    #[serde(rename = "80")]
    #[value(name = "80")]
    Kept80,
    /// 60 %.
    #[serde(rename = "60")]
    #[value(name = "60")]
    Kept60,
}

/// Normal scores of the leaves in an order drawn from the world-seed, with standard deviation `spread`; all 0 for spread 0.
pub(super) fn by_leaf(leaves: usize, spread: f64, world_seed: u64) -> Vec<f64> {
    let mut scores: Vec<f64> = (0..leaves).map(|rank| normal_quantile((rank as f64 + 0.5) / leaves as f64)).collect();
    let deviation = (scores.iter().map(|score| score * score).sum::<f64>() / leaves.max(1) as f64).sqrt();
    let mut random = ChaCha8Rng::seed_from_u64(world_seed);
    random.set_stream(STREAM);
    draw::shuffle(&mut scores, &mut random);
    let factor = if deviation > 0.0 { spread / deviation } else { 0.0 };
    scores.iter().map(|score| score * factor).collect()
}

/// Where the standard normal distribution function takes the value `share`, by bisection of [`normal_share`].
fn normal_quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if normal_share(middle) < share { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// The standard normal distribution function: ½ + φ(x)·(x + x³/3 + x⁵/15 + …) (Abramowitz and Stegun 26.2.11).
fn normal_share(point: f64) -> f64 {
    let (mut term, mut sum) = (point, point);
    for odd in (3..400).step_by(2) {
        term *= point * point / f64::from(odd);
        sum += term;
    }
    0.5 + sum * (-point * point / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn demand_has_mean_zero_the_spread_asked_for_and_an_order_of_the_world_seed() {
        for spread in [0.0, 0.52, 1.17] {
            let demand = by_leaf(60, spread, 3);
            let mean = demand.iter().sum::<f64>() / 60.0;
            let deviation = (demand.iter().map(|one| one * one).sum::<f64>() / 60.0).sqrt();
            assert!(mean.abs() < 1e-9 && (deviation - spread).abs() < 1e-9, "{mean} {deviation}");
        }
        assert_ne!(by_leaf(60, 1.0, 3), by_leaf(60, 1.0, 4));
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (share, point) in [(0.5, 0.0), (0.975, 1.959_963_984_540), (0.001, -3.090_232_306_167)] {
            assert!((normal_quantile(share) - point).abs() < 1e-9, "{share}");
        }
    }
}
