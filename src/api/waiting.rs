//! Waiting for refreshes: the one exception to "a read never waits for a model" (DESIGN 3, rule 1).
//!
//! In: users, as their counters stood when the request came, and a time limit. Out: whether every one of them was
//! refreshed. Callers: `refresh` (`wait_ms`), `staleness` (`max_staleness_ms` with `deadline_ms`).
//!
//! A refresh in this process rings at once ([`Arrivals`]); one in another is found in the store, looked at in pauses of an
//! eighth of the time waited so far, so that no answer comes much later than it could. The number of requests that wait is
//! limited, a client that hangs up gives its place back, and a drain ends all waits at once.

use super::ApiState;
use crate::config::ServerSettings;
use crate::due::{CLASS_SYNC, FastQueue};
use crate::http::ApiError;
use crate::live::View;
use crate::refresh::Arrivals;
use crate::store::{DueEntry, Queue, UserMarks};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Shortest and longest pause between two looks into the store.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// The requests that wait; one a process.
pub struct Waiting {
    places: Semaphore,
    limit: usize,
    longest_ms: u64,
    arrivals: Arc<Arrivals>,
    fast: FastQueue,
    draining: watch::Sender<bool>,
}

/// A user waited for, as the store had them when the request came.
pub(super) struct Awaited {
    pub user: String,
    pub before: UserMarks,
    /// Nothing alive stands in the store: a case for the fast path, too.
    pub without_features: bool,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// Every user was refreshed with all events stored before the request.
    Fresh,
    /// The time is over.
    Late,
    /// The process is about to end; the users stay queued.
    Draining,
}

impl Waiting {
    /// Nobody waits yet; `arrivals` is the one the worker announces to. Who is queued by a request is marked in `fast`, too.
    pub fn new(settings: &ServerSettings, arrivals: Arc<Arrivals>, fast: FastQueue) -> Waiting {
        // Those who wait must not take the places of those who only read.
        let limit = settings.max_waiting.min(settings.max_in_flight / 2);
        Waiting {
            places: Semaphore::new(limit),
            limit,
            longest_ms: settings.max_wait_ms,
            arrivals,
            fast,
            draining: watch::Sender::new(false),
        }
    }

    /// Ends every wait now, and each later one as it begins.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// A time limit out of a request, or a 400 that names the field.
    pub(super) fn limit(&self, field: &str, given_ms: Option<u64>) -> Result<Option<Duration>, ApiError> {
        match given_ms {
            None => Ok(None),
            Some(ms) if (1..=self.longest_ms).contains(&ms) => Ok(Some(Duration::from_millis(ms))),
            Some(_) => {
                let message =
                    format!("must be 1 to {} (server.max_wait_ms); leave it out not to wait", self.longest_ms);
                Err(ApiError::field(field, message))
            }
        }
    }
}

/// Puts users into class 0 and waits until each was refreshed, or `limit` is over. 429 when too many requests wait.
///
/// What was queued stays queued, however the wait ends. At most one refresh that began before the request, and had not
/// read every event, goes by.
pub(super) async fn refresh_and_wait(
    state: &ApiState,
    view: &View,
    mut awaited: Vec<Awaited>,
    limit: Duration,
) -> Result<Waited, ApiError> {
    let waiting = &state.waiting;
    let Ok(_place) = waiting.places.try_acquire() else {
        state.metrics.waits.with_label_values(&["refused"]).inc();
        return Err(ApiError::TooManyWaiting { limit: waiting.limit });
    };
    let until = Instant::now() + limit;
    let _counted = Counted::new(state);
    let listener = waiting.arrivals.listen(awaited.iter().map(|awaited| awaited.user.clone()).collect());
    queue(state, &awaited, CLASS_SYNC, Some(limit)).await?;
    let began = Instant::now();
    let mut draining = waiting.draining.subscribe();
    let ended = loop {
        awaited.retain(|awaited| listener.reached(&awaited.user) < Some(awaited.before.state.seq));
        if awaited.is_empty() {
            break Waited::Fresh;
        }
        let left = until.saturating_duration_since(Instant::now());
        let look = pause(began.elapsed()).min(left);
        tokio::select! {
            () = until_true(&mut draining) => break Waited::Draining,
            _ = listener.rung() => continue,
            _ = tokio::time::sleep(look) => drop_refreshed(state, view, &mut awaited).await?,
        }
        if left <= look && !awaited.is_empty() {
            break Waited::Late;
        }
    };
    let label = match ended {
        Waited::Fresh => "fresh",
        Waited::Late => "late",
        Waited::Draining => "draining",
    };
    state.metrics.waits.with_label_values(&[label]).inc();
    Ok(ended)
}

