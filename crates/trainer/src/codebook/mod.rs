//! Trains the product quantiser that turns text vectors into sparse IDs, and judges its health.
//!
//! In: rows of f32 vectors (the encoder's), [`CodebookSettings`] (recipe section `[codebook]`). Out: a
//! [`PqCodebook`](taiji::quantize::PqCodebook) and a [`CodebookHealth`]. Called by `stages`; `quantize` serves the result.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use taiji::quantize::QuantizeError;

mod health;
mod kmeans;
mod prefixes;
mod training;

#[cfg(test)]
mod tests;

pub use health::{CodebookHealth, measure_health};
pub use prefixes::{PrefixCodebook, PrefixSettings};
pub use training::train_codebook;

/// Recipe section `[codebook]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodebookSettings {
    /// Slots; divides the vectors' length.
    pub m: usize,
    /// Centroids per slot.
    pub k: usize,
    /// Most rounds of k-means per slot; it stops earlier when nothing moves.
    pub iterations: usize,
    /// Rows used for training, drawn by seed; 0 = all.
    pub sample: usize,
    /// Rotate at random before splitting. Dimensions of sentence vectors have unequal variance and neighbours correlate:
    /// rotated, every slot gets its share.
    pub rotate: bool,
    /// Seed of sample, rotation and first centroids.
    pub seed: u64,
}

impl Default for CodebookSettings {
    fn default() -> Self {
        Self { m: 8, k: 256, iterations: 25, sample: 50_000, rotate: true, seed: 7 }
    }
}

/// What can go wrong while training a codebook.
#[derive(Debug, Error)]
pub enum CodebookError {
    /// There are too few vectors, or none.
    #[error("{found} vectors cannot train {k} centroids per slot: give at least {k} or lower [codebook] k")]
    TooFew {
        /// Vectors given.
        found: usize,
        /// Centroids wanted.
        k: usize,
    },
    /// A vector has another length than the first, or holds a value that is not finite.
    #[error("vector {row}: {source}")]
    Vector {
        /// Row, from 0.
        row: usize,
        /// What is wrong.
        source: QuantizeError,
    },
    /// The parts do not make a codebook.
    #[error(transparent)]
    Codebook(#[from] QuantizeError),
}
