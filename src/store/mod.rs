//! What taiji remembers: histories, features, the due queue, fresh vectors, the catalogue overlay.
//!
//! In: validated events, finished feature records. Out: histories for the refresh worker, blobs for readers.
//! Callers: `api` (append, read), `refresh` (claim, history, put), `retrieve` and `catalogue` (tail the feeds).
//! The meaning of every call is DESIGN 5.2; the embedded store does in one transaction what Redis will do in one slot.

mod blank;
pub(crate) mod codec;
#[cfg(test)]
mod conformance;
mod cursor;
pub mod embedded;
pub(crate) mod kept;
pub mod redis;
pub mod types;

pub use cursor::{FeedCursor, FeedPage};
pub use embedded::{EmbeddedOptions, EmbeddedStore};
pub use redis::{RedisOptions, RedisStore};

pub use crate::feature::{Group, GroupBlob, Version};
pub use types::*;

use crate::event::Item;
use async_trait::async_trait;
use std::time::Duration;
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
        matches!(self, StoreError::Unreachable { .. } | StoreError::Busy { .. } | StoreError::Full { .. })
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

/// The store behind every role. One instance per process, shared by `Arc`.
#[async_trait]
pub trait FeatureStore: Send + Sync {
    /// The store's own clock, unix ms. Leases and due times are measured with it.
    async fn now_ms(&self) -> StoreResult<i64>;

    /// Appends records of many users; one outcome a user, in order. Each user's records are applied atomically and
    /// idempotently (DESIGN 5.2, Append). `space` says whose `refreshed_seq` the outcome reports.
    async fn append(&self, space: &str, batches: &[UserBatch]) -> StoreResult<Vec<AppendOutcome>>;

    /// Histories of many users in the order asked; `None` for a user never seen.
    async fn histories(&self, users: &[String]) -> StoreResult<Vec<Option<UserHistory>>>;

