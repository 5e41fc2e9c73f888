//! Users whose stored features changed and were not told about yet: each once, however often it changed meanwhile.
//!
//! In: users, from the refresh worker after a put. Out: users, oldest change first. Callers: `worker` notes;
//! `ingest::kafka::features` publishes.

use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use tokio::sync::Notify;

/// Most users kept waiting; more are refused, and counted by the caller.
const CAP: usize = 1_000_000;

/// Shared by `Arc`; in memory only: a change noted by a process that dies is told with the user's next one.
#[derive(Debug, Default)]
pub struct ChangeFeed {
    pending: Mutex<Pending>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    order: VecDeque<String>,
    known: HashSet<String>,
}

impl ChangeFeed {
    /// The user's features changed (or are gone). False when too many wait already.
    pub fn note(&self, user: &str) -> bool {
        let mut pending = self.pending.lock();
        if pending.known.contains(user) {
            return true;
        }
        if pending.order.len() >= CAP {
            return false;
        }
        pending.known.insert(user.to_string());
        pending.order.push_back(user.to_string());
        drop(pending);
        self.added.notify_one();
        true
    }

    /// Takes up to `limit` users; a change after this notes them anew.
    pub fn take(&self, limit: usize) -> Vec<String> {
        let mut pending = self.pending.lock();
        let count = limit.min(pending.order.len());
        let users: Vec<String> = pending.order.drain(..count).collect();
        for user in &users {
            pending.known.remove(user);
        }
        users
    }

    /// Waits until a user was noted.
    pub async fn added(&self) {
        self.added.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_waits_once_and_comes_again_after_being_taken() {
        let changes = ChangeFeed::default();
        for user in ["a", "b", "a"] {
            assert!(changes.note(user));
        }
        assert_eq!(changes.take(1), ["a"]);
        assert!(changes.note("a"));
        assert_eq!(changes.take(10), ["b", "a"]);
        assert!(changes.take(10).is_empty());
    }
}
