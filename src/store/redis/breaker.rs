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
    /// Whether a call to the node may go out now; if not, why.
    pub fn admit(&self, node: &N, now: Instant) -> Result<(), String> {
        let mut open = self.open.lock();
        let Some(circuit) = open.get_mut(node) else { return Ok(()) };
        if now < circuit.next_try {
            let seconds = (now - circuit.since).as_secs_f64();
            return Err(format!("no answer for {seconds:.1} s, not asked again yet: {}", circuit.why));
        }
        // This call is the try; the others wait for how it ends.
        circuit.next_try = now + circuit.backoff.pause();
        Ok(())
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

    #[test]
    fn opens_after_the_last_try_lets_one_call_through_and_closes_with_an_answer() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed(&NODE, false, "reset", now);
        assert_eq!(breaker.admit(&NODE, now), Ok(()), "more tries are to come");
        breaker.failed(&NODE, true, "reset", now);
        assert!(breaker.admit(&NODE, now).unwrap_err().contains("reset"));
        assert_eq!(breaker.admit(&"b:1", now), Ok(()), "another node is not concerned");
        assert_eq!(breaker.all_open(&[NODE, "b:1"]), None);
        assert!(breaker.all_open(&[NODE]).unwrap().contains("a:1"));
        let later = now + LONGEST_PAUSE;
        assert_eq!(breaker.admit(&NODE, later), Ok(()), "the one try");
        assert!(breaker.admit(&NODE, later).is_err(), "the others wait for it");
        breaker.well(&NODE);
        assert_eq!((breaker.admit(&NODE, later), breaker.all_open(&[NODE])), (Ok(()), None));
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
                if breaker.admit(&NODE, now).is_ok() {
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
