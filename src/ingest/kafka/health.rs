//! Whether this process should be sent traffic, as far as Kafka's ingest can tell: the latch `kafka`.
//!
//! It is held until the first assignment (and says what the client meets: no broker, a refused password, an unknown
//! certificate), and while the store refuses what Kafka brings. A broker that goes away after that does not hold it: reads keep
//! answering from the store.

use crate::telemetry::Readiness;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Name of the latch.
pub const LATCH: &str = "kafka";

/// Who may be in trouble with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Lane(usize),
    Items,
    Check,
}

/// Shared by `Arc` with everything of the ingest.
pub(super) struct Health {
    readiness: Readiness,
    state: Mutex<State>,
    /// Rung when the store, which did not say who it is, does so again.
    answered: Notify,
}

#[derive(Default)]
struct State {
    assigned: bool,
    troubles: BTreeMap<Part, String>,
    shown: Option<String>,
    /// What the client met last while there was no assignment yet.
    client: Option<String>,
}

impl Health {
    pub fn new(readiness: Readiness) -> Health {
        readiness.hold(LATCH, "waiting for the first assignment");
        Health { readiness, state: Mutex::default(), answered: Notify::new() }
    }

    /// The group gave us partitions (possibly none).
    pub fn assigned(&self) {
        self.change(|state| state.assigned = true);
    }

    /// The client could not reach a broker, or was refused by it: `message` is the client's log line.
    pub fn client_failed(&self, message: &str) {
        self.change(|state| state.client = Some(plain(message)));
    }

    /// The store refused a part's call.
    pub fn trouble(&self, part: Part, message: String) {
        self.change(|state| {
            state.troubles.insert(part, message);
        });
    }

    /// The store took a part's call.
    pub fn well(&self, part: Part) {
        let mut was_troubled = false;
        self.change(|state| was_troubled = state.troubles.remove(&part).is_some());
        // A store that answers and refuses (full, say) rings nobody: whoever waits keeps to its pauses.
        if was_troubled && part == Part::Check {
            self.answered.notify_waiters();
        }
    }

    /// Done when a store that was away answers again: no reason to sit out a long pause.
    pub fn answered(&self) -> Notified<'_> {
        self.answered.notified()
    }

    /// True while the store refuses anything.
    pub fn is_store_troubled(&self) -> bool {
        !self.state.lock().troubles.is_empty()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        let was_waiting = !state.assigned;
        change(&mut state);
        if !state.assigned {
            if let Some(problem) = &state.client {
                self.readiness.hold(LATCH, format!("waiting for the first assignment: {problem}"));
            }
            return;
        }
        let trouble = state.troubles.values().next().cloned();
        if !was_waiting && trouble == state.shown {
            return;
        }
        match &trouble {
            Some(message) => self.readiness.hold(LATCH, format!("the store refuses kafka's events: {message}")),
            None => self.readiness.release(LATCH),
        }
        state.shown = trouble;
    }
}

/// The client's words without the name of its thread, and what to do where that is known.
fn plain(message: &str) -> String {
    let text = message.split_once("]: ").map_or(message, |(_, text)| text);
    let remedy = match text {
        _ if text.contains("SASL authentication error") || text.contains("Authentication failed") => {
            "; put the right sasl.username and sasl.password into kafka.properties"
        }
        _ if text.contains("certificate") => "; name the authority's PEM file as ssl.ca.location in kafka.properties",
        _ => "",
    };
    format!("{text}{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn ready_after_the_first_assignment_and_while_the_store_takes_everything() {
        let readiness = Readiness::default();
        let health = Health::new(readiness.clone());
        health.well(Part::Check);
        assert!(!readiness.is_ready());
        health.client_failed("[thrd:b:9092/bootstrap]: b:9092/bootstrap: Connect failed: Connection refused");
        let said = readiness.latches()[LATCH].clone().expect("held");
        assert_eq!(said, "waiting for the first assignment: b:9092/bootstrap: Connect failed: Connection refused");
        health.client_failed("SASL authentication error: Authentication failed: Invalid username or password");
        assert!(readiness.latches()[LATCH].clone().expect("held").contains("put the right sasl.username"));
        health.assigned();
        assert!(readiness.is_ready());
        health.client_failed("a broker went away");
        assert!(readiness.is_ready());
        health.trouble(Part::Lane(1), "away".into());
        health.trouble(Part::Check, "away, too".into());
        health.well(Part::Lane(1));
        assert!(!readiness.is_ready() && health.is_store_troubled());
        health.well(Part::Check);
        assert!(readiness.is_ready());
        health.assigned();
        assert!(readiness.is_ready());
    }

    #[test]
    fn who_waits_is_woken_by_a_store_that_answers_again_and_by_nothing_else() {
        let health = Health::new(Readiness::default());
        let mut waiting = std::pin::pin!(health.answered());
        health.trouble(Part::Lane(0), "full".into());
        health.well(Part::Lane(0));
        health.well(Part::Check);
        assert_eq!(waiting.as_mut().now_or_never(), None, "nothing was away");
        health.trouble(Part::Check, "away".into());
        health.well(Part::Check);
        assert_eq!(waiting.as_mut().now_or_never(), Some(()));
    }
}
