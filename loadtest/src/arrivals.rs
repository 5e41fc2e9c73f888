//! When calls are meant to start: at a constant rate, or as a Poisson process.
//!
//! In: rate, law, seed. Out: the offsets from the beginning, in order. They depend on nothing that a service does: whoever sends them
//! late still counts from the offset, so a stall is seen by all who would have called meanwhile.

use clap::ValueEnum;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// How calls follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Law {
    /// One after each period.
    Constant,
    /// Independent of each other, as users are.
    Poisson,
}

/// The offsets of one stream, without an end.
pub struct Arrivals {
    law: Law,
    period_s: f64,
    at_s: f64,
    rng: ChaCha8Rng,
}

impl Arrivals {
    /// The part of stream `number` of `streams` that make up `rate` calls a second together.
    pub fn new(law: Law, rate: f64, seed: u64, (number, streams): (usize, usize)) -> Arrivals {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Streams of one seed that have nothing in common.
        rng.set_stream(number as u64);
        let at_s = match law {
            Law::Constant => number as f64 / rate,
            Law::Poisson => 0.0,
        };
        Arrivals { law, period_s: streams as f64 / rate, at_s, rng }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at_s = match self.law {
            Law::Constant => self.at_s,
            // A pause of a Poisson process; 1 - x keeps the logarithm off zero.
            Law::Poisson => self.at_s - (1.0 - self.rng.random::<f64>()).ln() * self.period_s,
        };
        self.at_s = if self.law == Law::Constant { at_s + self.period_s } else { at_s };
        Some(Duration::from_secs_f64(at_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn streams_together_make_the_rate(rate in 50.0..5000.0f64, seed: u64, streams in 1..5usize) {
            for law in [Law::Constant, Law::Poisson] {
                let seconds = 40_000.0 / rate;
                let count = |number| {
                    let arrivals = Arrivals::new(law, rate, seed, (number, streams));
                    arrivals.take_while(|at| at.as_secs_f64() < seconds).count()
                };
                let all: usize = (0..streams).map(count).sum();
                // Six standard deviations of a Poisson count; a constant rate misses by rounding only.
                let margin = if law == Law::Poisson { 1200 } else { streams };
                prop_assert!(all.abs_diff(40_000) <= margin, "{law:?}: {all}");
            }
        }

        #[test]
        fn the_same_seed_makes_the_same_times(seed: u64, number in 0..3usize) {
            let times = |seed| Arrivals::new(Law::Poisson, 1000.0, seed, (number, 3)).take(50).collect::<Vec<_>>();
            prop_assert_eq!(times(seed), times(seed));
            prop_assert_ne!(times(seed), times(seed ^ 1));
            prop_assert!(times(seed).is_sorted());
        }
    }

    #[test]
    fn pauses_of_a_poisson_process_vary_as_much_as_they_last() {
        let times: Vec<f64> =
            Arrivals::new(Law::Poisson, 100.0, 7, (0, 1)).take(50_001).map(|at| at.as_secs_f64()).collect();
        let pauses: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = pauses.iter().sum::<f64>() / pauses.len() as f64;
        let variance = pauses.iter().map(|pause| (pause - mean).powi(2)).sum::<f64>() / pauses.len() as f64;
        assert!((mean - 0.01).abs() < 0.0003, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "{variance}");
    }
}
