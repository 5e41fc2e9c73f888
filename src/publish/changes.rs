//! Users whose stored features changed and were not told about yet: each once, however often it changed meanwhile.
//!
//! In: users, from the refresh worker after a put and from an erasure. Out: users, oldest change first. Callers: `worker` and
//! `erase` note; `features_topic` publishes and says so; `erase` waits for that.

use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use tokio::sync::Notify;

/// Most users kept waiting; more are refused, and counted by the caller.
const CAP: usize = 1_000_000;

/// Shared by `Arc`; in memory only: a change noted by a process that dies is told with the user's next one. (An erasure is
/// not over before it was told, so its next run notes it again.)
#[derive(Debug, Default)]
pub struct ChangeFeed {
    pending: Mutex<Pending>,
    added: Notify,
    published: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    order: VecDeque<String>,
    known: HashSet<String>,
    /// Taken, and neither told nor given back yet.
    leaving: HashSet<String>,
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
            pending.leaving.insert(user.clone());
        }
        users
    }

    /// These were published.
    pub fn told(&self, users: &[String]) {
        let mut pending = self.pending.lock();
        for user in users {
            pending.leaving.remove(user);
        }
        drop(pending);
        self.published.notify_waiters();
    }

    /// These could not be published: they wait again, whatever the cap says.
    pub fn give_back(&self, users: &[String]) {
        let mut pending = self.pending.lock();
        for user in users {
            pending.leaving.remove(user);
            if pending.known.insert(user.clone()) {
                pending.order.push_back(user.clone());
            }
        }
        drop(pending);
        self.added.notify_one();
    }

    /// Waits until every change of these users noted so far was published.
    pub async fn all_told(&self, users: &[String]) {
        loop {
            let published = self.published.notified();
            tokio::pin!(published);
            // Before the look, so that no news is missed.
            published.as_mut().enable();
            if !self.is_waiting(users) {
                return;
            }
            published.await;
        }
    }

    fn is_waiting(&self, users: &[String]) -> bool {
        let pending = self.pending.lock();
        users.iter().any(|user| pending.known.contains(user) || pending.leaving.contains(user))
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

    #[tokio::test]
    async fn a_change_is_told_when_it_was_published_and_not_when_it_was_taken() {
        let changes = ChangeFeed::default();
        let users = ["a".to_string()];
        changes.all_told(&users).await;
        changes.note("a");
        assert!(changes.is_waiting(&users));
        changes.give_back(&changes.take(1));
        assert!(changes.is_waiting(&users), "not published");
        let taken = changes.take(1);
        changes.note("a");
        changes.told(&taken);
        assert!(changes.is_waiting(&users), "the second change was not");
        let publish = async { changes.told(&changes.take(1)) };
        tokio::join!(changes.all_told(&users), publish);
        assert!(!changes.is_waiting(&users));
    }
}
