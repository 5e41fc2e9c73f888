//! Rules that nobody proposes: what an adaptive rule has to beat. The others are [`super::Gdpo`] with a run's own mean weights, and
//! [`super::Guards::sign`].

use super::{Batch, Combined, Probe, Products, Weighting, WeightingError, divided_by_deviation, limited};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Weights drawn anew each step, evenly from the simplex, on normalised advantages.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    random: ChaCha8Rng,
}

impl RandomWeights {
    /// Same seed, same weights.
    pub fn new(seed: u64) -> Self {
        RandomWeights { random: ChaCha8Rng::seed_from_u64(seed) }
    }
}

impl Weighting for RandomWeights {
    fn combine(&mut self, batch: &Batch, _: Option<&Products>) -> Result<Combined, WeightingError> {
        // Exponential variables over their sum lie evenly in the simplex.
        let drawn: Vec<f64> = (0..batch.rewards()).map(|_| -(1.0 - self.random.random::<f64>()).ln()).collect();
        let weights = limited(&drawn, 0.0);
        let advantages = divided_by_deviation(batch.sum_of_normalised(&weights));
        Ok(Combined { advantages, weights })
    }
}

/// Weights in proportion to the norms of the gradients, on normalised advantages: all that POPO sees of two rewards, without its memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct GradientNorms {
    step: usize,
}

impl Weighting for GradientNorms {
    fn probe(&self) -> Option<Probe> {
        Some(Probe::Normalised)
    }

    fn combine(&mut self, batch: &Batch, products: Option<&Products>) -> Result<Combined, WeightingError> {
        self.step += 1;
        let products = products.ok_or(WeightingError::NoProducts)?.checked(batch.rewards(), self.step)?;
        let norms: Vec<f64> = (0..batch.rewards()).map(|reward| products.norm(reward)).collect();
        let weights = limited(&norms, 0.0);
        let advantages = divided_by_deviation(batch.sum_of_normalised(&weights));
        Ok(Combined { advantages, weights })
    }
}
