//! A circuit breaker a node: while a node does not answer, calls to it fail at once instead of queueing up behind time-outs.
//!
//! In: what a PING on a connection of its own met. Out: whether a call may go out. Callers: `watch` asks the nodes and opens
//! and closes the circuits, `link` looks at them.
//!
//! Only a node that leaves a PING without an answer has its circuit opened: a call that takes long says nothing of the node.
//! While it is open nobody's call is the test whether the node is back; `watch` goes on asking.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A node that has just answered a PING is not asked again for so long, however slow its calls are.
const TRUSTED_FOR: Duration = Duration::from_millis(500);

/// The circuits that are open; a node that is not there is well.
#[derive(Debug)]
pub struct Breaker<N> {
    state: Mutex<State<N>>,
    /// Rung when a circuit opens.
    opened: Notify,
}

#[derive(Debug)]
struct State<N> {
    open: HashMap<N, Circuit>,
    /// Nodes that are being asked whether they are there.
    asked: HashSet<N>,
    /// When nodes that were asked answered.
    answered: HashMap<N, Instant>,
}

#[derive(Debug)]
struct Circuit {
    since: Instant,
    why: String,
}

impl<N> Default for Breaker<N> {
    fn default() -> Breaker<N> {
        let state = State { open: HashMap::new(), asked: HashSet::new(), answered: HashMap::new() };
        Breaker { state: Mutex::new(state), opened: Notify::new() }
    }
}

impl<N: Hash + Eq + Clone + Display> Breaker<N> {
    /// Why no call may go to that node now; `None` = it may.
    pub fn refusal(&self, node: &N, now: Instant) -> Option<String> {
        let state = self.state.lock();
        let circuit = state.open.get(node)?;
        let seconds = now.saturating_duration_since(circuit.since).as_secs_f64();
        Some(format!("no answer for {seconds:.1} s, not asked until it answers a PING: {}", circuit.why))
    }

    /// Whether no circuit is open: what every call asks first, so that a store that is well costs no names.
    pub fn all_well(&self) -> bool {
        self.state.lock().open.is_empty()
    }

    /// A call to the node takes long: whether the caller shall ask the node if it is there, and tell [`Self::answered`] or
    /// [`Self::silent`]. Never two at once, nor soon after it answered, nor while the circuit is open.
    pub fn may_ask(&self, node: &N, now: Instant) -> bool {
        let mut state = self.state.lock();
        let answered = state.answered.get(node);
        let is_trusted = answered.is_some_and(|at| now.saturating_duration_since(*at) < TRUSTED_FOR);
        !is_trusted && !state.open.contains_key(node) && state.asked.insert(node.clone())
    }

    /// The node answered the question whether it is there.
    pub fn answered(&self, node: &N, now: Instant) {
        let mut state = self.state.lock();
        state.asked.remove(node);
        state.answered.insert(node.clone(), now);
        drop(state);
        self.well(node);
    }

    /// The node left it without an answer: opens its circuit, and whoever asks goes on asking. Whether it was closed before.
    pub fn silent(&self, node: &N, why: &str, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.answered.remove(node);
        if state.open.contains_key(node) {
            return false;
        }
        state.open.insert(node.clone(), Circuit { since: now, why: why.to_string() });
        drop(state);
        tracing::warn!(%node, why, "the store's node does not answer; calls to it fail at once until it does");
        self.opened.notify_waiters();
        true
    }

    /// The node answered, whatever it was asked.
    pub fn well(&self, node: &N) {
        let closed = self.state.lock().open.remove(node);
        if let Some(circuit) = closed {
            let away_ms = circuit.since.elapsed().as_millis() as u64;
            tracing::info!(%node, away_ms, "the store's node answers again");
        }
    }

    /// Nobody is sent to that node any more, and nobody asks it.
    pub fn forget(&self, node: &N) {
        let mut state = self.state.lock();
        state.open.remove(node);
        state.asked.remove(node);
        state.answered.remove(node);
    }

    /// Whether the node's circuit is open.
    pub fn is_open(&self, node: &N) -> bool {
        self.state.lock().open.contains_key(node)
    }

    /// Done when the node's circuit is open.
    pub async fn until_open(&self, node: &N) {
        loop {
            let rung = self.opened.notified();
            tokio::pin!(rung);
            // Told of what happens from here on, before the look.
            rung.as_mut().enable();
            if self.is_open(node) {
                return;
            }
            rung.await;
        }
    }

    /// Why none of these nodes can be asked; `None` while one of them can.
    pub fn all_open(&self, nodes: &[N]) -> Option<String> {
        let state = self.state.lock();
        if nodes.is_empty() || !nodes.iter().all(|node| state.open.contains_key(node)) {
            return None;
        }
        nodes.first().and_then(|node| state.open.get(node).map(|circuit| format!("redis {node}: {}", circuit.why)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    const NODE: &str = "a:1";

    #[test]
    fn opens_when_a_question_stays_unanswered_and_closes_with_any_answer() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let mut opened = Box::pin(breaker.until_open(&NODE));
        assert!(opened.as_mut().now_or_never().is_none());
        assert!(breaker.may_ask(&NODE, now) && !breaker.may_ask(&NODE, now), "one question at a time");
        assert_eq!(breaker.refusal(&NODE, now), None, "nothing is known yet");
        assert!(breaker.silent(&NODE, "no answer to PING", now));
        assert!(opened.as_mut().now_or_never().is_some(), "who waits for it is told");
        assert!(breaker.refusal(&NODE, now).unwrap().contains("PING"));
        assert_eq!(breaker.refusal(&"b:1", now), None, "another node is not concerned");
        assert_eq!(breaker.all_open(&[NODE, "b:1"]), None);
        assert!(breaker.all_open(&[NODE]).unwrap().contains("a:1"));
        assert!(!breaker.may_ask(&NODE, now), "watch asks on its own now");
        assert!(!breaker.silent(&NODE, "again", now), "open already");
        breaker.well(&NODE);
        assert_eq!((breaker.refusal(&NODE, now), breaker.all_open(&[NODE]), breaker.all_well()), (None, None, true));
    }

    #[test]
    fn a_node_that_answers_its_ping_is_not_asked_again_at_once() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        assert!(breaker.may_ask(&NODE, now));
        breaker.answered(&NODE, now);
        assert!(!breaker.may_ask(&NODE, now + TRUSTED_FOR / 2));
        assert!(breaker.may_ask(&NODE, now + TRUSTED_FOR));
        assert!(breaker.all_well());
    }

    proptest! {
        /// Whatever calls do and however long they take: the circuit is open exactly when the last thing heard of the node
        /// was a PING without an answer.
        #[test]
        fn slow_calls_alone_open_nothing(steps in proptest::collection::vec((0u8..4, 0u64..800), 1..100)) {
            let (breaker, mut now) = (Breaker::default(), Instant::now());
            let (mut is_asked, mut is_open) = (false, false);
            for (step, pause) in steps {
                now += Duration::from_millis(pause);
                match step {
                    0 => is_asked |= breaker.may_ask(&NODE, now),
                    1 if is_asked => { breaker.answered(&NODE, now); (is_asked, is_open) = (false, false); }
                    2 if is_asked => { breaker.silent(&NODE, "silent", now); is_open = true; }
                    3 => { breaker.well(&NODE); is_open = false; }
                    _ => {}
                }
                prop_assert_eq!(breaker.is_open(&NODE), is_open);
                prop_assert_eq!(breaker.refusal(&NODE, now).is_some(), is_open);
            }
        }
    }
}
