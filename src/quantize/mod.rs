//! Product quantisation at serving: a vector → one code per slot → sparse IDs for the ranker.
//!
//! In: f32 vectors from the encoder. Out: codes and sparse IDs whose meaning is fixed by the codebook; its hash is part of the
//! space. Callers: `refresh` (encoding), `bundle` (loading), `taiji_trainer::codebook` (making one).

use std::path::PathBuf;

use thiserror::Error;

mod codebook;
mod file;
mod rotation;

#[cfg(test)]
mod tests;

pub use codebook::PqCodebook;
pub use codebook::{check_vector, columns_of, nearest};
pub use rotation::random_rotation;

/// What can go wrong in a codebook or with a vector.
#[derive(Debug, Error)]
pub enum QuantizeError {
    /// A vector of the wrong length.
    #[error(
        "vector has {found} values, the codebook takes {expected}: encoder and codebook belong to different spaces"
    )]
    Dimension {
        /// The codebook's.
        expected: usize,
        /// The vector's.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("vector value {index} is {value}: the encoder failed on this text")]
    NotFinite {
        /// Place in the vector.
        index: usize,
        /// Value found.
        value: f32,
    },
    /// A code beyond the slot's centroids.
    #[error("code {code} of slot {slot} is not below {k}: codes and codebook belong to different spaces")]
    Code {
        /// Slot.
        slot: usize,
        /// Code found.
        code: u16,
        /// Centroids per slot.
        k: usize,
    },
    /// Not as many codes as slots.
    #[error("{found} codes for {expected} slots: codes and codebook belong to different spaces")]
    CodeCount {
        /// The codebook's slots.
        expected: usize,
        /// Codes given.
        found: usize,
    },
    /// The parts do not make a codebook.
    #[error("codebook: {0}")]
    Shape(String),
    /// A codebook file cannot be used.
    #[error("codebook {path}: {message}")]
    File {
        /// File.
        path: PathBuf,
        /// What is wrong and how to mend it.
        message: String,
    },
}
