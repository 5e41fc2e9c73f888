//! Erasing users: the job behind `DELETE /v1/users/{id}` (DESIGN 5.2, Erase).
//!
//! In: a user. Out: nothing of theirs left in the store, the index, or in what others are shown. Callers: `api` asks for
//! an erasure, `cli::wiring` runs the [`Eraser`] and calls [`hide_in_index`] at every load of an index.
//!
//! An erasure is noted first and then done in small steps ([`job`]), each of which may be repeated; so whoever finds one
//! unfinished goes on with it, after a crash or beside another replica.

mod idle;
#[cfg(test)]
mod idle_tests;
mod job;
#[cfg(test)]
mod tests;

pub use idle::IdleUsers;
#[cfg(test)]
pub(crate) use idle::erase_all_idle;
pub use job::{EraseStop, carry_out, tombstone};

use crate::publish::ChangeFeed;
use crate::retrieve::{RetrieveError, UserIndex};
use crate::store::chore::{Chore, carry_on};
use crate::store::{Erasure, FeatureStore, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::events::{ErasureFinished, ErasureNoted, StoreCallFailed};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{Notify, watch};

/// Why erased users could not be taken out of an index that was loaded.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum HideError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
}

impl HideError {
    /// Whether waiting may help: see [`StoreError::may_pass`].
    pub fn may_pass(&self) -> bool {
        matches!(self, HideError::Store(error) if error.may_pass())
    }
}

/// Takes every erased user out of an index just loaded: its main part was made before, or elsewhere. Returns how many.
///
/// An erasure that was only noted is applied here, because only then its era is known.
pub async fn hide_in_index(store: &dyn FeatureStore, index: &dyn UserIndex) -> Result<usize, HideError> {
    let erasures = store.erasures().await?;
    for erasure in &erasures {
        let era = match erasure.finished_era {
            Some(era) => era,
            None => match store.erase_user(erasure).await {
                // Hidden for as long as this process lives, whatever their era.
                Err(error) if error.is_unreadable() => u64::MAX,
                state => state?.era,
            },
        };
        index.apply(&tombstone(&erasure.user, era))?;
    }
    Ok(erasures.len())
}

/// How often all erasures are walked over, by one process for all.
const FILE_EVERY: Duration = Duration::from_secs(600);

/// Files what older builds noted.
struct Filing;

#[async_trait]
impl Chore for Filing {
    fn name(&self) -> String {
        "file erasures".into()
    }

    async fn step(&mut self, store: &dyn FeatureStore, place: &str) -> Result<String, StoreError> {
        store.file_erasures(place).await
    }
}

/// Forgets tombstones whose time is over. Looks at those alone, so it may come often.
struct Expiry {
    retention_ms: i64,
}

#[async_trait]
impl Chore for Expiry {
    fn name(&self) -> String {
        "expire erasures".into()
    }

    async fn step(&mut self, store: &dyn FeatureStore, _place: &str) -> Result<String, StoreError> {
        let before_ms = store.now_ms().await?.saturating_sub(self.retention_ms);
        store.expire_erasures(before_ms).await?;
        Ok(String::new())
    }
}

/// Longest wait for the features topic to take the news of one erasure.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes requests for erasures, and carries them out in the background; one a process.
pub struct Eraser {
    store: Arc<dyn FeatureStore>,
    metrics: Arc<Metrics>,
    retention_ms: i64,
    interval: Duration,
    wake: Notify,
    /// Told of whose features are gone, where the change feed is on.
    changes: Option<Arc<ChangeFeed>>,
}

impl Eraser {
    /// `retention_ms`: how long a finished erasure stays as a tombstone; `interval`: how often unfinished ones of other
    /// processes, and of before, are looked for.
    pub fn new(store: Arc<dyn FeatureStore>, metrics: Arc<Metrics>, retention_ms: i64, interval: Duration) -> Eraser {
        Eraser { store, metrics, retention_ms, interval, wake: Notify::new(), changes: None }
    }

    /// An erasure ends only when these have published that the user's features are gone.
    pub fn telling(self, changes: Option<Arc<ChangeFeed>>) -> Eraser {
        Eraser { changes, ..self }
    }

