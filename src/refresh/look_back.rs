//! After a put: was the neighbour, or the user, erased while the refresh was under way? (DESIGN 5.2, Put.)
//!
//! In: both with the eras that the refresh read. Out: `cross` empty again and the user due, if the neighbour's era moved.
//! Caller: one refresh, after its put. The erase job may have passed before the put; nobody else would clear it then.

use super::CLASS_THRESHOLD;
use crate::feature::DecodedGroup;
use crate::store::{DueEntry, FeatureStore, Group, StoreResult, StoredFeatures};

/// A user and the era in which their history was read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Seen {
    pub user: String,
    pub era: u64,
}

/// The neighbour the stored `cross` shows.
pub fn shown_neighbour(stored: &StoredFeatures) -> Option<Seen> {
    let blob = stored.groups.iter().find(|blob| blob.group == Group::Text)?;
    match DecodedGroup::decode(blob) {
        Ok(DecodedGroup::Text(text)) if !text.neighbour_user_id.is_empty() => {
            Some(Seen { user: text.neighbour_user_id, era: text.neighbour_era })
        }
        _ => None,
    }
}

/// Looks both eras up again. True when `cross` had to be emptied.
pub async fn look_back(store: &dyn FeatureStore, space: &str, user: &Seen, neighbour: &Seen) -> StoreResult<bool> {
    let names = [user.user.clone(), neighbour.user.clone()];
    let found = store.states(space, &names).await?;
    let era = |place: usize| found.get(place).and_then(Option::as_ref).map_or(0, |marks| marks.state.era);
    if era(0) != user.era {
        // The user's own features are gone; the note of whom they showed would stay.
        store.remove_referrer(space, &neighbour.user, &user.user).await?;
        return Ok(false);
    }
    if era(1) != neighbour.era {
        store.blank_cross(space, &user.user, &neighbour.user, era(1)).await?;
        let due_ms = store.now_ms().await?;
        let entry = DueEntry { user: user.user.clone(), class: CLASS_THRESHOLD, due_ms };
        store.mark_due(space, &[entry]).await?;
        store.remove_referrer(space, &neighbour.user, &user.user).await?;
        return Ok(true);
    }
    if user.era.max(neighbour.era) > 0 {
        // A job of the erasure before may have removed the note between its writing and the put.
        store.add_referrer(space, &neighbour.user, &user.user).await?;
    }
    Ok(false)
}
