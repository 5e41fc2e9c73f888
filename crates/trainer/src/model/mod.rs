//! The trainer's decoder: a Qwen2-shaped transformer in f32 on the CPU, with hand-written backward passes.
//!
//! In: token batches with targets and weights, an `objective`. Out: losses, gradients (candle's tape), log-likelihoods,
//! HF-shaped checkpoints. Callers: `sft` (training), `export` (reads what `checkpoint` writes).
//!
//! ```text
//! batch → decoder (embedding → [norm → attention → norm → mlp] × layers → norm) → loss → tape → optimizer
//!                                                    log-likelihoods → objective ↗
//! ```
//!
//! `maths` and `tile` are the inner loops; `tape` turns a pair of functions (forward, backward) into an operation candle can
//! differentiate. candle's own fused operations are not used: several have no gradient and do not say so.

use std::path::PathBuf;

use thiserror::Error;

use crate::objective::{Objective, ObjectiveError};

mod attention;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod decoder;
mod embedding;
mod linear;
mod loss;
mod maths;
mod norm;
pub mod optimizer;
mod tape;
mod tile;

pub use batch::{TokenBatch, TrainBatch};
pub use checkpoint::{load_checkpoint, save_checkpoint};
pub use config::DecoderConfig;
pub use decoder::{Decoder, Parameter};
pub use optimizer::{AdamW, AdamWSettings, Schedule};

/// What can go wrong in the decoder, its checkpoints and its optimizer.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A setting or a `config.json` field does not make a decoder.
    #[error("decoder config: {field} {message}")]
    Config {
        /// Field at fault.
        field: &'static str,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// A batch does not fit the decoder.
    #[error("batch: {0}")]
    Batch(String),
    /// A trainable tensor received no gradient: an operation without backward stands in its way.
    #[error("tensor {0} received no gradient: check the operations between it and the loss")]
    MissingGradient(String),
    /// The loss or a gradient is not a number any more.
    #[error("gradient norm is {norm} at step {step}: lower the learning rate")]
    NotFinite {
        /// Norm found.
        norm: f64,
        /// Optimizer step, from 1.
        step: u64,
    },
    /// An objective does not fit the batch.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// A checkpoint file cannot be read or does not match.
    #[error("checkpoint {path}: {message}")]
    Checkpoint {
        /// File at fault.
        path: PathBuf,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// A checkpoint of Hugging Face's form cannot be read.
    #[error(transparent)]
    Reader(#[from] taiji_export::ExportError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// candle failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod checkpoint_tests;
#[cfg(test)]
mod prefix_tests;
#[cfg(test)]
mod speed_tests;
