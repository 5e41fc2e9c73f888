//! A circuit breaker a node: while a node does not answer, calls to it fail at once instead of queueing up behind time-outs.
//!
//! In: how calls to nodes ended. Out: whether a call may go out. Caller: `link`.
//!
//! A node's circuit opens when a call has used up all its tries there. From then on one call at a time is let through after
//! each pause (growing, with jitter); the first that is answered, by whatever, closes the circuit.

use crate::backoff::Backoff;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Pauses between two tries at a node that does not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The circuits that are open; a node that is not here is well.
#[derive(Debug)]
pub struct Breaker<N> {
    open: Mutex<HashMap<N, Circuit>>,
}

impl<N> Default for Breaker<N> {
    fn default() -> Breaker<N> {
        Breaker { open: Mutex::new(HashMap::new()) }
    }
}

#[derive(Debug)]
struct Circuit {
    since: Instant,
    next_try: Instant,
    backoff: Backoff,
    why: String,
}

impl<N: Hash + Eq + Clone + Display> Breaker<N> {
    /// Whether a batch may go out now: to all its nodes or to none, and it is one try at each of them. If not, which node
    /// stands in the way and why; then no try is used up.
    pub fn admit<'a>(&self, nodes: &'a [N], now: Instant) -> Result<(), (&'a N, String)> {
        let mut open = self.open.lock();
        for node in nodes {
            if let Some(circuit) = open.get(node).filter(|circuit| now < circuit.next_try) {
                let seconds = (now - circuit.since).as_secs_f64();
                return Err((node, format!("no answer for {seconds:.1} s, not asked again yet: {}", circuit.why)));
            }
        }
        for node in nodes {
            if let Some(circuit) = open.get_mut(node) {
                // This call is the try; the others wait for how it ends.
                circuit.next_try = now + circuit.backoff.pause();
            }
        }
        Ok(())
    }

    /// Whether no circuit is open: what every call asks first, so that a store that is well costs no names.
    pub fn all_well(&self) -> bool {
        self.open.lock().is_empty()
    }

    /// The node answered.
    pub fn well(&self, node: &N) {
        if let Some(circuit) = self.open.lock().remove(node) {
            let away_ms = circuit.since.elapsed().as_millis() as u64;
            tracing::info!(%node, away_ms, "the store's node answers again");
        }
    }

    /// A call got no answer; `is_last` when it has used up its tries. An open circuit stays open.
    pub fn failed(&self, node: &N, is_last: bool, why: &str, now: Instant) {
        let mut open = self.open.lock();
        if open.contains_key(node) || !is_last {
            return;
        }
        tracing::warn!(%node, why, "the store's node does not answer; calls to it fail at once until it does");
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let next_try = now + backoff.pause();
        open.insert(node.clone(), Circuit { since: now, next_try, backoff, why: why.to_string() });
    }

    /// Why none of these nodes can be asked; `None` while one of them can.
    pub fn all_open(&self, nodes: &[N]) -> Option<String> {
        let open = self.open.lock();
        if nodes.is_empty() || !nodes.iter().all(|node| open.contains_key(node)) {
            return None;
        }
        nodes.first().and_then(|node| open.get(node).map(|circuit| format!("redis {node}: {}", circuit.why)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const NODE: &str = "a:1";

    fn admit_one(breaker: &Breaker<&'static str>, node: &'static str, now: Instant) -> Result<(), String> {
        breaker.admit(&[node], now).map_err(|(_, why)| why)
    }

    #[test]
    fn opens_after_the_last_try_lets_one_call_through_and_closes_with_an_answer() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed(&NODE, false, "reset", now);
        assert_eq!(admit_one(&breaker, NODE, now), Ok(()), "more tries are to come");
        breaker.failed(&NODE, true, "reset", now);
        assert!(admit_one(&breaker, NODE, now).unwrap_err().contains("reset"));
        assert_eq!(admit_one(&breaker, "b:1", now), Ok(()), "another node is not concerned");
        assert_eq!(breaker.all_open(&[NODE, "b:1"]), None);
        assert!(breaker.all_open(&[NODE]).unwrap().contains("a:1"));
        let later = now + LONGEST_PAUSE;
        assert_eq!(admit_one(&breaker, NODE, later), Ok(()), "the one try");
        assert!(admit_one(&breaker, NODE, later).is_err(), "the others wait for it");
        breaker.well(&NODE);
        assert_eq!((admit_one(&breaker, NODE, later), breaker.all_open(&[NODE])), (Ok(()), None));
    }

    #[test]
    fn a_batch_is_one_try_and_one_that_is_refused_is_none() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed(&NODE, true, "reset", now);
        let later = now + LONGEST_PAUSE;
        breaker.failed(&"b:1", true, "reset", later);
        assert_eq!(breaker.admit(&[NODE, "b:1"], later).map_err(|(node, _)| *node), Err("b:1"));
        assert_eq!(breaker.admit(&[NODE, NODE], later), Ok(()), "several commands for one node");
        assert!(admit_one(&breaker, NODE, later).is_err());
    }

    proptest! {
        /// Whatever the times of calls to a node that never answers: at least half a pause lies between two that go out, and
        /// no longer than the longest pause passes without one that may.
        #[test]
        fn an_open_circuit_is_tried_neither_often_nor_seldom(steps in proptest::collection::vec(0u64..500, 1..200)) {
            let (breaker, start) = (Breaker::default(), Instant::now());
            breaker.failed(&NODE, true, "gone", start);
            let (mut now, mut last) = (start, start);
            for step in steps {
                let before = now;
                now += Duration::from_millis(step);
                if admit_one(&breaker, NODE, now).is_ok() {
                    prop_assert!(now - last >= FIRST_PAUSE / 2);
                    breaker.failed(&NODE, true, "gone", now);
                    last = now;
                } else {
                    prop_assert!(now - last < LONGEST_PAUSE, "{:?} after {:?}", now - last, before - last);
                }
            }
        }
    }
}
