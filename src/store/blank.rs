//! Emptying a `cross` that shows an erased user: a function of values, so that every store does the same.
//!
//! In: a record's groups as stored. Out: whether they changed, and how. Callers: the stores.
//!
//! The three groups of one refresh have one version, tier and expiry, and every put judges them alike; so `text`, which
//! names the neighbour, always belongs to the `cross` beside it. That stays true here because none of the three moves:
//! a `cross` that was removed instead could be filled by an older refresh, whose neighbour `text` would not name.

use super::codec::CodecResult;
use super::types::{CrossBlank, StoredFeatures};
use crate::feature::Group;
use crate::proto::{CrossGroup, TextGroup};
use prost::Message;

/// Empties `cross` and clears the neighbour if `neighbour` is shown as they were before `era`.
pub fn blank(features: &mut StoredFeatures, neighbour: &str, era: u64) -> CodecResult<CrossBlank> {
    let Some(blob) = features.groups.iter_mut().find(|blob| blob.group == Group::Text) else {
        return Ok(CrossBlank::Other);
    };
    let mut text = TextGroup::decode(blob.bytes.as_slice()).map_err(|error| format!("group text: {error}"))?;
    if text.neighbour_user_id != neighbour {
        return Ok(CrossBlank::Other);
    }
    if text.neighbour_era >= era {
        return Ok(CrossBlank::Current);
    }
    text.neighbour_user_id.clear();
    text.neighbour_era = 0;
    blob.bytes = text.encode_to_vec();
    if let Some(blob) = features.groups.iter_mut().find(|blob| blob.group == Group::Cross) {
        let cross = CrossGroup::decode(blob.bytes.as_slice()).map_err(|error| format!("group cross: {error}"))?;
        blob.bytes = CrossGroup { meta: cross.meta, ..CrossGroup::default() }.encode_to_vec();
    }
    features.prompt_hash = 0;
    Ok(CrossBlank::Blanked)
}