/// Marks users due now (in class 0 for no longer than a caller waits, where one does), and rings the worker.
pub(super) async fn queue(
    state: &ApiState,
    users: &[Awaited],
    class: u8,
    waits: Option<Duration>,
) -> Result<(), ApiError> {
    let due_ms = state.store.now_ms().await?;
    let store = &state.store;
    match waits {
        Some(time) => {
            let names: Vec<String> = users.iter().map(|awaited| awaited.user.clone()).collect();
            let until_ms = due_ms.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
            store.mark_awaited(&names, due_ms, until_ms).await?;
        }
        None => {
            let entry = |awaited: &Awaited| DueEntry { user: awaited.user.clone(), class, due_ms };
            store.mark_due(Queue::Due, &users.iter().map(entry).collect::<Vec<_>>()).await?;
        }
    }
    let missing = users.iter().filter(|awaited| awaited.without_features).map(|awaited| awaited.user.clone());
    state.waiting.fast.mark(store.as_ref(), &missing.collect::<Vec<_>>(), due_ms).await?;
    state.wake.notify_one();
    Ok(())
}

/// Looks into the store; who was refreshed, or erased, is no longer waited for.
async fn drop_refreshed(state: &ApiState, view: &View, awaited: &mut Vec<Awaited>) -> Result<(), ApiError> {
    let users: Vec<String> = awaited.iter().map(|awaited| awaited.user.clone()).collect();
    let found = state.store.states_each(view.spaces().all(), &users).await?;
    let mut found = found.into_iter();
    awaited.retain(|awaited| match found.next() {
        Some(Ok(now)) => !is_over(&awaited.before, &now.unwrap_or_default()),
        // Whose counters cannot be read is waited for in vain; whose node is away may come back in time.
        Some(Err(error)) => !error.is_unreadable(),
        None => false,
    });
    Ok(())
}

/// A refresh has ended since, and it had read every event stored before; or there is nothing left to refresh from.
fn is_over(before: &UserMarks, now: &UserMarks) -> bool {
    let marks = |marks: &UserMarks| (marks.refreshed_seq, marks.state.last_refresh_ms);
    let refreshed = marks(now) != marks(before) && now.refreshed_seq >= Some(before.state.seq);
    refreshed || !now.state.has_events() || now.state.era != before.state.era
}

/// Until the flag turns true, or its sender is gone.
async fn until_true(flag: &mut watch::Receiver<bool>) {
    while !*flag.borrow_and_update() && flag.changed().await.is_ok() {}
}

/// How long to wait before the next look, after waiting so long.
fn pause(waited: Duration) -> Duration {
    (waited / 8).clamp(PAUSES.0, PAUSES.1)
}

/// Shows a request as waiting until it is dropped, which a client that hangs up makes happen early.
struct Counted(prometheus::IntGauge);

impl Counted {
    fn new(state: &ApiState) -> Counted {
        state.metrics.waiting.inc();
        Counted(state.metrics.waiting.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::UserState;
    use proptest::prelude::*;

    fn marks(seq: u64, refreshed_seq: Option<u64>, last_refresh_ms: i64) -> UserMarks {
        UserMarks { state: UserState { seq, last_refresh_ms, ..UserState::default() }, refreshed_seq }
    }

    #[test]
    fn a_wait_is_over_when_a_refresh_has_read_what_was_there() {
        let behind = marks(5, Some(3), 100);
        assert!(!is_over(&behind, &marks(5, Some(3), 100)), "nothing happened");
        assert!(!is_over(&behind, &marks(5, Some(4), 110)), "a refresh that had begun before");
        assert!(!is_over(&behind, &marks(6, Some(3), 100)), "one more event");
        assert!(is_over(&behind, &marks(6, Some(5), 110)));
        let level = marks(5, Some(5), 100);
        assert!(!is_over(&level, &level), "asked for one more");
        assert!(is_over(&level, &marks(5, Some(5), 101)), "also if it only found nothing new");
        assert!(!is_over(&marks(1, None, 0), &marks(1, None, 0)));
        assert!(is_over(&marks(1, None, 0), &marks(1, Some(1), 1)));
    }

    #[test]
    fn an_erased_user_is_not_waited_for() {
        let erased = UserState { seq: 5, erased_seq: 5, era: 1, ..UserState::default() };
        assert!(is_over(&marks(5, Some(3), 100), &UserMarks { state: erased, refreshed_seq: None }));
        let back = UserState { seq: 6, ..erased };
        assert!(is_over(&marks(5, Some(3), 100), &UserMarks { state: back, refreshed_seq: None }));
        assert!(is_over(&marks(5, Some(3), 100), &UserMarks::default()));
    }

    proptest! {
        /// Looking at the store costs little, and no answer comes later than an eighth of its time, or 10 ms, at most 250 ms.
        #[test]
        fn looks_are_few_and_never_far_apart(limit_ms in 1u64..60_000) {
            let (mut waited, mut looks) = (Duration::ZERO, 0u32);
            while waited < Duration::from_millis(limit_ms) {
                let next = pause(waited);
                prop_assert!(next >= Duration::from_millis(10) && next <= Duration::from_millis(250));
                prop_assert!(next <= (waited / 8).max(Duration::from_millis(10)));
                waited += next;
                looks += 1;
            }
            prop_assert!(u64::from(looks) <= 50 + limit_ms / 250);
        }
    }
}
