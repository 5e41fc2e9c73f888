//! Fitting: parameters in groups, gradients, optimizer, and one loop for all that is trained.
//!
//! In: a [`Module`](crate::nn::Module) and a [`Task`], which has batches and their gradients (`sft`; later methods). Out: the
//! module's parameters, changed, and the curve of the run. Knows nothing of texts, batches or decoders.
//!
//! ```text
//! groups (which parameters, which settings) → run (task's gradients → optimizer → average, validation, best, state) → curve
//! ```

use std::path::PathBuf;

use thiserror::Error;

use crate::nn::FileError;

mod average;
pub mod curve;
pub mod gradients;
pub mod groups;
pub mod optimizer;
pub mod progress;
pub mod run;
pub mod schedule;
mod state;

#[cfg(test)]
mod tests;

pub use curve::CurvePoint;
pub use gradients::Gradients;
pub use groups::{GroupSettings, ParameterSet};
pub use optimizer::{AdamW, AdamWSettings, Update};
pub use progress::{TrainEvent, training_progress};
pub use run::{Evaluated, Fitted, LoopSettings, Task, Validated, run};
pub use schedule::Schedule;
pub use state::clear;

/// Settings that came later are written only where a recipe sets them, so that what was trained before keeps its hash.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What can go wrong while fitting.
#[derive(Debug, Error)]
pub enum FitError {
    /// A trainable tensor received no gradient: an operation without backward stands in its way.
    #[error("tensor {0} received no gradient: check the operations between it and the loss, or freeze it")]
    MissingGradient(String),
    /// A group of parameters makes no sense.
    #[error("group {pattern:?}: {message}")]
    Group {
        /// Pattern at fault.
        pattern: String,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// All parameters are frozen.
    #[error("every parameter is frozen: nothing to train")]
    AllFrozen,
    /// A task had no batch for a step.
    #[error("step {0} has no batch")]
    NoBatch(u64),
    /// Losses or gradients were not numbers any more, too often.
    #[error(
        "step {step}: gradient norm {norm}, loss {loss}; {skipped} steps skipped, at most {limit} are: lower lr, or raise max_skipped to go on"
    )]
    TooManySkipped {
        /// Step, from 1.
        step: u64,
        /// Steps skipped so far.
        skipped: u64,
        /// Most steps that may be skipped.
        limit: u64,
        /// Norm of the last skipped step's gradient.
        norm: f64,
        /// Its loss.
        loss: f64,
    },
    /// The best weights are asked for and nothing says which they are.
    #[error(
        "keep_best and patience go by the validation loss, and there is nothing to validate on: give validation examples"
    )]
    NoValidation,
    /// A saved state belongs to other settings or data.
    #[error("{path} was made with other settings or data: remove it to start afresh")]
    OtherRun {
        /// The state's folder.
        path: PathBuf,
    },
    /// A state's file.
    #[error(transparent)]
    File(#[from] FileError),
    /// candle failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
