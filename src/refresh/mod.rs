//! Recomputing users' features.
//!
//! In: the due queue, a user's history. Out: feature groups in the store, a vector in the feed. The `fast` path answers first,
//! without the LLM, where it is on.
//! Callers: `cli::wiring` (runs the [`Worker`]), `api` (waits with [`Arrivals`]), `erase` (who is shown).

mod arrivals;
mod budget;
mod fast;
mod look_back;
mod neighbour;
mod sweep;
#[cfg(test)]
mod tests;
mod user;
mod worker;
mod write;

pub use arrivals::{Arrivals, Listener};
pub use budget::{BudgetLeft, Ticket, TokenBudget};
pub use fast::Quick;
pub use look_back::{UserEra, drop_note, look_back, read_shown_neighbour, shown_neighbour};
pub use sweep::Sweep;
pub use user::{Refreshed, Refresher};
pub use worker::{Listeners, Worker};

use crate::answer::AnswerError;
use crate::retrieve::RetrieveError;
use crate::store::StoreError;
use std::time::Duration;
use thiserror::Error;

/// Why a refresh failed; the user stays due.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RefreshError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
    #[error("the models of the active bundle are not loaded in this process (role infer)")]
    NotLoaded,
    #[error("not done after {0:?} (refresh.deadline_ms); the user is due again")]
    Deadline(Duration),
    #[error("a refresh task was cancelled or panicked: {0}")]
    Task(String),
}
