//! A user's stored groups as a reader sees them: present, or absent with a reason and defaults.

use super::{DecodedGroup, Group, GroupBlob};
use crate::proto::{CrossGroup, GroupMeta, IntraGroup, ScidGroup, TextGroup};

/// Why a group is absent (DESIGN 5.4).
pub const NO_FEATURES: &str = "no_features";
/// Its time is over.
pub const EXPIRED: &str = "expired";
/// What the store keeps of the user cannot be read.
pub const UNREADABLE: &str = "unreadable";
/// The node of the store that keeps the user does not answer.
pub const UNREACHABLE: &str = "unreachable";
/// This version of taiji does not make it.
pub const NOT_BUILT: &str = "not_built";

/// One group of one user.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupView {
    /// The message; defaults when absent.
    pub group: DecodedGroup,
    /// Provenance; zeros when absent.
    pub meta: GroupMeta,
    /// `None` = present.
    pub reason: Option<&'static str>,
}

impl GroupView {
    /// PRESENT or MISSING.
    pub fn status(&self) -> &'static str {
        if self.reason.is_none() { "PRESENT" } else { "MISSING" }
    }
}

/// The view of one group at store time `now_ms`; `slots` is the length of the default sparse IDs.
pub fn view(stored: Option<&GroupBlob>, group: Group, now_ms: i64, slots: usize) -> GroupView {
    if group == Group::Scid {
        return absent(group, NOT_BUILT, slots);
    }
    let Some(blob) = stored else {
        return absent(group, NO_FEATURES, slots);
    };
    if blob.is_expired(now_ms) {
        return absent(group, EXPIRED, slots);
    }
    match DecodedGroup::decode(blob) {
        Ok(decoded) => GroupView { meta: decoded.meta(), group: decoded, reason: None },
        Err(_) => absent(group, UNREADABLE, slots),
    }
}

/// The view of a group of which nothing is there, for this reason; of one that is never made, for that.
pub fn absent(group: Group, reason: &'static str, slots: usize) -> GroupView {
    let reason = if group == Group::Scid { NOT_BUILT } else { reason };
    let group = match group {
        Group::Intra => DecodedGroup::Intra(IntraGroup { sparse_ids: vec![0; slots], ..IntraGroup::default() }),
        Group::Cross => DecodedGroup::Cross(CrossGroup::default()),
        Group::Scid => DecodedGroup::Scid(ScidGroup::default()),
        Group::Text => DecodedGroup::Text(TextGroup::default()),
    };
    GroupView { group, meta: GroupMeta::default(), reason: Some(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Version;
    use prost::Message;

    fn stored(expires_at_ms: i64) -> GroupBlob {
        let intra = IntraGroup { sparse_ids: vec![5], has_llm_feature: true, ..IntraGroup::default() };
        GroupBlob {
            group: Group::Intra,
            bytes: intra.encode_to_vec(),
            tier: 1,
            version: Version::default(),
            expires_at_ms,
        }
    }

    #[test]
    fn every_reason_of_absence() {
        let reason = |stored: Option<&GroupBlob>, group| view(stored, group, 100, 2).reason;
        assert_eq!(reason(Some(&stored(0)), Group::Intra), None);
        assert_eq!(reason(Some(&stored(101)), Group::Intra), None);
        assert_eq!(reason(Some(&stored(100)), Group::Intra), Some(EXPIRED));
        assert_eq!(reason(None, Group::Intra), Some(NO_FEATURES));
        assert_eq!(reason(Some(&stored(0)), Group::Scid), Some(NOT_BUILT));
        let mut cut = stored(0);
        cut.bytes = vec![0xFF; 3];
        assert_eq!(reason(Some(&cut), Group::Intra), Some(UNREADABLE));
    }

    #[test]
    fn defaults_have_the_shape_of_the_real_thing() {
        let missing = view(None, Group::Intra, 0, 3);
        assert_eq!(missing.group, DecodedGroup::Intra(IntraGroup { sparse_ids: vec![0; 3], ..IntraGroup::default() }));
        assert_eq!(missing.status(), "MISSING");
    }
}
