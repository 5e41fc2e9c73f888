//! The loop that empties the due queue: claim, refresh many at once, renew, release.

use super::{Arrivals, RefreshError, Refreshed, Refresher, Ticket, fast};
use crate::answer::AnswerError;
use crate::clock::unix_ms;
use crate::due::{CLASS_ROUTINE, CLASS_SYNC, CLASS_THRESHOLD, CLASS_URGENT};
use crate::llm::LlmError;
use crate::publish::ChangeFeed;
use crate::store::{Claim, DueEntry, PutRefusal, Queue, QueueDepth, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::events::{ModelStalled, RefreshEnded, StoreCallFailed};
use crate::telemetry::kafka::ChangeDropped;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// A claim asks every shard of the queue, so a busy worker claims for this part of its places at once…
const CLAIMED_AT_ONCE: usize = 4;

/// …unless that keeps a free place waiting for so long.
const GATHERING: Duration = Duration::from_millis(2);

/// Refreshes due users until told to stop.
#[derive(Clone)]
pub struct Worker {
    refresher: Arc<Refresher>,
    /// Rung by the ingest when users became due, so that an idle worker need not wait for its poll.
    wake: Arc<Notify>,
    listeners: Listeners,
}

/// Refreshes under way; each tells in the end whether it left its user due at once.
type Running = JoinSet<Result<bool, StoreError>>;

/// Passes every ring on to both ways of refreshing, until told to stop.
async fn ring_both(
    wake: &Notify,
    due: &Notify,
    quick: &Notify,
    mut stop: watch::Receiver<bool>,
) -> Result<(), StoreError> {
    while !*stop.borrow() {
        tokio::select! {
            _ = stop.changed() => {}
            _ = wake.notified() => {
                due.notify_one();
                quick.notify_one();
            }
        }
    }
    Ok(())
}

/// Who is told of refreshes that ended well.
#[derive(Clone)]
pub struct Listeners {
    /// Requests of this process that wait for one.
    pub arrivals: Arc<Arrivals>,
    /// The change feed, where someone publishes it.
    pub changes: Option<Arc<ChangeFeed>>,
}

impl Worker {
    /// A worker over a refresher.
    pub fn new(refresher: Arc<Refresher>, wake: Arc<Notify>, listeners: Listeners) -> Worker {
        Worker { refresher, wake, listeners }
    }

    /// Runs until `stop` turns true, then finishes the refreshes under way. An error is a store that takes no writes:
    /// going on would burn the LLM for answers that cannot be kept.
    pub async fn run(&self, stop: watch::Receiver<bool>) -> Result<(), StoreError> {
        if !self.refresher.refresh.fast_path {
            return self.refresh_due(&self.wake, stop).await;
        }
        let (due, quick) = (Notify::new(), Notify::new());
        let answers = fast::run(&self.refresher, &quick, &self.listeners, stop.clone());
        let rings = ring_both(&self.wake, &due, &quick, stop.clone());
        tokio::try_join!(self.refresh_due(&due, stop), answers, rings).map(|_| ())
    }

    /// `due` is rung when users became due.
    async fn refresh_due(&self, due: &Notify, mut stop: watch::Receiver<bool>) -> Result<(), StoreError> {
        let mut running = JoinSet::new();
        let places = self.refresher.refresh.concurrency;
        let mut held = Held::default();
        let mut stalled = Stalled::default();
        while !*stop.borrow() {
            let free = places - running.len();
            let allowed = if stalled.look(&self.refresher) { 0 } else { self.allowed(free, &mut held).await };
            let claimed = if allowed > 0 { self.claim(allowed).await } else { Vec::new() };
            let is_short = claimed.len() < allowed.max(1);
            for claim in claimed {
                let ticket = self.refresher.budget.reserve();
                running.spawn(one(self.refresher.clone(), claim, ticket, self.listeners.clone()));
            }
            if running.len() >= places {
                tokio::select! {
                    _ = stop.changed() => {}
                    freed = until_free(&mut running, places.div_ceil(CLAIMED_AT_ONCE)) => freed?,
                }
            } else if is_short {
                self.until_due(&mut running, due, allowed < free, &mut stop).await?;
            }
        }
        while let Some(finished) = running.join_next().await {
            ended(finished)?;
        }
        Ok(())
    }

    /// Waits, with places free, for a reason to claim again: somebody became due, here or (by the poll) elsewhere; a refresh
    /// ended and gave back what it had reserved of the budget that holds others up (`is_held`); or we must stop.
    async fn until_due(
        &self,
        running: &mut Running,
        due: &Notify,
        is_held: bool,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let poll = tokio::time::sleep(Duration::from_millis(self.refresher.refresh.poll_ms));
        tokio::pin!(poll);
        loop {
            tokio::select! {
                _ = stop.changed() => return Ok(()),
                _ = due.notified() => return Ok(()),
                Some(finished) = running.join_next() => {
                    if ended(finished)? || is_held {
                        return Ok(());
                    }
                }
                _ = &mut poll => return Ok(()),
            }
        }
    }

    /// How many users to claim into `free` places: what the token budget lets begin, and always those a caller waits for.
    /// A claim takes the most urgent first, so asking for as many as stand in that class takes them. (If another
    /// replica was quicker, somebody else comes: one refresh of debt, which the next ones wait for.)
    async fn allowed(&self, free: usize, held: &mut Held) -> usize {
        let (refresher, now_ms) = (&self.refresher, unix_ms());
        let left = refresher.budget.left(now_ms);
        for (window, left) in [("second", left.second), ("day", left.day)] {
            if let Some(left) = left {
                refresher.metrics.budget_left.with_label_values(&[window]).set(left);
            }
        }
        let fits = refresher.budget.fits(now_ms);
        if free == 0 || fits >= free {
            held.note(false, &refresher.metrics);
            return free;
        }
        let depth = match refresher.store.queue_depth(Queue::Due).await {
            Ok(depth) => depth,
            Err(error) => {
                StoreCallFailed { operation: "queue_depth", error: &error }.emit(&refresher.metrics);
                QueueDepth::default()
            }
        };
        held.note(fits == 0 && others_are_due(&depth, now_ms), &refresher.metrics);
        free.min(fits.max(waiting_callers(&depth, now_ms)))
    }

    async fn claim(&self, limit: usize) -> Vec<Claim> {
        let lease = Duration::from_millis(self.refresher.refresh.lease_ms);
        match self.refresher.store.claim(Queue::Due, limit, lease).await {
            Ok(claims) => claims,
            Err(error) => {
                StoreCallFailed { operation: "claim", error: &error }.emit(&self.refresher.metrics);
                Vec::new()
            }
        }
    }
}

impl Listeners {
    fn tell(&self, refresher: &Refresher, user: &str, refreshed: &Refreshed) {
        match refreshed {
            Refreshed::Written { seq, .. } => {
                self.arrivals.announce(user, *seq);
                self.changed(refresher, user);
            }
            Refreshed::Skipped { seq, .. } => self.arrivals.announce(user, *seq),
            Refreshed::Refused(_) | Refreshed::Unknown => {}
        }
    }

    /// What a reader of the user's features gets is new.
    pub(super) fn changed(&self, refresher: &Refresher, user: &str) {
        if self.changes.as_ref().is_some_and(|changes| !changes.note(user)) {
            ChangeDropped { user }.emit(&refresher.metrics);
        }
    }
}

/// Since when the budget lets no refresh begin while users are due.
#[derive(Default)]
struct Held {
    since: Option<Instant>,
}

impl Held {
    /// Adds the time since the last note, if the budget held users back then.
    fn note(&mut self, holds: bool, metrics: &Metrics) {
        let now = Instant::now();
        if let Some(since) = self.since.take() {
            metrics.budget_held.inc_by(now.duration_since(since).as_secs_f64());
        }
        self.since = holds.then_some(now);
    }
}

/// Whether a model of this process is stalled, said once each time.
#[derive(Default)]
struct Stalled(bool);

impl Stalled {
    fn look(&mut self, refresher: &Refresher) -> bool {
        let is_stalled = refresher.is_stalled();
        if is_stalled != self.0 {
            ModelStalled { stalls: &refresher.live.view().stalls(), is_over: !is_stalled }.emit();
        }
        self.0 = is_stalled;
        is_stalled
    }
}

/// Whether the time of anybody has come for whom no caller waits.
fn others_are_due(depth: &QueueDepth, now_ms: i64) -> bool {
    depth.classes.iter().any(|(class, _, oldest_ms)| *class != CLASS_SYNC && *oldest_ms <= now_ms)
}

/// Users of class 0 whose time has come (all of them, if it has for the oldest).
fn waiting_callers(depth: &QueueDepth, now_ms: i64) -> usize {
    let mut due = depth.classes.iter().filter(|(class, _, oldest_ms)| *class == CLASS_SYNC && *oldest_ms <= now_ms);
    due.next().map_or(0, |(_, users, _)| *users)
}

/// Waits, with every place taken, until `wanted` are free; no longer than [`GATHERING`] with the first.
async fn until_free(running: &mut Running, wanted: usize) -> Result<(), StoreError> {
    let Some(first) = running.join_next().await else { return Ok(()) };
    ended(first)?;
    let deadline = tokio::time::Instant::now() + GATHERING;
    for _ in 1..wanted {
        match tokio::time::timeout_at(deadline, running.join_next()).await {
            Ok(Some(finished)) => ended(finished)?,
            Ok(None) | Err(_) => return Ok(()),
        };
    }
    Ok(())
}

/// Whether the user was left due at once. A panicked task leaves its lease to run out; the user is then claimed again.
fn ended(finished: Result<Result<bool, StoreError>, tokio::task::JoinError>) -> Result<bool, StoreError> {
    finished.unwrap_or_else(|error| {
        tracing::error!(%error, "a refresh task died; its user is taken up again when the lease runs out");
        Ok(false)
    })
}

/// One claimed user: refresh, mark due again where needed, release. Whether the user was left due at once.
async fn one(
    refresher: Arc<Refresher>,
    claim: Claim,
    ticket: Ticket,
    listeners: Listeners,
) -> Result<bool, StoreError> {
    let started = Instant::now();
    let result = in_time(&refresher, &claim).await;
    drop(ticket);
    if let Ok(refreshed) = &result {
        listeners.tell(&refresher, &claim.user, refreshed);
    }
    let finished = finish(&refresher, &claim, result, started).await.inspect_err(|error| {
        StoreCallFailed { operation: "release", error }.emit(&refresher.metrics);
    });
    match finished {
        // Only a start opens the engine anew.
        Err(error @ StoreError::Poisoned { .. }) => Err(error),
        // No other failure ends the process: the user comes back when the lease runs out. A server that is away comes back, one
        // that refuses us or lacks our functions is put right from outside, one bad record is one user's; reads go on meanwhile.
        finished => Ok(finished.unwrap_or(false)),
    }
}

/// Runs the refresh within its deadline. What is cut off in between is what a crash there leaves, too.
async fn in_time(refresher: &Refresher, claim: &Claim) -> Result<Refreshed, RefreshError> {
    let limit = refresher.deadline();
    let ended = tokio::time::timeout(limit, with_renewal(refresher, claim)).await;
    ended.unwrap_or(Err(RefreshError::Deadline(limit)))
}

/// Runs the refresh, renewing the lease at half time.
async fn with_renewal(refresher: &Refresher, claim: &Claim) -> Result<Refreshed, RefreshError> {
    let lease = Duration::from_millis(refresher.refresh.lease_ms);
    let work = refresher.refresh(&claim.user, claim.class);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = tokio::time::sleep(lease / 2) => {
                if !refresher.store.renew(Queue::Due, claim, lease).await? {
                    // Another worker has the user now; what we would write is compared by version anyway.
                    return Err(RefreshError::Task("the lease was lost".to_string()));
                }
            }
        }
    }
}

