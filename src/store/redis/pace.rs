//! How much work is under way on a node, over the connections that everybody shares: Redis works off a whole pipeline before it looks at another client's.
//!
//! In: what calls are estimated to cost the server, and how long their answers took. Out: where to cut a batch, and leave to send a
//! piece of it. Caller: `link`, which sends a piece and waits for its answers before the next. So whoever shares the server waits for
//! [`UNDER_WAY`] at most.
//!
//! Estimates are upper bounds of what a call of legal input took on a slow core (`tests/slow_log.rs` measures them). Mostly a call takes
//! a part of that, and Redis would wait for us. So each operation has a factor for each node: what answers took, in estimates. It
//! counts the way there and other clients' calls, too, so it errs upwards. It rises fast and falls slowly, and keeps to
//! [`LEAST`]: worst calls after a long time of cheap ones are 15 ms under way, once.

use super::address::Node;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Estimated work of one piece, in µs. Less than what may be under way, so that batches take turns.
pub const PIECE: u32 = 2_500;
/// Estimated work under way on one connection, in µs.
const UNDER_WAY: u32 = 5_000;
/// Least factor of an estimate.
const LEAST: f64 = 1.0 / 3.0;
/// Parts of the way to what answers took that a factor goes with each of them: upwards and downwards.
const RISE: f64 = 0.5;
const FALL: f64 = 0.1;
/// Estimated work, in µs, from which the time of its answers is the work's more than the way's.
const TELLING: u32 = PIECE / 2;

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

/// What is under way on each node, and the factors of estimates there.
#[derive(Default)]
pub struct Pace(Mutex<HashMap<Node, Arc<NodePace>>>);

/// What is under way on one node.
pub(super) struct NodePace {
    room: Arc<Semaphore>,
    factors: Mutex<HashMap<&'static str, f64>>,
}

/// Leave to have a piece of work under way; it is until this is dropped.
pub struct UnderWay {
    node: Arc<NodePace>,
    /// In µs, by estimates and factors: of this piece and of those that were under way before it.
    all: u32,
    since: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Pace {
    pub(super) fn of(&self, node: &Node) -> Arc<NodePace> {
        let new =
            || Arc::new(NodePace { room: Arc::new(Semaphore::new(UNDER_WAY as usize)), factors: Mutex::default() });
        self.0.lock().entry(node.clone()).or_insert_with(new).clone()
    }

    /// The part of its estimate that a call takes, as far as is known.
    pub fn factor(&self, node: &Node, operation: &str) -> f64 {
        self.of(node).factor(operation)
    }

    /// Waits until so much more, in µs, may be under way on the node. First come, first served.
    pub async fn enter(&self, node: &Node, cost: u32) -> UnderWay {
        self.of(node).enter(cost).await
    }
}

impl UnderWay {
    /// The answers are there.
    pub fn answered(self, operation: &'static str) {
        if self.all >= TELLING {
            self.node.learn(operation, self.since.elapsed(), self.all);
        }
    }
}

impl NodePace {
    /// As [`Pace::factor`].
    pub(super) fn factor(&self, operation: &str) -> f64 {
        self.factors.lock().get(operation).copied().unwrap_or(1.0)
    }

    /// As [`Pace::enter`].
    pub(super) async fn enter(self: Arc<Self>, cost: u32) -> UnderWay {
        let cost = cost.clamp(1, UNDER_WAY);
        // Mostly there is room. Where others wait there is none: nobody overtakes.
        let permit = match self.room.clone().try_acquire_many_owned(cost) {
            Ok(permit) => Some(permit),
            // It is never closed.
            Err(_) => self.room.clone().acquire_many_owned(cost).await.ok(),
        };
        let all = UNDER_WAY.saturating_sub(self.room.available_permits() as u32);
        UnderWay { node: self, all, since: Instant::now(), _permit: permit }
    }