    /// Counters of many users in the order asked, with what the last refresh in the space had read; `None` for a user
    /// never seen. A light read: neither histories nor features.
    async fn states(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<UserMarks>>>;

    /// Only these groups of many users, as a reader needs them: of [`StoredFeatures`] the prompt hash and the embedding are left
    /// out. `None` for a user without any features.
    async fn feature_groups(
        &self,
        space: &str,
        users: &[String],
        groups: &[Group],
    ) -> StoreResult<Vec<Option<StoredFeatures>>>;

    /// All feature blobs of many users in one space, with the marks of the last refresh; `None` for a user without any.
    async fn features(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<StoredFeatures>>>;

    /// Writes one refresh's result, by the version rules of DESIGN 5.2 (Put, Skip).
    async fn put(&self, space: &str, put: FeaturePut) -> StoreResult<PutOutcome>;

    /// Adds users to the due queue; of two due times the earlier wins, of two classes the lower (more urgent).
    async fn mark_due(&self, space: &str, entries: &[DueEntry]) -> StoreResult<()>;

    /// Takes up to `limit` users whose time has come, most urgent class first, oldest first within a class, and leases
    /// them. Users under an unexpired lease are not given out; users whose lease ran out are. Fewer than `limit` means that
    /// nobody else was due (or that other replicas kept being quicker).
    async fn claim(&self, space: &str, limit: usize, lease: Duration) -> StoreResult<Vec<Claim>>;

    /// Prolongs a lease; false when the token no longer holds it.
    async fn renew(&self, space: &str, claim: &Claim, lease: Duration) -> StoreResult<bool>;

    /// Ends a lease; false when the token no longer holds it. A user marked due meanwhile stays due.
    async fn release(&self, space: &str, claim: &Claim) -> StoreResult<bool>;

    /// Queue length and oldest due time by class, and the number of leases.
    async fn queue_depth(&self, space: &str) -> StoreResult<QueueDepth>;

    /// Marks due every user with `seq > refreshed_seq` (or without features) who stands in neither queue nor lease.
    /// Returns how many. Slow: walks all users.
    async fn sweep(&self, space: &str) -> StoreResult<usize>;

    /// Notes that `user`'s `cross` shows `neighbour`. Returns how many users show that neighbour now.
    async fn add_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<usize>;

    /// Takes that note back.
    async fn remove_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<()>;

    /// How many users' `cross` shows each of these.
    async fn referrer_counts(&self, space: &str, neighbours: &[String]) -> StoreResult<Vec<usize>>;

    /// Who is noted as showing `neighbour`, in any order. No more than the cap on referrers, so it comes at once.
    async fn referrers(&self, space: &str, neighbour: &str) -> StoreResult<Vec<String>>;

    /// Says that this space will be written. Called before anything is, at every start: an erasure looks into the
    /// spaces named here and nowhere else.
    async fn note_space(&self, space: &str) -> StoreResult<()>;

    /// Every space ever noted, in the order of their names.
    async fn spaces(&self) -> StoreResult<Vec<String>>;

    /// First step of an erasure: from now on it survives every crash. Of two notes of a user the later replaces the
    /// earlier, which it covers. A user never seen can be noted: their events may be on their way.
    async fn note_erasure(&self, user: &str) -> StoreResult<Erasure>;

    /// Every erasure noted and not expired: unfinished ones first, then by id.
    async fn erasures(&self) -> StoreResult<Vec<Erasure>>;

    /// Deletes history, profile, queries and the features of all spaces, and changes the counters: `era` up by one,
    /// `erased_before_ms` = the store's clock or the newest ts kept, whichever is later, `erased_seq` = `seq`, which
    /// stays, `weight` and `last_refresh_ms` 0. Atomic. Returns the counters.
    ///
    /// Once per erasure: the user's record remembers the highest id that was applied, and an id not above it changes
    /// nothing (a job that goes on after a crash, or two jobs at once). Creates the record of a user never seen.
    async fn erase_user(&self, erasure: &Erasure) -> StoreResult<UserState>;

    /// Empties `user`'s `cross` if it shows `neighbour` as they were before `era`: no items, `neighbour_user_id` cleared,
    /// prompt hash cleared, so that no skip keeps it. Version, tier and expiry stay, so that no older refresh fills the
    /// gap. Atomic.
    async fn blank_cross(&self, space: &str, user: &str, neighbour: &str, era: u64) -> StoreResult<CrossBlank>;

    /// Takes a user out of the due queue. A lease stays, but a mark made while it runs is dropped, too.
    async fn forget_due(&self, space: &str, user: &str) -> StoreResult<()>;

    /// Last step of an erasure; nothing if a later one of the same user was noted meanwhile.
    async fn finish_erasure(&self, erasure: &Erasure, era: u64) -> StoreResult<()>;

    /// Forgets finished erasures with an id below `before_ms` (an id is never below the time it was noted). Returns how
    /// many. The user's counters stay for good: they keep `seq` and `era` from going back.
    async fn expire_erasures(&self, before_ms: i64) -> StoreResult<usize>;

    /// Puts a vector into the space's feed in the place of the user's older one. One below the (era, version) that stands
    /// there changes nothing; an equal one, of a repeated refresh, replaces it.
    async fn append_vector(&self, space: &str, vector: &FreshVector) -> StoreResult<()>;

    /// Entries of the vector feed after `cursor`, about `limit` of them. The default cursor begins with the oldest, and
    /// whoever reads from there to the last page has the newest entry of every user.
    async fn vectors_after(&self, space: &str, cursor: &FeedCursor, limit: usize)
    -> StoreResult<FeedPage<FreshVector>>;

    /// Writes items to the catalogue overlay and its change feed.
    async fn put_items(&self, items: &[Item]) -> StoreResult<()>;

    /// Changes of the catalogue after `cursor`, oldest first: the latest version of each item.
    async fn items_after(&self, cursor: &FeedCursor, limit: usize) -> StoreResult<FeedPage<Item>>;

    /// Distinct users who engaged with each item, counted up to [`ITEM_USERS_CAP`].
    async fn item_user_counts(&self, items: &[String]) -> StoreResult<Vec<u32>>;

    /// Numbers for /metrics: users, bytes on disk.
    async fn stats(&self) -> StoreResult<StoreStats>;

    /// Makes everything acknowledged so far survive a power loss, too.
    async fn flush(&self) -> StoreResult<()>;

    /// True when no crash can take back what was acknowledged before a successful [`Self::flush`], so that offsets may
    /// be let go at once (DESIGN 5.5, drain). False where a fail-over may lose the last moments whatever we do.
    fn flush_is_final(&self) -> bool {
        false
    }

    /// Changes whenever the store may have lost acknowledged writes (DESIGN 5.5): a restarted or failed-over Redis.
    /// Constant for the embedded store.
    async fn incarnation(&self) -> StoreResult<u64>;

    /// Why the store cannot be asked at all now, in words for an operator; `None` while it can. Asks nobody.
    fn trouble(&self) -> Option<String> {
        None
    }
}
