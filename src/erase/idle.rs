//! Users of whom nothing came for long are erased, where `store.user_idle_ttl_ms` says so.
//!
//! In: a walk over all users. Out: erasures, of which [`super::Eraser`] does the rest. Whether a user is quiet is known by their `seq`:
//! the walk notes it, and finds it the same a whole time later, by a time that only looks carry on.
//!
//! A noted erasure is carried out by whoever finds it, whatever came since. So nothing is noted before it took place:
//!
//! | step | why here |
//! |---|---|
//! | plan: an id, the `seq`, whom the user's features show | a crash leaves it, and the next step goes on with it; nobody else knows it |
//! | `erase_idle_user` | compares the `seq` once more; an event that comes later is newer than what it erases up to |
//! | the user's own notes at the neighbours they showed | the features that named them are gone by now, the plan names them |
//! | settle: the erasure is noted under its id, the plan goes | its erasure was applied: whoever finds it only does the rest |
//!
//! Each may be repeated, also by two processes at once: the id is applied once, and the second finds it applied. What took place and was
//! not settled the [`super::Eraser`] goes on with as well: there may be no idle job any more.

use super::job::{EraseStop, GoOn, if_readable, next};
use crate::refresh::read_shown_neighbour;
use crate::store::chore::Chore;
use crate::store::{FeatureStore, IdleErasure, IdlePlan, StoreError, StoreResult};
use crate::telemetry::Metrics;
use crate::telemetry::events::StoreCallFailed;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Users erased in one step at most: its lease must not run out.
const STEP_USERS: usize = 50;
/// A look counts for no more than so many times the time between two.
const LATE_LOOKS: u32 = 2;

/// Walks all users of the store.
pub struct IdleUsers {
    /// How long nothing may come.
    pub ttl_ms: i64,
    /// Time between two walks.
    pub every: Duration,
    /// Counts who is erased.
    pub metrics: Arc<Metrics>,
    /// Ends a step between two users.
    pub stop: watch::Receiver<bool>,
}

#[async_trait]
impl Chore for IdleUsers {
    fn name(&self) -> String {
        "idle".into()
    }

    /// A place is the store's behind a colon, so that its beginning is told from the end.
    async fn step(&mut self, store: &dyn FeatureStore, place: &str) -> StoreResult<String> {
        let from = place.strip_prefix(':').unwrap_or_default();
        for left in store.idle_erasures().await? {
            if !self.carry_out(store, &left).await? {
                return Ok(format!(":{from}"));
            }
        }
        let at_most = i64::try_from((self.every * LATE_LOOKS).as_millis()).unwrap_or(i64::MAX);
        let at_ms = store.quiet_time(at_most).await?;
        let (quiet, after) = store.quiet_users(self.ttl_ms, at_ms, from).await?;
        let (spaces, mut planned) = (store.spaces().await?, 0);
        for (user, seq) in quiet {
            let Some(idle) = plan(store, &user, seq, &spaces).await? else { continue };
            planned += 1;
            // Whoever was erased is not found quiet again, so that the same part of the walk comes to its end.
            if !self.carry_out(store, &idle).await? || planned == STEP_USERS {
                return Ok(format!(":{from}"));
            }
        }
        Ok(if after.is_empty() { after } else { format!(":{after}") })
    }
}

impl IdleUsers {
    /// False when it was asked to stop. A record that cannot be read ends this user's alone.
    async fn carry_out(&self, store: &dyn FeatureStore, idle: &IdleErasure) -> StoreResult<bool> {
        match carry_out_idle(store, idle, &|| !*self.stop.borrow()).await {
            Ok(true) => self.metrics.erasures.with_label_values(&["idle"]).inc(),
            Ok(false) => {}
            Err(EraseStop::Asked | EraseStop::Untold) => return Ok(false),
            Err(EraseStop::Store(error)) if error.is_unreadable() => self.tell(&error),
            Err(EraseStop::Store(error)) => return Err(error),
        }
        Ok(true)
    }

    fn tell(&self, error: &StoreError) {
        StoreCallFailed { operation: "erase idle user", error }.emit(&self.metrics);
    }
}

/// Walks until nobody is left who is idle, whatever the time.
#[cfg(test)]
pub(crate) async fn erase_all_idle(store: &dyn FeatureStore) {
    let (_stop, stop) = watch::channel(false);
    let metrics = Arc::new(Metrics::new().unwrap_or_else(|error| panic!("metrics: {error}")));
    let mut idle = IdleUsers { ttl_ms: 0, every: Duration::from_secs(1), metrics, stop };
    // The first walk notes who is quiet.
    for _ in 0..2 {
        let mut place = String::new();
        loop {
            place = idle.step(store, &place).await.unwrap_or_else(|error| panic!("a step of the idle job: {error}"));
            if place.is_empty() {
                break;
            }
        }
    }
}

/// First step; `None` where another erasure of the user is under way.
pub(super) async fn plan(
    store: &dyn FeatureStore,
    user: &str,
    seq: u64,
    spaces: &[String],
) -> StoreResult<Option<IdleErasure>> {
    let mut shown = Vec::new();
    for space in spaces {
        // Whom unreadable features show nobody can say: a note too many makes the cap stricter, never looser.
        if let Some(neighbour) = if_readable(read_shown_neighbour(store, space, user).await)?.flatten() {
            shown.push((space.clone(), neighbour.user));
        }
    }
    store.plan_idle_erasure(user, &IdlePlan { seq, shown }).await
}

/// The other steps; returns whether it took place.
pub(super) async fn carry_out_idle(
    store: &dyn FeatureStore,
    idle: &IdleErasure,
    go_on: GoOn<'_>,
) -> Result<bool, EraseStop> {
    next(go_on)?;
    if store.erase_idle_user(idle).await?.1 {
        finish(store, idle, go_on).await?;
        return Ok(true);
    }
    next(go_on)?;
    store.settle_idle_erasure(idle, false).await?;
    Ok(false)
}

/// The last steps of those that took place and whose process died.
pub(super) async fn finish_applied(store: &dyn FeatureStore, go_on: GoOn<'_>) -> Result<(), EraseStop> {
    for idle in store.idle_erasures().await? {
        next(go_on)?;
        // A `seq` that nobody has: it erases nobody here, and tells who was.
        let plan = IdlePlan { seq: u64::MAX, ..idle.plan.clone() };
        let told = store.erase_idle_user(&IdleErasure { plan, ..idle.clone() }).await;
        if if_readable(told)?.is_some_and(|(_, took_place)| took_place) {
            finish(store, &idle, go_on).await?;
        }
    }
    Ok(())
}

/// The steps after it took place.
async fn finish(store: &dyn FeatureStore, idle: &IdleErasure, go_on: GoOn<'_>) -> Result<(), EraseStop> {
    for (space, neighbour) in &idle.plan.shown {
        next(go_on)?;
        if_readable(store.remove_referrer(space, neighbour, &idle.user).await)?;
        // A repeat may come when they are back and show the same one.
        let now = if_readable(read_shown_neighbour(store, space, &idle.user).await)?.flatten();
        if now.is_some_and(|now| now.user == *neighbour) {
            if_readable(store.add_referrer(space, neighbour, &idle.user).await)?;
        }
    }
    next(go_on)?;
    Ok(store.settle_idle_erasure(idle, true).await?)
}
