//! Emptying a `cross` that shows an erased user: a function of values, so that every store does the same.
//!
//! In: a record's groups as stored. Out: whether they changed, and how. Callers: the stores.
//!
//! The three groups of one refresh have one version, tier and expiry, and every put judges them alike; so `text`, which
//! names the neighbour, always belongs to the `cross` beside it. That stays true here because none of the three moves:
//! a `cross` that was removed instead could be filled by an older refresh, whose neighbour `text` would not name.

use super::types::{CrossBlank, StoredFeatures};
use crate::feature::{Group, Version};
use crate::proto::{CrossGroup, GroupMeta, TextGroup};
use prost::Message;

/// Empties `cross` and clears the neighbour if `neighbour` is shown as they were before `era`, or if nobody can say: groups
/// that cannot be decoded are emptied, too.
pub fn blank(features: &mut StoredFeatures, neighbour: &str, era: u64) -> CrossBlank {
    let Some(text_blob) = features.groups.iter_mut().find(|blob| blob.group == Group::Text) else {
        return CrossBlank::Other;
    };
    let text = TextGroup::decode(&text_blob.bytes[..]);
    if let Ok(text) = &text {
        if text.neighbour_user_id != neighbour {
            return CrossBlank::Other;
        }
        if text.neighbour_era >= era {
            return CrossBlank::Current;
        }
    }
    let meta = || Some(meta_of(text_blob.version, text_blob.tier, text_blob.expires_at_ms));
    let text = text.unwrap_or_else(|_| TextGroup { meta: meta(), ..TextGroup::default() });
    let text = TextGroup { neighbour_user_id: String::new(), neighbour_era: 0, ..text };
    text_blob.bytes = text.encode_to_vec().into();
    if let Some(blob) = features.groups.iter_mut().find(|blob| blob.group == Group::Cross) {
        let meta = match CrossGroup::decode(&blob.bytes[..]) {
            Ok(cross) => cross.meta,
            Err(_) => Some(meta_of(blob.version, blob.tier, blob.expires_at_ms)),
        };
        blob.bytes = CrossGroup { meta, ..CrossGroup::default() }.encode_to_vec().into();
    }
    features.prompt_hash = 0;
    CrossBlank::Blanked
}

/// What the store itself knows of a group whose message is lost.
fn meta_of(version: Version, tier: u8, expires_at_ms: i64) -> GroupMeta {
    GroupMeta { seq: version.seq, turn: version.turn, tier: tier.into(), expires_at_ms, ..GroupMeta::default() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::feature::GroupBlob;

    fn features(cross: &[u8], text: &[u8]) -> StoredFeatures {
        let blob = |group, bytes: &[u8]| GroupBlob {
            group,
            bytes: bytes.to_vec().into(),
            tier: 1,
            version: Version { seq: 4, turn: 0 },
            expires_at_ms: 9,
        };
        let groups = vec![blob(Group::Cross, cross), blob(Group::Text, text)];
        StoredFeatures { groups, prompt_hash: 7, ..StoredFeatures::default() }
    }

    #[test]
    fn audit_02_a_cross_that_cannot_be_decoded_is_emptied_where_it_shows_the_user_or_nobody_can_say() {
        let shows = |user: &str, era| {
            let group = TextGroup { neighbour_user_id: user.into(), neighbour_era: era, ..TextGroup::default() };
            group.encode_to_vec()
        };
        const GARBAGE: &[u8] = b"\xff\xff\xff";
        for text in [shows("n", 1), GARBAGE.to_vec()] {
            let mut stored = features(GARBAGE, &text);
            assert_eq!(blank(&mut stored, "n", 2), CrossBlank::Blanked);
            let cross = CrossGroup::decode(&stored.group(Group::Cross).unwrap().bytes[..]).unwrap();
            assert_eq!((cross.item_ids.len(), cross.meta.unwrap().seq), (0, 4));
            let text = TextGroup::decode(&stored.group(Group::Text).unwrap().bytes[..]).unwrap();
            assert_eq!((text.neighbour_user_id.as_str(), stored.prompt_hash), ("", 0));
        }
        for (text, found) in [(shows("m", 1), CrossBlank::Other), (shows("n", 2), CrossBlank::Current)] {
            let mut stored = features(GARBAGE, &text);
            assert_eq!(blank(&mut stored, "n", 2), found);
            assert_eq!(stored, features(GARBAGE, &text), "somebody else's, or the new life's");
        }
    }
}