/// Tells how it went, marks due again where needed, releases. Whether the user was left due at once.
async fn finish(
    refresher: &Refresher,
    claim: &Claim,
    result: Result<Refreshed, RefreshError>,
    started: Instant,
) -> Result<bool, StoreError> {
    let store = refresher.store.as_ref();
    let again = report(refresher, claim, &result, started.elapsed());
    let now_ms = match again {
        // Due first, released second: a crash between the two leaves a user due, never forgotten.
        Some((class, delay_ms)) => {
            let now_ms = store.now_ms().await?;
            let entry = DueEntry { user: claim.user.clone(), class, due_ms: now_ms.saturating_add(delay_ms) };
            store.mark_due(Queue::Due, &[entry]).await?;
            store.release(Queue::Due, claim).await?;
            now_ms
        }
        None => tokio::try_join!(store.now_ms(), store.release(Queue::Due, claim))?.0,
    };
    if matches!(result, Ok(Refreshed::Written { .. })) {
        refresher.metrics.freshness.observe(((now_ms - claim.due_ms).max(0)) as f64 / 1000.0);
    }
    Ok(again.is_some_and(|(_, delay_ms)| delay_ms == 0))
}

/// Emits what became of a refresh. If the user must be due again: in which class, and how many ms from now.
fn report(
    refresher: &Refresher,
    claim: &Claim,
    result: &Result<Refreshed, RefreshError>,
    took: Duration,
) -> Option<(u8, i64)> {
    let (user, metrics, settings) = (claim.user.as_str(), &refresher.metrics, &refresher.refresh);
    // Class 0 is for as long as a caller waits, which a second try does not know.
    let later = claim.class.max(CLASS_URGENT);
    match result {
        Ok(Refreshed::Written { seq, current_seq }) => {
            RefreshEnded::Written { user, seq: *seq, seconds: took.as_secs_f64() }.emit(metrics);
            // More events came while the LLM wrote.
            (current_seq > seq).then_some((CLASS_THRESHOLD, settings.min_interval_ms))
        }
        Ok(Refreshed::Skipped { seq, current_seq }) => {
            RefreshEnded::Skipped { user, seq: *seq }.emit(metrics);
            (current_seq > seq).then_some((CLASS_THRESHOLD, 0))
        }
        Ok(Refreshed::Refused(refusal)) => {
            RefreshEnded::Refused { user, refusal: *refusal }.emit(metrics);
            // Stale: something newer stands there. Anything else changed under us: read again.
            (*refusal != PutRefusal::Stale).then_some((later, settings.retry_ms))
        }
        Ok(Refreshed::Unknown) => {
            RefreshEnded::Nothing { user }.emit(metrics);
            None
        }
        Err(RefreshError::Answer(AnswerError::Llm(LlmError::Overloaded { .. }))) => {
            RefreshEnded::Deferred { user }.emit(metrics);
            Some((later, settings.retry_ms))
        }
        Err(RefreshError::Answer(AnswerError::Llm(error @ LlmError::PromptTooLong { .. }))) => {
            RefreshEnded::Failed { user, error }.emit(metrics);
            // Only new events can change that.
            Some((CLASS_ROUTINE, settings.max_interval_ms))
        }
        Err(error @ RefreshError::Store(StoreError::Corrupt { .. })) => {
            RefreshEnded::Failed { user, error }.emit(metrics);
            // Trying again changes nothing; the sweep, or their next event, marks them when the record was put right.
            None
        }
        Err(error) => {
            RefreshEnded::Failed { user, error }.emit(metrics);
            Some((later, settings.retry_ms))
        }
    }
}