    /// Notes the erasure and does what makes the user invisible: when it returns, reads show nothing. What others are
    /// shown of the user is cleared in the background. Returns how many users show them.
    ///
    /// After an error the erasure may be noted already; it is then carried out like any other.
    pub async fn erase(&self, user: &str) -> Result<usize, StoreError> {
        let erasure = self.store.note_erasure(user).await?;
        let spaces = self.store.spaces().await?;
        let users = [user.to_string()];
        let mut referrers = 0;
        for space in &spaces {
            let counts = self.store.referrer_counts_each(space, &users).await?;
            referrers += counts.into_iter().flatten().sum::<usize>();
        }
        let hidden = job::hide(self.store.as_ref(), &erasure, &spaces, &|| true).await;
        self.wake.notify_one();
        match hidden {
            // Nobody asks it to stop.
            Ok(_) | Err(EraseStop::Asked | EraseStop::Untold) => {}
            Err(EraseStop::Store(error)) => return Err(error),
        }
        ErasureNoted { user, referrers }.emit(&self.metrics);
        Ok(referrers)
    }

    /// Carries out what is unfinished, at the start, when asked to and at intervals, and forgets tombstones whose time
    /// is over. Ends when `stop` turns true, between two steps. A store that fails is tried again at the next interval; an
    /// erasure that meets a record which cannot be read is passed over until then.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            if let Err(error) = self.carry_out_all(&stop).await {
                StoreCallFailed { operation: "erase", error: &error }.emit(&self.metrics);
            }
            tokio::select! {
                _ = stop.changed() => {}
                _ = self.wake.notified() => {}
                _ = tokio::time::sleep(self.interval) => {}
            }
        }
    }

    async fn carry_out_all(&self, stop: &watch::Receiver<bool>) -> Result<(), StoreError> {
        match idle::finish_applied(self.store.as_ref(), &|| !*stop.borrow()).await {
            Ok(()) | Err(EraseStop::Untold) => {}
            Err(EraseStop::Asked) => return Ok(()),
            Err(EraseStop::Store(error)) => return Err(error),
        }
        let mut timeout = self.interval.min(ANNOUNCE_TIMEOUT);
        for erasure in self.store.unfinished_erasures().await? {
            match self.carry_out_one(&erasure, stop, timeout).await {
                // The others need not wait as long once more.
                Err(EraseStop::Untold) => timeout = Duration::ZERO,
                Ok(referrers) => ErasureFinished { user: &erasure.user, referrers }.emit(&self.metrics),
                Err(EraseStop::Asked) => return Ok(()),
                Err(EraseStop::Store(error)) if error.is_unreadable() => {
                    StoreCallFailed { operation: "erase", error: &error }.emit(&self.metrics);
                }
                Err(EraseStop::Store(error)) => return Err(error),
            }
        }
        carry_on(self.store.as_ref(), &mut Filing, FILE_EVERY, stop).await?;
        let mut expiry = Expiry { retention_ms: self.retention_ms };
        carry_on(self.store.as_ref(), &mut expiry, Duration::ZERO, stop).await?;
        Ok(())
    }

    async fn carry_out_one(
        &self,
        erasure: &Erasure,
        stop: &watch::Receiver<bool>,
        timeout: Duration,
    ) -> Result<usize, EraseStop> {
        let left = job::leave_all(self.store.as_ref(), erasure, &|| !*stop.borrow()).await?;
        if let Some(changes) = &self.changes {
            let mut users = left.touched;
            users.push(erasure.user.clone());
            self.tell(changes, &users, stop.clone(), timeout).await?;
        }
        self.store.finish_erasure(erasure, left.era).await?;
        Ok(left.referrers)
    }

    /// Returns when it was published, or why it was not.
    async fn tell(
        &self,
        changes: &ChangeFeed,
        users: &[String],
        mut stop: watch::Receiver<bool>,
        timeout: Duration,
    ) -> Result<(), EraseStop> {
        if !users.iter().all(|user| changes.note(user)) {
            return Err(EraseStop::Untold);
        }
        tokio::select! {
            biased;
            _ = changes.all_told(users) => Ok(()),
            _ = stop.wait_for(|stop| *stop) => Err(EraseStop::Asked),
            _ = tokio::time::sleep(timeout) => Err(EraseStop::Untold),
        }
    }
}
