//! The groups of a feature record, and a group as the store keeps it.

use bytes::Bytes;

/// The groups of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Group {
    Intra,
    Cross,
    Scid,
    Text,
}

impl Group {
    /// All groups in wire order.
    pub const ALL: [Group; 4] = [Group::Intra, Group::Cross, Group::Scid, Group::Text];

    /// Name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Group::Intra => "intra",
            Group::Cross => "cross",
            Group::Scid => "scid",
            Group::Text => "text",
        }
    }

    /// The group of that name.
    pub fn parse(name: &str) -> Option<Group> {
        Group::ALL.into_iter().find(|group| group.as_str() == name)
    }
}

/// `(seq, turn)`, compared in that order (DESIGN 2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Version {
    pub seq: u64,
    pub turn: u64,
}

/// One stored group: the protobuf message as bytes, with what the store itself must compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupBlob {
    /// Which group.
    pub group: Group,
    /// Encoded message.
    pub bytes: Bytes,
    /// 0 fast path, 1 LLM.
    pub tier: u8,
    /// Version of the refresh that wrote it.
    pub version: Version,
    /// 0 = never expires.
    pub expires_at_ms: i64,
}

impl GroupBlob {
    /// Whether its time is over, by the store's clock.
    pub fn is_expired(&self, now_ms: i64) -> bool {
        self.expires_at_ms != 0 && self.expires_at_ms <= now_ms
    }
}
