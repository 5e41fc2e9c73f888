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
    /// `None` = present.
    pub reason: Option<&'static str>,
}

impl GroupView {
    /// Provenance; zeros when absent.
    pub fn meta(&self) -> &GroupMeta {
        self.group.meta()
    }

    /// PRESENT or MISSING.
    pub fn status(&self) -> &'static str {
        if self.reason.is_none() { "PRESENT" } else { "MISSING" }
    }
}

/// What an answer has of a stored group: what every answer must know; how much more is the type's.
pub trait FromBlob: Sized {
    /// Of a blob whose time is not over; `None` where it cannot be decoded.
    fn present(blob: &GroupBlob) -> Option<Self>;

    /// Of what is not there, for this reason; `slots` is the length of the default sparse IDs.
    fn absent(group: Group, reason: &'static str, slots: usize) -> Self;

    /// Why it is absent; `None` = present.
    fn reason(&self) -> Option<&'static str>;

    /// The epoch that made it; 0 when absent.
    fn epoch(&self) -> u64;
}

impl FromBlob for GroupView {
    fn present(blob: &GroupBlob) -> Option<GroupView> {
        Some(GroupView { group: DecodedGroup::decode(blob).ok()?, reason: None })
    }

    fn absent(group: Group, reason: &'static str, slots: usize) -> GroupView {
        absent(group, reason, slots)
    }

    fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    fn epoch(&self) -> u64 {
        self.meta().epoch
    }
}

/// One group of one user for an answer that passes on what is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupStatus {
    epoch: u64,
    reason: Option<&'static str>,
}

impl FromBlob for GroupStatus {
    fn present(blob: &GroupBlob) -> Option<GroupStatus> {
        DecodedGroup::epoch_of(blob).ok().map(|epoch| GroupStatus { epoch, reason: None })
    }

    fn absent(_: Group, reason: &'static str, _: usize) -> GroupStatus {
        GroupStatus { epoch: 0, reason: Some(reason) }
    }

    fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// The view of one group at store time `now_ms`; `slots` is the length of the default sparse IDs.
pub fn view<R: FromBlob>(stored: Option<&GroupBlob>, group: Group, now_ms: i64, slots: usize) -> R {
    let reason = match stored {
        _ if group == Group::Scid => NOT_BUILT,
        None => NO_FEATURES,
        Some(blob) if blob.is_expired(now_ms) => EXPIRED,
        Some(blob) => match R::present(blob) {
            Some(present) => return present,
            None => UNREADABLE,
        },
    };
    R::absent(group, reason, slots)
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
    GroupView { group, reason: Some(reason) }
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
            bytes: intra.encode_to_vec().into(),
            tier: 1,
            version: Version::default(),
            expires_at_ms,
        }
    }

    #[test]
    fn every_reason_of_absence() {
        let reason = |stored: Option<&GroupBlob>, group| {
            let decoded: GroupView = view(stored, group, 100, 2);
            let passed_on: GroupStatus = view(stored, group, 100, 2);
            assert_eq!((decoded.reason(), decoded.epoch()), (passed_on.reason(), passed_on.epoch()));
            decoded.reason
        };
        assert_eq!(reason(Some(&stored(0)), Group::Intra), None);
        assert_eq!(reason(Some(&stored(101)), Group::Intra), None);
        assert_eq!(reason(Some(&stored(100)), Group::Intra), Some(EXPIRED));
        assert_eq!(reason(None, Group::Intra), Some(NO_FEATURES));
        assert_eq!(reason(Some(&stored(0)), Group::Scid), Some(NOT_BUILT));
        let mut cut = stored(0);
        cut.bytes = vec![0xFF; 3].into();
        assert_eq!(reason(Some(&cut), Group::Intra), Some(UNREADABLE));
    }

    #[test]
    fn defaults_have_the_shape_of_the_real_thing() {
        let missing: GroupView = view(None, Group::Intra, 0, 3);
        assert_eq!(missing.group, DecodedGroup::Intra(IntraGroup { sparse_ids: vec![0; 3], ..IntraGroup::default() }));
        assert_eq!(missing.status(), "MISSING");
    }
}
