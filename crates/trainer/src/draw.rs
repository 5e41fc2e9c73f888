//! Drawing from weights and lists. Callers: `synth`, `pareto_lab`, tests.

use rand::Rng;

/// One of a list, all alike; `None` when it is empty.
pub fn choice<'a, T>(list: &'a [T], random: &mut impl Rng) -> Option<&'a T> {
    match list.len() {
        0 => None,
        length => list.get(random.random_range(0..length)),
    }
}

/// An index with probability proportional to its weight; 0 when all weights are 0.
pub fn weighted(weights: &[f64], random: &mut impl Rng) -> usize {
    let total: f64 = weights.iter().sum();
    let mut point = random.random::<f64>() * total;
    for (index, weight) in weights.iter().enumerate() {
        point -= weight;
        if point < 0.0 {
            return index;
        }
    }
    0
}

/// Shuffles in place.
pub fn shuffle<T>(list: &mut [T], random: &mut impl Rng) {
    for index in (1..list.len()).rev() {
        list.swap(index, random.random_range(0..=index));
    }
}

/// A waiting time with the given mean.
pub fn exponential(mean: f64, random: &mut impl Rng) -> f64 {
    -mean * (1.0 - random.random::<f64>()).ln()
}

/// A standard normal number by Box and Muller; the second of the pair is not used, so that a draw takes two numbers.
pub fn normal(random: &mut impl Rng) -> f64 {
    let (radius, angle): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}
