//! The trainer's decoder: a transformer of Qwen2's, Qwen3's or Llama's form, on the CPU in f32 with hand-written backward passes, or by
//! candle's own operations on any device.
//!
//! In: token batches with targets and weights, an `objective`. Out: losses, gradients (candle's tape), log-likelihoods,
//! HF-shaped checkpoints. Callers: `sft` (training), `export` (reads what `checkpoint` writes).
//!
//! ```text
//! batch → decoder (embedding → [norm → attention → norm → mlp] × layers → norm) → loss → tape
//!                                                    log-likelihoods → objective ↗
//! ```
//!
//! `compute` chooses between the kernels and `portable`, the same in plain operations. `maths` and `tile` are the kernels' inner
//! loops; `tape` turns a pair of functions (forward, backward) into an operation candle can differentiate. candle's own fused operations are not used: several have no gradient and do not say so.

use thiserror::Error;

use crate::nn::FileError;
use crate::objective::{Objective, ObjectiveError};

mod attention;
pub mod batch;
pub mod checkpoint;
mod compute;
pub mod config;
pub mod decoder;
mod dropout;
mod embedding;
mod linear;
pub mod lora;
mod loss;
mod maths;
mod norm;
mod portable;
mod tape;
mod tile;

pub use batch::{TokenBatch, TrainBatch};
pub use checkpoint::{load_checkpoint, save_checkpoint, save_merged};
pub use compute::DeviceKind;
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use dropout::Dropout;
pub use lora::LoraSettings;

/// What can go wrong in the decoder and its checkpoints.
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
    /// A file of a checkpoint cannot be read, written, or does not match.
    #[error(transparent)]
    File(#[from] FileError),
    /// An objective does not fit the batch.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// A checkpoint of Hugging Face's form cannot be read.
    #[error(transparent)]
    Reader(#[from] taiji_export::ExportError),
    /// There is no such device, or the trainer was built without it.
    #[error("device cuda: {0}; it needs a GPU and a trainer built with --features cuda")]
    Device(String),
    /// candle failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

#[cfg(test)]
mod lora_tests;
#[cfg(test)]
pub(crate) mod tests;

#[cfg(test)]
mod checkpoint_tests;
#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod portable_tests;
#[cfg(test)]
mod prefix_tests;
#[cfg(test)]
mod speed_tests;
