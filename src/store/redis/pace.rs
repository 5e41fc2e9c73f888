//! How much work is under way on a connection: Redis works off a whole pipeline before it looks at another client's.
//!
//! In: what calls are estimated to cost the server. Out: pieces of a batch, and leave to send one. Caller: `link`, which sends a
//! piece and waits for its answers before the next. Estimates are upper bounds of what a call of legal input took on a slow core
//! (`tests/slow_log.rs` measures them), so that whoever shares the server waits for [`UNDER_WAY`] at most.

use super::address::Node;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Estimated work of one piece, in µs. Less than what may be under way, so that batches take turns.
pub const PIECE: u32 = 2_500;
/// Estimated work under way on one connection, in µs.
const UNDER_WAY: u32 = 5_000;

/// A plain command on a small key, in µs.
pub const COMMAND: u32 = 4;
/// A function on a small key, in µs.
pub const FUNCTION: u32 = 30;
/// All of a kept list or a profile read, in µs.
pub const WHOLE_KEY: u32 = 25;
/// An erasure: all lists and the profile of a user are read, and the ids of what lies ahead remembered, in µs.
pub const ERASE: u32 = 1_500;
/// A step of a scan over keys or members, in µs.
pub const STEP: u32 = 1_500;
/// Users or items that one call of a function is about, at most; each costs [`MEMBER`].
pub const MEMBERS: usize = 200;
/// One of them, in µs.
pub const MEMBER: u32 = 12;

/// Leave to have work under way, by node.
#[derive(Default)]
pub struct Pace(Mutex<HashMap<Node, Arc<Semaphore>>>);

impl Pace {
    /// Waits until so much more may be under way on the node; it is until the permit is dropped. First come, first served.
    /// `None` never happens: nobody closes the semaphore.
    pub async fn enter(&self, node: &Node, cost: u32) -> Option<OwnedSemaphorePermit> {
        let new = || Arc::new(Semaphore::new(UNDER_WAY as usize));
        let room = self.0.lock().entry(node.clone()).or_insert_with(new).clone();
        room.acquire_many_owned(cost.min(UNDER_WAY)).await.ok()
    }
}

/// Cuts a batch, given by its costs, into pieces of [`PIECE`]; what costs more stands alone. Returns each with its cost.
pub fn pieces(costs: impl IntoIterator<Item = u32>) -> Vec<(Range<usize>, u32)> {
    let mut pieces: Vec<(Range<usize>, u32)> = Vec::new();
    for (index, cost) in costs.into_iter().enumerate() {
        match pieces.last_mut() {
            Some((range, sum)) if *sum + cost <= PIECE => {
                range.end = index + 1;
                *sum += cost;
            }
            _ => pieces.push((index..index + 1, cost)),
        }
    }
    pieces
}

/// What appending so many records with so many profile attributes of one user costs, of which some are looked for under a former id, too.
/// From nine records on the function works on loaded lists.
pub fn append_cost(records: usize, attributes: usize, formers: usize) -> u32 {
    let (base, each, each_former) = if records <= 8 { (FUNCTION, 30, 35) } else { (250, 18, 8) };
    let profile = if attributes == 0 { 0 } else { 60 + 8 * attributes };
    base + u32::try_from(each * records + each_former * formers + profile).unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_batch_is_cut_into_pieces_in_its_order() {
        assert_eq!(pieces([]), []);
        assert_eq!(pieces([1000, 1500, 1, 9000, 2]), [(0..2, 2500), (2..3, 1), (3..4, 9000), (4..5, 2)]);
        assert!(
            append_cost(1000, 64_000, 0) > PIECE
                && append_cost(1, 64, 1) < PIECE
                && append_cost(8, 0, 0) < append_cost(9, 0, 0)
        );
    }

    #[tokio::test]
    async fn no_more_is_under_way_than_may_be() {
        let (pace, node) = (Pace::default(), ("a".to_string(), 1));
        let first = pace.enter(&node, 3_000).await.unwrap();
        let mut second = std::pin::pin!(pace.enter(&node, 3_000));
        assert!(second.as_mut().now_or_never().is_none());
        // First come, first served: a small one does not overtake.
        assert!(pace.enter(&node, 1).now_or_never().is_none());
        assert!(pace.enter(&("b".to_string(), 1), 3_000).now_or_never().is_some(), "another node");
        drop(first);
        assert!(second.now_or_never().flatten().is_some());
        assert!(pace.enter(&node, 90_000).now_or_never().flatten().is_some(), "alone, whatever it costs");
    }
}
