//! The feature record: messages on the wire, and turning one refresh's findings into group blobs.
//!
//! In: what the LLM, the quantiser and the index found. Out: protobuf group blobs for the store, and their decoded
//! form for the API. Callers: `refresh` (assemble), `api` (decode, defaults), `retrieve` (sequence codec).

mod assemble;
mod group;
mod scan;
mod schema;
mod sequence;
mod view;

use crate::proto;
pub use assemble::{CrossFinding, Finding, assemble};
pub use group::{Group, GroupBlob, Version};
pub use schema::{Feature, FeatureType, FeatureValue, HAS_LLM_FEATURE};
pub use sequence::{cross_behaviours, cross_sequence, cross_times};
pub use view::{
    EXPIRED, FromBlob, GroupStatus, GroupView, NO_FEATURES, NOT_BUILT, UNREACHABLE, UNREADABLE, absent, view,
};

use prost::Message;
use std::sync::LazyLock;

/// `GroupMeta.flags`.
pub mod flags {
    /// The answer had the right form.
    pub const FORMAT_OK: u32 = 1;
    /// The answer names a known item or category.
    pub const GROUNDED: u32 = 2;
    /// History was left out of the prompt to fit.
    pub const TRUNCATED: u32 = 4;
    /// Nothing unsafe was found in the answer.
    pub const SAFETY_OK: u32 = 8;
    /// Not what the LLM wrote: canned, or made without it.
    pub const FALLBACK: u32 = 16;
}

/// A group taken out of the store.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum DecodedGroup {
    Intra(proto::IntraGroup),
    Cross(proto::CrossGroup),
    Scid(proto::ScidGroup),
    Text(proto::TextGroup),
}

impl DecodedGroup {
    /// Decodes a stored blob.
    pub fn decode(blob: &GroupBlob) -> Result<DecodedGroup, prost::DecodeError> {
        let bytes = &blob.bytes[..];
        Ok(match blob.group {
            Group::Intra => DecodedGroup::Intra(proto::IntraGroup::decode(bytes)?),
            Group::Cross => DecodedGroup::Cross(proto::CrossGroup::decode(bytes)?),
            Group::Scid => DecodedGroup::Scid(proto::ScidGroup::decode(bytes)?),
            Group::Text => DecodedGroup::Text(proto::TextGroup::decode(bytes)?),
        })
    }

    /// The epoch that made a blob, without the rest where it can be had without; refuses what [`Self::decode`] refuses.
    pub fn epoch_of(blob: &GroupBlob) -> Result<u64, prost::DecodeError> {
        match scan::epoch(blob.group, &blob.bytes) {
            Some(epoch) => Ok(epoch),
            None => Ok(DecodedGroup::decode(blob)?.meta().epoch),
        }
    }

    /// Which group it is.
    pub fn group(&self) -> Group {
        match self {
            DecodedGroup::Intra(_) => Group::Intra,
            DecodedGroup::Cross(_) => Group::Cross,
            DecodedGroup::Scid(_) => Group::Scid,
            DecodedGroup::Text(_) => Group::Text,
        }
    }

    /// The message as it goes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            DecodedGroup::Intra(group) => group.encode_to_vec(),
            DecodedGroup::Cross(group) => group.encode_to_vec(),
            DecodedGroup::Scid(group) => group.encode_to_vec(),
            DecodedGroup::Text(group) => group.encode_to_vec(),
        }
    }

    /// The group's provenance; default when the writer left it out.
    pub fn meta(&self) -> &proto::GroupMeta {
        static NONE: LazyLock<proto::GroupMeta> = LazyLock::new(proto::GroupMeta::default);
        let meta = match self {
            DecodedGroup::Intra(group) => &group.meta,
            DecodedGroup::Cross(group) => &group.meta,
            DecodedGroup::Scid(group) => &group.meta,
            DecodedGroup::Text(group) => &group.meta,
        };
        meta.as_ref().unwrap_or(&NONE)
    }
}
