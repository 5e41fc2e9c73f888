//! taiji's features as they would have been served at instants of the past: with them, and without, a ranker is trained and judged.
//!
//! In: a dataset, the points at which something was shown, the models of a bundle. Out: one [`FeatureLine`](crate::rank::FeatureLine) a
//! point. Callers: `stages`. Everything is as of the point: answers are made from what a user did before it, neighbours are those of an
//! index generation from before its day, and what they are seen to have done ends before its day.
//!
//! ```text
//! points, generations → moments (a user, a cut) → backfill (text, vector; the service's own pipeline) → codes, neighbour → feature lines
//! dataset → collaborative (vectors of items, no text): another rule for neighbours
//! ```

mod backfill;
mod collaborative;
mod features;
mod generations;
mod neighbours;
#[cfg(test)]
mod tests;

pub use backfill::{Backfill, BackfillSettings, Embed, Embedded, Moment, history_text, member_moments, moments};
pub use collaborative::{ItemVectors, item_vectors};
pub use features::{Codes, FeatureSettings, Parts, Rule, feature_lines};
pub use generations::Generations;

use crate::data::DataError;
use crate::models::ModelsError;
use crate::nn::FileError;
use taiji::encode::EncodeError;
use taiji::quantize::QuantizeError;
use taiji::retrieve::RetrieveError;
use thiserror::Error;

/// Why features of the past cannot be made.
#[derive(Debug, Error)]
pub enum LiftError {
    /// A setting is out of range, or asks for what is not there.
    #[error("{field} {message}")]
    Settings {
        /// Setting at fault.
        field: &'static str,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// The folder of a backfill does not hold together.
    #[error("{path}: {message}; make the stage backfill anew")]
    Backfill {
        /// File at fault.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The pipeline.
    #[error(transparent)]
    Models(#[from] ModelsError),
    /// The encoder.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The quantiser.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// The index.
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
    /// Data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
}
