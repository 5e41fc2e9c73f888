//! One erasure, step by step. Every step may be repeated, and the order leaves nothing to find after the last one.
//!
//! In: a noted [`Erasure`]. Out: the store without the user. Caller: [`super::Eraser`].
//!
//! | step | why here |
//! |---|---|
//! | the user's own note at the neighbour they show | the features that name the neighbour are deleted next |
//! | `erase_user` | from here on reads find nothing, and refreshes that began before are refused |
//! | tombstones in every space | a vector of the old era that comes later loses against them |
//! | out of the due queues, back in if events came since | forgetting could take a mark of the new life with it |
//! | each referrer: `cross` blanked, marked due, note removed | in this order: a note goes when nothing is shown any more |
//! | the change feed, where it is on, is told of the user and of those blanked, and has published it | a reader of the topic must not keep what is erased, so a crash before this repeats it |
//! | finish | a crash before it repeats steps, and each repeated step finds nothing to do |
//!
//! Two jobs of one erasure at once are harmless: `erase_user` counts once per id, the tombstone is the same, blanking
//! and removing change nothing the second time. A job that hangs while the user comes back with events and is shown
//! anew harms nothing either: what belongs to the new era is left alone ([`CrossBlank::Current`]), and so are the due
//! mark and the notes of the new life. A job of an earlier erasure that goes on after a later one cannot finish the
//! later one: `finish_erasure` compares the id.
//!
//! A refresh under way may show the user after the job has passed: it read the old history, and its note and its put
//! come later. It looks back itself (`refresh::look_back`), and after a crash its repeat sees the old era and does not skip.

use crate::due::{CLASS_THRESHOLD, CLASS_URGENT};
use crate::feature::Version;
use crate::refresh::read_shown_neighbour;
use crate::store::{
    CrossBlank, DueEntry, Erasure, FeatureStore, FreshVector, Queue, StoreError, StoreResult, UserState,
};
use thiserror::Error;

/// Why a job ended before its last step.
#[derive(Debug, Error)]
pub enum EraseStop {
    /// It was asked to; what is left is done at the next run.
    #[error("stopped between two steps; the rest is done at the next run")]
    Asked,
    /// The change feed does not get through; the last step waits for it.
    #[error("the features topic was not told of it yet; the erasure ends when it was")]
    Untold,
    /// A step failed; it is repeated at the next run.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Asked between two steps whether to go on.
pub type GoOn<'a> = &'a (dyn Fn() -> bool + Sync);

/// What takes a user of an earlier era out of an index. Its version is below every refresh's, so that it loses against
/// whatever the user does after the erasure.
pub fn tombstone(user: &str, era: u64) -> FreshVector {
    FreshVector { user: user.to_string(), era, version: Version::default(), vector: None }
}

/// What a job did before its last step.
pub(super) struct Left {
    /// The user's era now.
    pub era: u64,
    /// Users noted as showing the erased one.
    pub referrers: usize,
    /// Of them those who do not show the new life: their features may have changed.
    pub touched: Vec<String>,
}

/// All steps, from the first; returns how many users were noted as showing the erased one.
pub async fn carry_out(store: &dyn FeatureStore, erasure: &Erasure, go_on: GoOn<'_>) -> Result<usize, EraseStop> {
    let left = leave_all(store, erasure, go_on).await?;
    next(go_on)?;
    store.finish_erasure(erasure, left.era).await?;
    Ok(left.referrers)
}

/// All steps but the last.
pub(super) async fn leave_all(store: &dyn FeatureStore, erasure: &Erasure, go_on: GoOn<'_>) -> Result<Left, EraseStop> {
    let spaces = store.spaces().await?;
    let state = hide(store, erasure, &spaces, go_on).await?;
    let mut left = Left { era: state.era, referrers: 0, touched: Vec::new() };
    for space in &spaces {
        for referrer in store.referrers(space, &erasure.user).await? {
            left.referrers += 1;
            if leave(store, space, &referrer, (&erasure.user, state.era), go_on).await? {
                left.touched.push(referrer);
            }
        }
    }
    Ok(left)
}

/// The steps that concern the user alone: after them neither reads nor searches find anything.
pub(super) async fn hide(
    store: &dyn FeatureStore,
    erasure: &Erasure,
    spaces: &[String],
    go_on: GoOn<'_>,
) -> Result<UserState, EraseStop> {
    let user = erasure.user.as_str();
    for space in spaces {
        // Whom unreadable features show nobody can say: a note too many makes the cap stricter, never looser.
        if let Some(shown) = if_readable(read_shown_neighbour(store, space, user).await)?.flatten() {
            next(go_on)?;
            if_readable(store.remove_referrer(space, &shown.user, user).await)?;
        }
    }
    next(go_on)?;
    let state = store.erase_user(erasure).await?;
    for space in spaces {
        next(go_on)?;
        store.append_vector(space, &tombstone(user, state.era)).await?;
    }
    next(go_on)?;
    store.forget_due(user).await?;
    if store.histories(&[user.to_string()]).await?.pop().flatten().is_some_and(|now| now.state.has_events()) {
        restore_new_life(store, user, spaces, go_on).await?;
    }
    Ok(state)
}

/// The user came back before the job was done: what it took of the new life is put back.
async fn restore_new_life(
    store: &dyn FeatureStore,
    user: &str,
    spaces: &[String],
    go_on: GoOn<'_>,
) -> Result<(), EraseStop> {
    for space in spaces {
        if let Some(shown) = if_readable(read_shown_neighbour(store, space, user).await)?.flatten() {
            next(go_on)?;
            if_readable(store.add_referrer(space, &shown.user, user).await)?;
        }
    }
    next(go_on)?;
    Ok(mark_due(store, user, CLASS_URGENT).await?)
}

/// One user who is noted as showing the erased one. False when they show the new life, which stays.
async fn leave(
    store: &dyn FeatureStore,
    space: &str,
    referrer: &str,
    (user, era): (&str, u64),
    go_on: GoOn<'_>,
) -> Result<bool, EraseStop> {
    next(go_on)?;
    if store.blank_cross(space, referrer, user, era).await? == CrossBlank::Current {
        return Ok(false);
    }
    next(go_on)?;
    // Also when nothing was blanked: an earlier run may have ended between the two. A refresh too many is only a skip.
    mark_due(store, referrer, CLASS_THRESHOLD).await?;
    next(go_on)?;
    store.remove_referrer(space, user, referrer).await?;
    // A refresh that shows the user's new life may have come between the look and the removal.
    if store.blank_cross(space, referrer, user, era).await? == CrossBlank::Current {
        store.add_referrer(space, user, referrer).await?;
    }
    Ok(true)
}

/// What was read, or nothing where one record cannot be: the erasure goes on without it.
pub(super) fn if_readable<T>(read: StoreResult<T>) -> StoreResult<Option<T>> {
    match read {
        Err(error) if error.is_unreadable() => Ok(None),
        read => read.map(Some),
    }
}

async fn mark_due(store: &dyn FeatureStore, user: &str, class: u8) -> StoreResult<()> {
    let due_ms = store.now_ms().await?;
    store.mark_due(Queue::Due, &[DueEntry { user: user.to_string(), class, due_ms }]).await
}

pub(super) fn next(go_on: GoOn<'_>) -> Result<(), EraseStop> {
    if go_on() { Ok(()) } else { Err(EraseStop::Asked) }
}
