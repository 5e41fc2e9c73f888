//! Text → unit vector, through an ONNX encoder (BERT-type, mean pooling).
//!
//! In: any text. Out: L2-normalised f32 vector of [`Encoder::dim`]. Callers: `refresh`, `train` (codebook, index).

mod bert;
#[cfg(test)]
mod decoder_tests;
mod null;

pub use bert::{BertEncoder, EncoderOptions};
pub use null::NullEncoder;

use std::time::Duration;
use thiserror::Error;

/// What can go wrong.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The model folder cannot be served.
    #[error("encoder {path}: {message}")]
    Load {
        /// File or folder.
        path: String,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// The runtime failed on this batch.
    #[error("encoder run failed: {0}")]
    Run(String),
}

/// A text encoder; blocking, call it off the async threads.
pub trait Encoder: Send + Sync {
    /// Encodes texts in order; each vector has length [`Self::dim`] and L2 norm 1. Texts over the limit lose their tail.
    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError>;

    /// Tokens the encoder reads of a text: after cutting, special tokens included.
    fn count_tokens(&self, text: &str) -> usize;

    /// For how long there have been texts to encode without a step; `None` without any.
    fn stalled(&self) -> Option<Duration>;

    /// Vector length.
    fn dim(&self) -> usize;

    /// Model name and hash for provenance.
    fn model_id(&self) -> &str;
}
