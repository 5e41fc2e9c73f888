//! The connections of a port: no more than its limit, and who goes when one more comes.

use super::activity::Activity;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A connection younger in its wait than this is not sent away: its request may be on its way.
const COURTESY: Duration = Duration::from_secs(1);

/// Everyone who is connected.
pub struct Members {
    places: Arc<Semaphore>,
    limit: usize,
    connected: Mutex<HashMap<u64, Known>>,
    next: AtomicU64,
}

struct Known {
    activity: Arc<Activity>,
    leave: Arc<Notify>,
}

/// A connection's place; given back when dropped.
pub struct Member {
    members: Arc<Members>,
    number: u64,
    /// Told to make room.
    pub leave: Arc<Notify>,
    _place: OwnedSemaphorePermit,
}

impl Members {
    /// Nobody yet.
    pub fn new(limit: usize) -> Members {
        let places = Arc::new(Semaphore::new(limit));
        Members { places, limit, connected: Mutex::default(), next: AtomicU64::new(0) }
    }

    /// Takes a place. Where none is free, the connection that has waited longest for a request makes room; while all are at work,
    /// the newcomer waits.
    pub async fn join(self: &Arc<Self>, activity: Arc<Activity>) -> Member {
        let place = loop {
            if let Ok(place) = self.places.clone().try_acquire_owned() {
                break place;
            }
            self.send_one_away();
            if let Ok(Ok(place)) = tokio::time::timeout(COURTESY, self.places.clone().acquire_owned()).await {
                break place;
            }
        };
        let leave = Arc::new(Notify::new());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let known = Known { activity, leave: leave.clone() };
        self.connected.lock().insert(number, known);
        Member { members: self.clone(), number, leave, _place: place }
    }

    fn send_one_away(&self) {
        let connected = self.connected.lock();
        let waiting = connected.values().filter_map(|known| Some((known.activity.waiting_for()?, &known.leave)));
        if let Some((_, leave)) = waiting.filter(|(time, _)| *time >= COURTESY).max_by_key(|(time, _)| *time) {
            leave.notify_one();
        }
    }

    /// How many are connected.
    pub fn count(&self) -> usize {
        self.limit - self.places.available_permits()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.members.connected.lock().remove(&self.number);
    }
}
