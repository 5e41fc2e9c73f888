//! One refresh's findings → the group blobs of a record.

use super::cross_sequence;
use crate::feature::{Group, GroupBlob, Version};
use crate::proto::{CrossGroup, GroupMeta, IntraGroup, TextGroup};
use prost::Message;

/// The neighbour chosen for a user.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossFinding {
    /// Who; kept in the text group only (admin scope).
    pub user: String,
    /// Era of that user when their history was read.
    pub era: u64,
    /// Cosine similarity.
    pub similarity: f32,
    /// Similarity minus that of the next candidate; 0 when there is none.
    pub gap_to_second: f32,
    /// Newest first, already filtered for privacy.
    pub engagements: Vec<crate::proto::Behaviour>,
}

/// Everything one refresh found out.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Provenance shared by all groups of the refresh.
    pub meta: GroupMeta,
    /// One per slot; empty when there is no LLM feature.
    pub sparse_ids: Vec<u32>,
    /// Grounded categories, broadest first.
    pub category_ids: Vec<String>,
    /// The most similar other user, if any passed.
    pub cross: Option<CrossFinding>,
    /// What the LLM wrote before the answer.
    pub reasoning: String,
    /// The answer.
    pub answer: String,
    /// Item the answer names, or empty.
    pub grounded_item_id: String,
}

/// Encodes the groups of a record. `scid` is not built yet and therefore absent.
pub fn assemble(finding: Finding) -> Vec<GroupBlob> {
    let meta = finding.meta;
    let blob = |group: Group, bytes: Vec<u8>| GroupBlob {
        group,
        bytes: bytes.into(),
        tier: meta.tier as u8,
        version: Version { seq: meta.seq, turn: meta.turn },
        expires_at_ms: meta.expires_at_ms,
    };
    let intra = IntraGroup {
        meta: Some(meta.clone()),
        // The fast path's IDs are there without it.
        has_llm_feature: meta.tier >= 1 && !finding.sparse_ids.is_empty(),
        sparse_ids: finding.sparse_ids,
        category_ids: finding.category_ids,
    };
    let text = TextGroup {
        meta: Some(meta.clone()),
        reasoning: finding.reasoning,
        answer: finding.answer,
        grounded_item_id: finding.grounded_item_id,
        neighbour_user_id: finding.cross.as_ref().map(|cross| cross.user.clone()).unwrap_or_default(),
        neighbour_era: finding.cross.as_ref().map_or(0, |cross| cross.era),
    };
    let cross = match &finding.cross {
        Some(found) => CrossGroup {
            meta: Some(meta.clone()),
            similarity: found.similarity,
            gap_to_second: found.gap_to_second,
            ..cross_sequence(&found.engagements)
        },
        None => CrossGroup { meta: Some(meta.clone()), ..CrossGroup::default() },
    };
    vec![
        blob(Group::Intra, intra.encode_to_vec()),
        blob(Group::Cross, cross.encode_to_vec()),
        blob(Group::Text, text.encode_to_vec()),
    ]
}
