//! After a put: was the neighbour, or the user, erased while the refresh was under way? (DESIGN 5.2, Put.)
//!
//! In: both with the eras that the refresh read. Out: `cross` empty again and the user due, if the neighbour's era moved.
//! Caller: one refresh, after its put. The erase job may have passed before the put; nobody else would clear it then.

use crate::due::CLASS_THRESHOLD;
use crate::feature::{DecodedGroup, Group};
use crate::store::{DueEntry, FeatureStore, Queue, StoreResult, StoredFeatures};

/// A user and the era in which their history was read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct UserEra {
    pub user: String,
    pub era: u64,
}

/// The neighbour the stored `cross` shows.
pub fn shown_neighbour(stored: &StoredFeatures) -> Option<UserEra> {
    match DecodedGroup::decode(stored.group(Group::Text)?) {
        Ok(DecodedGroup::Text(text)) if !text.neighbour_user_id.is_empty() => {
            Some(UserEra { user: text.neighbour_user_id, era: text.neighbour_era })
        }
        _ => None,
    }
}

/// The neighbour a user's stored `cross` shows, read from the store. Its name stands beside the text.
pub async fn read_shown_neighbour(store: &dyn FeatureStore, space: &str, user: &str) -> StoreResult<Option<UserEra>> {
    let stored = store.feature_groups(space, &[user.to_string()], &[Group::Text]).await?.pop().flatten();
    Ok(stored.as_ref().and_then(shown_neighbour))
}

/// Looks both eras up again. True when `cross` had to be emptied.
///
/// The note of before the put is written once more, first of all: another writer of this user, or the job of an earlier
/// erasure, may have taken it away before the put. (An erasure that comes after the look finds it.)
pub async fn look_back(
    store: &dyn FeatureStore,
    space: &str,
    user: &UserEra,
    neighbour: &UserEra,
) -> StoreResult<bool> {
    store.add_referrer(space, &neighbour.user, &user.user).await?;
    let names = [user.user.clone(), neighbour.user.clone()];
    let found = store.states(&[], &names).await?;
    let era = |place: usize| found.get(place).and_then(Option::as_ref).map_or(0, |marks| marks.state.era);
    if era(0) != user.era {
        // The user's own features are gone; the note of whom they showed would stay.
        drop_note(store, space, &user.user, &neighbour.user).await?;
        return Ok(false);
    }
    if era(1) != neighbour.era {
        store.blank_cross(space, &user.user, &neighbour.user, era(1)).await?;
        let due_ms = store.now_ms().await?;
        let entry = DueEntry { user: user.user.clone(), class: CLASS_THRESHOLD, due_ms };
        store.mark_due(Queue::Due, &[entry]).await?;
        drop_note(store, space, &user.user, &neighbour.user).await?;
        return Ok(true);
    }
    Ok(false)
}

/// Takes back the note that `user` shows `neighbour`, unless what stands in the store shows them.
///
/// A user may be written twice at once: by the fast path beside the LLM, or after a lease ran out. A note that is missing
/// would hide the user from the neighbour's erasure; one too many only makes the cap stricter. So who shows a neighbour
/// writes the note before the put and again after it, and who takes one away looks afterwards, too: in whatever order
/// they come, the last of these steps finds what the other did.
pub async fn drop_note(store: &dyn FeatureStore, space: &str, user: &str, neighbour: &str) -> StoreResult<()> {
    if is_shown(store, space, user, neighbour).await? {
        return Ok(());
    }
    store.remove_referrer(space, neighbour, user).await?;
    if is_shown(store, space, user, neighbour).await? {
        store.add_referrer(space, neighbour, user).await?;
    }
    Ok(())
}

async fn is_shown(store: &dyn FeatureStore, space: &str, user: &str, neighbour: &str) -> StoreResult<bool> {
    Ok(read_shown_neighbour(store, space, user).await?.is_some_and(|seen| seen.user == neighbour))
}
