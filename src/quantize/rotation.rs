//! A seeded random orthogonal matrix: spreads the variance of a vector evenly over its slots. Called by `taiji_trainer::codebook`.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `[dim, dim]`, orthonormal rows: Gram–Schmidt (twice, for accuracy) over normal random rows, in f64.
pub fn random_rotation(dim: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(dim);
    while rows.len() < dim {
        let mut row: Vec<f64> = (0..dim).map(|_| normal(&mut random)).collect();
        for _ in 0..2 {
            for earlier in &rows {
                let along = dot(&row, earlier);
                row.iter_mut().zip(earlier).for_each(|(value, e)| *value -= along * e);
            }
        }
        let length = dot(&row, &row).sqrt();
        // A row that (almost) lies in the span of the others is drawn again.
        if length > 1e-6 {
            row.iter_mut().for_each(|value| *value /= length);
            rows.push(row);
        }
    }
    rows.concat().into_iter().map(|value| value as f32).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Box–Muller.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.random::<f64>()).cos()
}
