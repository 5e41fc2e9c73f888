//! A simulator of the recommender: the chance of click and conversion of an item shown to a user, looked up in a frozen table.
//!
//! In: users of a dataset at an instant, a trained ranker. Out: [`Simulator`], which answers for every item and for free text, and says
//! how it knew ([`Level`], [`Telemetry`]). It is the ID reward of the alignment (Taiji: scores of the production ranker are sampled into an
//! offline environment, so that no live ranker is called in training). Callers: `stages`.
//!
//! ```text
//! users, ranker → candidates (which pairs are scored) → table (user, item) → CTCVR
//! answer text → ground (an item of the category that the answer names) → table, else a mean of like items → chance, telemetry
//! ```

mod candidates;
mod ground;
mod judge;
mod table;
mod telemetry;

#[cfg(test)]
pub(crate) mod tests;

pub use candidates::SimulatorSettings;
pub use ground::CategoryGrounder;
pub use judge::{Choice, SimulatorFigures, figures};
pub use table::{Known, Simulator, User};
pub use telemetry::{Level, Telemetry};

use crate::nn::FileError;
use crate::rank::RankError;
use thiserror::Error;

/// What can go wrong with a simulator.
#[derive(Debug, Error)]
pub enum SimulateError {
    /// A setting is out of range.
    #[error("{field} {message}")]
    Settings {
        /// Setting at fault.
        field: &'static str,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// Nobody can be simulated.
    #[error("no user has anything before the next purchase: give data with histories")]
    NoUsers,
    /// A table holds one chance a pair.
    #[error("a OnePiece says of an item what depends on those beside it: make the simulator of another ranker")]
    Groups,
    /// The catalogue has grown since: no reward would be true.
    #[error("the simulator was made of a catalogue without {count} of the items, {example} among them: make it anew")]
    Older {
        /// Items that it does not know.
        count: usize,
        /// One of them.
        example: String,
    },
    /// A table cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The ranker.
    #[error(transparent)]
    Rank(#[from] RankError),
}
