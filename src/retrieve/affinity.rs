//! Who says most about a user, among candidates of like similarity.
//!
//! In: histories. Out: an order. Callers: `refresh` (chooses the neighbour), the trainer (features as of the past).

use crate::proto::Behaviour;
use std::cmp::Reverse;
use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_64;

/// Candidates compared, at most.
pub const EQUALS: usize = 8;
/// Latest engagements whose items are compared: those the prompt takes.
const RECENT: usize = 50;

/// Items in common, then how lately the candidate did something, then chance: the greater one is chosen.
pub type Affinity = (usize, i64, Reverse<u64>);

/// Items of the latest of some engagements, newest first.
pub fn recent_items(engagements: &[Behaviour]) -> HashSet<&str> {
    engagements.iter().take(RECENT).map(|behaviour| behaviour.item_id.as_str()).collect()
}

/// How much a candidate with these engagements (newest first) says about a user with these recent items.
pub fn affinity(user: &str, recent: &HashSet<&str>, candidate: &str, engagements: &[Behaviour]) -> Affinity {
    let newest = engagements.first().map_or(i64::MIN, |behaviour| behaviour.ts_ms);
    let pair = format!("{user}\0{candidate}");
    (recent_items(engagements).intersection(recent).count(), newest, Reverse(xxh3_64(pair.as_bytes())))
}
