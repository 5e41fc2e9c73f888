//! What taiji remembers: histories, features, the due queue, fresh vectors, the catalogue overlay.
//!
//! In: validated events, finished feature records. Out: histories for the refresh worker, blobs for readers.
//! Callers: `api` (append, read), `refresh` (claim, history, put), `retrieve` and `catalogue` (tail the feeds).
//! The meaning of every call is DESIGN 5.2; the embedded store does in one transaction what Redis will do in one slot.

mod blank;
pub mod chore;
pub(crate) mod codec;
#[cfg(test)]
mod conformance;
mod cursor;
pub mod embedded;
pub(crate) mod kept;
pub mod redis;
pub(crate) mod rehearsal;
mod traits;
pub mod types;
mod unreadable;

pub use cursor::{FeedCursor, FeedPage};
pub use embedded::{EmbeddedOptions, EmbeddedStore};
pub use redis::{RedisOptions, RedisStore};
pub use traits::{Chores, DueQueue, Erasures, FeatureStore, Features, Feeds, Health, Histories, Members};

pub use types::*;
pub use unreadable::{RecordKind, Unreadable};

use thiserror::Error;

/// What can go wrong in a store.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// The engine underneath failed; nothing of the call is visible.
    #[error("store {operation} failed: {message}")]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// The engine's own words.
        message: String,
    },
    /// The server does not answer, after the retries; whether the call was carried out is unknown, and it may be repeated.
    #[error("store {operation}: {message}")]
    Unreachable {
        /// What was being done.
        operation: &'static str,
        /// Which server, and what was tried.
        message: String,
    },
    /// The server answers, but cannot do this now (loading, failing over, a disk it cannot write); repeat later.
    #[error("store {operation}: {message}")]
    Busy {
        /// What was being done.
        operation: &'static str,
        /// The server's own words.
        message: String,
    },
    /// It was carried out, but replicas or the disk do not have it in time; a repeat is a duplicate and asks again.
    #[error("store {operation}: it is not acknowledged: {message}; send it again")]
    NotDurable {
        /// What was being done.
        operation: &'static str,
        /// Which server, and what it lacks.
        message: String,
    },
    /// The server's memory is full: back-pressure, nothing is lost, repeat later.
    #[error("store {operation}: {message}")]
    Full {
        /// What was being done.
        operation: &'static str,
        /// Which server, and the remedy.
        message: String,
    },
    /// The server refuses us: password, permission, read-only replica. Repeating does not help.
    #[error("store {operation}: {message}")]
    Denied {
        /// What was being done.
        operation: &'static str,
        /// Which server, and the remedy.
        message: String,
    },
    /// An earlier write failed, and nothing is written until the engine in this process is opened anew.
    #[error("store {operation} failed: {message}")]
    Poisoned {
        /// What was being done.
        operation: &'static str,
        /// What to do.
        message: String,
    },
    /// The folder or server cannot be used at all.
    #[error("store {place} cannot be opened: {message}")]
    Open {
        /// Folder or address.
        place: String,
        /// Why, and what to do.
        message: String,
    },
    /// A record is not what this version writes.
    #[error("store record {key} cannot be read: {message}")]
    Corrupt {
        /// The key, printable.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

impl StoreError {
    /// Whether the same call may succeed later without anyone's help to this process.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            StoreError::Unreachable { .. }
                | StoreError::Busy { .. }
                | StoreError::NotDurable { .. }
                | StoreError::Full { .. }
        )
    }

    /// Whether it is worth waiting for: the same call may succeed later without anyone's help to this process, perhaps after
    /// someone put a record right.
    pub fn may_pass(&self) -> bool {
        self.is_transient() || self.is_unreadable()
    }

    /// Whether only what stands under one key is at fault: it concerns that user or item and nobody else.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, StoreError::Corrupt { .. })
    }
}

/// Result of every store call.
pub type StoreResult<T> = Result<T, StoreError>;

/// Answers about several users or items, one each, in the order asked. What one record or one node of a cluster spoils is
/// missing for those it concerns; whoever asks decides what that means.
pub type Each<T> = Vec<StoreResult<T>>;

/// The answers, unless the call failed as a whole: nobody could be asked about, or we are refused.
pub fn unless_all_failed<T>(answers: Each<T>) -> StoreResult<Each<T>> {
    let is_away = |error: &StoreError| matches!(error, StoreError::Unreachable { .. } | StoreError::Busy { .. });
    let is_whole = |error: &StoreError| !error.is_unreadable() && !is_away(error);
    let failed = |answer: &StoreResult<T>| answer.as_ref().err().filter(|error| !error.is_unreadable()).cloned();
    if let Some(refused) = answers.iter().filter_map(|answer| answer.as_ref().err()).find(|error| is_whole(error)) {
        return Err(refused.clone());
    }
    match answers.iter().map(failed).collect::<Option<Vec<_>>>().and_then(|errors| errors.into_iter().next()) {
        Some(away) => Err(away),
        None => Ok(answers),
    }
}
