//! Which user a call is about: a Zipf law over a number of users, seeded.
//!
//! In: number of users, exponent, seed. Out: users by rank, rank 0 the most frequent. Exponent 0 is the even law.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};

/// Why there is no such law.
#[derive(Debug, thiserror::Error)]
#[error("no Zipf law of {users} users with exponent {exponent}: at least one user, an exponent of 0 or more")]
pub struct NoSuchLaw {
    users: usize,
    exponent: f64,
}

/// Draws users.
#[derive(Debug, Clone)]
pub struct Popularity {
    law: Zipf<f64>,
    users: usize,
    rng: ChaCha8Rng,
}

impl Popularity {
    /// Stream `number` of a seed.
    pub fn new(users: usize, exponent: f64, seed: u64, number: u64) -> Result<Popularity, NoSuchLaw> {
        let refused = NoSuchLaw { users, exponent };
        if users == 0 || !exponent.is_finite() {
            return Err(refused);
        }
        let law = Zipf::new(users as f64, exponent).map_err(|_| refused)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        Ok(Popularity { law, users, rng })
    }

    /// The next user's rank.
    pub fn draw(&mut self) -> usize {
        (self.law.sample(&mut self.rng) as usize).clamp(1, self.users) - 1
    }

    /// So many different users, or all where there are no more.
    pub fn draw_different(&mut self, wanted: usize) -> Vec<usize> {
        let wanted = wanted.min(self.users);
        let mut taken = vec![false; self.users];
        let mut drawn = Vec::with_capacity(wanted);
        let mut tries = 0;
        while drawn.len() < wanted {
            // A steep law seldom comes to the last ranks: after so many tries the most frequent of those left are taken.
            let rank = if tries < 50 * wanted { self.draw() } else { taken.iter().position(|is| !is).unwrap_or(0) };
            tries += 1;
            if !std::mem::replace(&mut taken[rank], true) {
                drawn.push(rank);
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Rank r comes with probability r^-s / sum of k^-s: each of the first ranks and the whole rest, within six standard deviations.
        #[test]
        fn ranks_come_as_the_law_says(users in 1..3000usize, exponent in 0.0..2.5f64, seed: u64) {
            const DRAWS: usize = 20_000;
            let mut popularity = Popularity::new(users, exponent, seed, 0).expect("a law");
            let mut counts = vec![0usize; users];
            for _ in 0..DRAWS {
                counts[popularity.draw()] += 1;
            }
            let weights: Vec<f64> = (1..=users).map(|rank| (rank as f64).powf(-exponent)).collect();
            let all: f64 = weights.iter().sum();
            let shown = users.min(12);
            let rest = (counts[shown..].iter().sum::<usize>(), weights[shown..].iter().sum::<f64>());
            let first = counts.iter().copied().zip(weights.iter().copied()).take(shown);
            for (rank, (count, weight)) in first.chain([rest]).enumerate() {
                let expected = DRAWS as f64 * weight / all;
                let margin = 6.0 * (expected * (1.0 - weight / all)).sqrt() + 1.0;
                prop_assert!((count as f64 - expected).abs() <= margin, "rank {rank}: {count}, expected {expected}");
            }
        }

        #[test]
        fn a_batch_holds_different_users(users in 1..400usize, wanted in 1..300usize, exponent in 0.0..4.0f64, seed: u64) {
            let mut popularity = Popularity::new(users, exponent, seed, 3).expect("a law");
            let mut batch = popularity.draw_different(wanted);
            prop_assert_eq!(batch.len(), wanted.min(users));
            batch.sort_unstable();
            batch.dedup();
            prop_assert_eq!(batch.len(), wanted.min(users));
            prop_assert!(batch.iter().all(|rank| *rank < users));
        }
    }

    #[test]
    fn a_law_of_nobody_or_with_a_strange_exponent_is_refused() {
        for (users, exponent) in [(0, 1.0), (5, -1.0), (5, f64::NAN), (5, f64::INFINITY)] {
            let said = Popularity::new(users, exponent, 1, 0).expect_err("refused").to_string();
            assert!(said.contains("at least one user"), "{said}");
        }
    }
}
