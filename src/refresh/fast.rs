//! The fast path: a first answer without the LLM (tier 0) for users who have no features (DESIGN 7).
//!
//! In: users who became due and have no living features, out of a queue of their own. Out: groups of tier 0, and a vector
//! that every LLM-made one replaces. Callers: `ingest` and `api` mark users (`due::FastQueue`); the `worker` runs [`run`]
//! beside its refreshes. Off by default (`refresh.fast_path`).
//!
//! A queue of its own, because the due queue holds a user once, and who takes a user there takes them to the LLM: behind a
//! backlog or a spent token budget a quick answer would wait with the rest. It is a queue of the store like the other, so
//! a user is taken by one replica at a time, once, also after a crash. The user's place in the due queue is not touched.
//! One user at a time: the LLM's refreshes share the encoder, and so none waits for more than one quick text.

use super::user::{Attempt, ModelOutputs, WRITTEN};
use super::write::Draft;
use super::{Listeners, RefreshError, Refreshed, Refresher, shown_neighbour};
use crate::answer::history_input;
use crate::catalogue::Grounding;
use crate::prompt::{ParsedAnswer, history_text};
use crate::store::{Claim, Queue, StoreError};
use crate::telemetry::events::{QuickEnded, StoreCallFailed};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// What the fast path did for a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quick {
    /// Groups of tier 0 were written.
    Written {
        /// Seq of the history they were made from.
        seq: u64,
    },
    /// The user has living features, or no event that has words.
    Needless,
    /// The LLM was quicker, or the user was erased meanwhile.
    Refused,
}

impl Refresher {
    /// Makes a first answer out of the user's own history: its text is embedded, quantised and looked up, without the LLM.
    pub async fn quick(&self, user: &str) -> Result<Quick, RefreshError> {
        self.begin()?.quick(user).await
    }
}

impl Attempt<'_> {
    async fn quick(&self, user: &str) -> Result<Quick, RefreshError> {
        // First the cheap look: users whose LLM answer is not there yet are marked with each of their events.
        if self.has_features(user).await? {
            return Ok(Quick::Needless);
        }
        let Some(read) = self.read(user).await? else { return Ok(Quick::Needless) };
        if !read.history.state.has_events() {
            return Ok(Quick::Needless);
        }
        let text =
            history_text(&self.view.bundle().schema, &history_input(&read.history, &self.view.bundle().catalogue));
        if text.is_empty() {
            return Ok(Quick::Needless);
        }
        let (vector, sparse_ids) = self.embed(text).await?;
        let previous = shown_neighbour(&read.stored);
        let chosen = self.neighbour(user, &read.history, &vector, previous.as_ref()).await?;
        let parsed = ParsedAnswer { reasoning: String::new(), answer: String::new(), format_ok: false };
        let made = ModelOutputs { parsed, grounding: Grounding::None, vector, sparse_ids };
        let version = self.version(&read.history);
        let draft = Draft { tier: 0, version, hash: 0, truncated: false, made, chosen, previous };
        match self.write(user, &read, draft).await? {
            Refreshed::Written { seq, .. } => Ok(Quick::Written { seq }),
            _ => Ok(Quick::Refused),
        }
    }

    /// Whether every group is there and alive, whoever made it.
    async fn has_features(&self, user: &str) -> Result<bool, RefreshError> {
        let stored = match self.shared.store.feature_groups(self.space(), &[user.to_string()], &WRITTEN).await {
            Err(error) if error.is_unreadable() => return Ok(false),
            stored => stored?.pop().flatten(),
        };
        let Some(stored) = stored else { return Ok(false) };
        let now_ms = self.shared.store.now_ms().await?;
        Ok(WRITTEN.into_iter().all(|group| stored.living(group, now_ms).is_some()))
    }
}

/// Empties the fast queue until told to stop.
pub(super) async fn run(
    refresher: &Arc<Refresher>,
    wake: &Notify,
    listeners: &Listeners,
    mut stop: watch::Receiver<bool>,
) -> Result<(), StoreError> {
    let poll = Duration::from_millis(refresher.refresh.poll_ms);
    while !*stop.borrow() {
        if !refresher.is_stalled()
            && let Some(claim) = claim_one(refresher).await
        {
            let ended = one(refresher, &claim, listeners).await;
            match ended.inspect_err(|error| StoreCallFailed { operation: "fast_path", error }.emit(&refresher.metrics))
            {
                // Only a start opens the engine anew.
                Err(error @ StoreError::Poisoned { .. }) => return Err(error),
                // The user comes back when the lease runs out.
                _ => continue,
            }
        }
        tokio::select! {
            _ = stop.changed() => {}
            _ = wake.notified() => {}
            _ = tokio::time::sleep(poll) => {}
        }
    }
    Ok(())
}

async fn claim_one(refresher: &Refresher) -> Option<Claim> {
    let lease = Duration::from_millis(refresher.refresh.lease_ms);
    match refresher.store.claim(Queue::Fast, 1, lease).await {
        Ok(mut claims) => claims.pop(),
        Err(error) => {
            StoreCallFailed { operation: "claim", error: &error }.emit(&refresher.metrics);
            None
        }
    }
}

/// One claimed user. A failure is not tried again: the LLM's refresh of the same user is due anyway.
async fn one(refresher: &Arc<Refresher>, claim: &Claim, listeners: &Listeners) -> Result<(), StoreError> {
    let (user, started) = (claim.user.as_str(), Instant::now());
    // A task of its own, so that a panic over one user ends neither the worker nor the process.
    let (worker, name) = (refresher.clone(), claim.user.clone());
    let mut quick = tokio::spawn(async move { worker.quick(&name).await });
    let limit = refresher.deadline();
    let ended = match tokio::time::timeout(limit, &mut quick).await {
        Ok(ended) => ended.unwrap_or_else(|error| Err(RefreshError::Task(error.to_string()))),
        Err(_) => {
            quick.abort();
            Err(RefreshError::Deadline(limit))
        }
    };
    match ended {
        Ok(Quick::Written { seq }) => {
            let waited_ms = refresher.store.now_ms().await?.saturating_sub(claim.due_ms).max(0);
            let (seconds, waited) = (started.elapsed().as_secs_f64(), waited_ms as f64 / 1000.0);
            QuickEnded::Written { user, seq, seconds, waited }.emit(&refresher.metrics);
            listeners.changed(refresher, user);
        }
        Ok(Quick::Needless) => QuickEnded::Needless { user }.emit(&refresher.metrics),
        Ok(Quick::Refused) => QuickEnded::Refused { user }.emit(&refresher.metrics),
        // One user's record that cannot be read must not end the process; a store that is away says so at the release, too.
        Err(error) => QuickEnded::Failed { user, error: &error }.emit(&refresher.metrics),
    }
    refresher.store.release(Queue::Fast, claim).await?;
    Ok(())
}
