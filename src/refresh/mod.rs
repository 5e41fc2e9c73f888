//! Recomputing users' features: who is due when, and the refresh itself.
//!
//! In: the due queue, a user's history. Out: feature groups in the store, a vector in the feed. The `fast` path answers first,
//! without the LLM, where it is on.
//! Callers: `main` (runs the [`Worker`]), `ingest` (asks the [`DuePolicy`]).

mod arrivals;
mod budget;
mod changes;
mod fast;
mod look_back;
mod neighbour;
mod policy;
mod prompting;
#[cfg(test)]
mod tests;
mod user;
mod worker;
mod write;

pub use arrivals::{Arrivals, Listener};
pub use budget::{BudgetLeft, Ticket, TokenBudget};
pub use changes::ChangeFeed;
pub use fast::{FastQueue, Quick, fast_queue};
pub use look_back::{Seen, drop_note, look_back, read_shown_neighbour, shown_neighbour};
pub use neighbour::is_opted_out;
pub use policy::{CLASS_ROUTINE, CLASS_SYNC, CLASS_THRESHOLD, CLASS_URGENT, DuePolicy};
pub use prompting::prompt_input;
pub use user::{Refreshed, Refresher};
pub use worker::{Told, Worker};

use crate::encode::EncodeError;
use crate::llm::LlmError;
use crate::quantize::QuantizeError;
use crate::retrieve::RetrieveError;
use crate::store::StoreError;
use thiserror::Error;

/// Why a refresh failed; the user stays due.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RefreshError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Llm(#[from] LlmError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
    #[error("a refresh task was cancelled or panicked: {0}")]
    Task(String),
}
