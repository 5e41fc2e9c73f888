//! A stand-in for the encoder: vectors decided by the text's hash, for `--engine null` and tests.
//!
//! In: any text. Out: a unit vector; equal texts give equal vectors, nothing else about them means anything.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

use super::{EncodeError, Encoder};

/// The encoder without a model.
#[derive(Debug, Clone, Copy)]
pub struct NullEncoder {
    dim: usize,
}

impl NullEncoder {
    /// Vectors of this length, at least 1.
    pub fn new(dim: usize) -> Self {
        Self { dim: dim.max(1) }
    }

    fn vector(&self, text: &str) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(xxh3_64(text.as_bytes()));
        let mut values: Vec<f32> = (0..self.dim).map(|_| random.random_range(-1.0..1.0)).collect();
        let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        if norm <= f32::EPSILON {
            values.fill(1.0 / (self.dim as f32).sqrt());
            return values;
        }
        values.iter_mut().for_each(|value| *value /= norm);
        values
    }
}

impl Encoder for NullEncoder {
    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        Ok(texts.iter().map(|text| self.vector(text)).collect())
    }

    fn count_tokens(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn stalled(&self) -> Option<Duration> {
        None
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn model_id(&self) -> &str {
        "null"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn vectors_are_of_norm_one_and_decided_by_the_text() {
        let vectors = NullEncoder::new(384).encode(&["tea", "coffee", "tea"]).unwrap();
        assert!(vectors[0] == vectors[2] && vectors[0] != vectors[1]);
        for vector in vectors {
            assert!((vector.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