    /// Work of so many µs, by the factors of now, was answered after that time.
    fn learn(&self, operation: &'static str, took: Duration, all: u32) {
        let mut factors = self.factors.lock();
        let factor = factors.entry(operation).or_insert(1.0);
        let found = *factor * took.as_secs_f64() * 1e6 / f64::from(all);
        let part = if found > *factor { RISE } else { FALL };
        *factor = (*factor + part * (found - *factor)).clamp(LEAST, 1.0);
    }
}

/// The first calls of a batch, given by its estimates, that make up a [`PIECE`]; one that costs more stands alone. How many they are, and
/// their cost.
pub fn first_piece(estimates: impl IntoIterator<Item = u32>, factor: f64) -> (usize, u32) {
    let (mut calls, mut cost) = (0, 0.0);
    for estimate in estimates {
        let with_it = cost + f64::from(estimate) * factor;
        if calls > 0 && with_it > f64::from(PIECE) {
            break;
        }
        (calls, cost) = (calls + 1, with_it);
    }
    (calls, cost as u32)
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
        assert_eq!(first_piece([], 1.0), (0, 0));
        assert_eq!(first_piece([1000, 1500, 1, 9000, 2], 1.0), (2, 2500));
        assert_eq!(first_piece([9000, 2], 1.0), (1, 9000));
        assert_eq!(first_piece([1000, 1500, 1, 9000, 2], 0.5), (3, 1250));
        assert!(
            append_cost(1000, 64_000, 0) > PIECE
                && append_cost(1, 64, 1) < PIECE
                && append_cost(8, 0, 0) < append_cost(9, 0, 0)
        );
    }

    #[tokio::test]
    async fn no_more_is_under_way_than_may_be() {
        let (pace, node) = (Pace::default(), ("a".to_string(), 1));
        let first = pace.enter(&node, 3_000).await;
        let mut second = std::pin::pin!(pace.enter(&node, 3_000));
        assert!(second.as_mut().now_or_never().is_none());
        // First come, first served: a small one does not overtake.
        assert!(pace.enter(&node, 1).now_or_never().is_none());
        assert!(pace.enter(&("b".to_string(), 1), 3_000).now_or_never().is_some(), "another node");
        drop(first);
        assert_eq!(second.now_or_never().unwrap().all, 3_000);
        let (_half, both) = (pace.enter(&node, 2_000).await, pace.enter(&node, 3_000).await);
        assert_eq!(both.all, 5_000, "what is before it counts");
        drop((_half, both));
        assert!(pace.enter(&node, 90_000).now_or_never().is_some(), "alone, whatever it costs");
    }

    #[tokio::test]
    async fn audit_01_a_factor_falls_slowly_and_rises_at_once() {
        let (pace, node) = (Pace::default(), ("a".to_string(), 1));
        let factor = || pace.factor(&node, "append");
        let learn = |took_us: u64, all: u32| pace.of(&node).learn("append", Duration::from_micros(took_us), all);
        assert_eq!(factor(), 1.0);
        learn(500, 2_500);
        assert!((factor() - 0.92).abs() < 1e-9, "{}", factor());
        for _ in 0..100 {
            learn(100, 2_500);
        }
        assert_eq!(factor(), LEAST);
        assert_eq!(pace.factor(&node, "mark due"), 1.0, "another operation");
        // Calls as dear as their estimates: 2,500 µs by the factor are 7,500.
        let mut rises = vec![];
        while factor() < 0.9 {
            learn((2_500.0 / factor()) as u64, 2_500);
            rises.push(factor());
        }
        assert!(rises.len() <= 3, "{rises:?}");
        learn(1_000_000, 2_500);
        assert_eq!(factor(), 1.0, "estimates are upper bounds: a node that stands still is not the calls' doing");
        // The way there tells nothing of the work.
        pace.enter(&node, TELLING - 1).await.answered("append");
        assert_eq!(factor(), 1.0);
        pace.enter(&node, TELLING).await.answered("append");
        assert!(factor() < 1.0);
    }
}
