//! Who waits in this process for a refresh, and for whom.
//!
//! In: finished refreshes, from the worker. Out: a ring for those who wait for that user. Callers: `worker` announces;
//! `api::waiting` listens. A refresh of another process rings nobody here: whoever waits also looks into the store.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// Shared by `Arc`; holds no more than the users waited for.
#[derive(Debug, Default)]
pub struct Arrivals {
    waiting: Mutex<HashMap<String, Vec<Arc<Bell>>>>,
}

/// One listener's.
#[derive(Debug, Default)]
struct Bell {
    /// Highest seq announced of each user listened for.
    reached: Mutex<HashMap<String, u64>>,
    rung: Notify,
}

/// Hears of its users' refreshes until it is dropped.
#[derive(Debug)]
pub struct Listener {
    arrivals: Arc<Arrivals>,
    users: Vec<String>,
    bell: Arc<Bell>,
}

impl Arrivals {
    /// Listens for these users from now on.
    pub fn listen(self: &Arc<Self>, users: Vec<String>) -> Listener {
        let bell = Arc::new(Bell::default());
        let mut waiting = self.waiting.lock();
        for user in &users {
            waiting.entry(user.clone()).or_default().push(bell.clone());
        }
        drop(waiting);
        Listener { arrivals: self.clone(), users, bell }
    }

    /// A refresh that had read `seq` was written, or found nothing new.
    pub fn announce(&self, user: &str, seq: u64) {
        let bells = match self.waiting.lock().get(user) {
            Some(bells) => bells.clone(),
            None => return,
        };
        for bell in bells {
            let mut reached = bell.reached.lock();
            let highest = reached.entry(user.to_string()).or_default();
            *highest = seq.max(*highest);
            drop(reached);
            bell.rung.notify_one();
        }
    }

    /// Users listened for; for tests of what a dropped listener leaves behind.
    #[cfg(test)]
    pub fn users(&self) -> usize {
        self.waiting.lock().len()
    }
}

impl Listener {
    /// Waits for an announcement; one that came before the call counts.
    pub async fn rung(&self) {
        self.bell.rung.notified().await;
    }

    /// The highest seq announced of a user since listening began.
    pub fn reached(&self, user: &str) -> Option<u64> {
        self.bell.reached.lock().get(user).copied()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut waiting = self.arrivals.waiting.lock();
        for user in &self.users {
            let Some(bells) = waiting.get_mut(user) else { continue };
            bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
            if bells.is_empty() {
                waiting.remove(user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_listener_hears_of_its_own_users_and_leaves_nothing_behind() {
        let arrivals = Arc::new(Arrivals::default());
        let first = arrivals.listen(vec!["a".into(), "b".into(), "a".into()]);
        let second = arrivals.listen(vec!["b".into()]);
        arrivals.announce("b", 3);
        arrivals.announce("b", 2);
        arrivals.announce("c", 9);
        first.rung().await;
        second.rung().await;
        assert_eq!((first.reached("b"), second.reached("b")), (Some(3), Some(3)));
        assert_eq!((first.reached("a"), first.reached("c")), (None, None));
        drop(first);
        assert_eq!(arrivals.users(), 1, "b is listened for still");
        drop(second);
        assert_eq!(arrivals.users(), 0);
        arrivals.announce("b", 4);
    }
}
