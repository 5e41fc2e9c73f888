//! The connections of a port: no more than its limit, and who goes when one more comes.

use super::activity::Activity;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A connection younger in its wait than this is not sent away: its request may be on its way.
const GRACE: Duration = Duration::from_secs(1);

/// Everyone who is connected.
pub struct Slots {
    permits: Arc<Semaphore>,
    limit: usize,
    connected: Mutex<HashMap<u64, Connected>>,
    next: AtomicU64,
}

struct Connected {
    activity: Arc<Activity>,
    leave: Arc<Notify>,
}

/// A connection's slot; given back when dropped.
pub struct Slot {
    slots: Arc<Slots>,
    number: u64,
    /// Notified when it is to make room.
    pub leave: Arc<Notify>,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// Nobody yet.
    pub fn new(limit: usize) -> Slots {
        let permits = Arc::new(Semaphore::new(limit));
        Slots { permits, limit, connected: Mutex::default(), next: AtomicU64::new(0) }
    }

    /// Takes a slot; the connection's times begin when it has one. Where none is free, the connection that has waited longest for
    /// a request makes room; while all are at work, the newcomer waits.
    pub async fn take(self: &Arc<Self>) -> (Slot, Arc<Activity>) {
        let permit = loop {
            if let Ok(permit) = self.permits.clone().try_acquire_owned() {
                break permit;
            }
            self.send_one_away();
            if let Ok(Ok(permit)) = tokio::time::timeout(GRACE, self.permits.clone().acquire_owned()).await {
                break permit;
            }
        };
        let leave = Arc::new(Notify::new());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let activity = Arc::new(Activity::new());
        let connected = Connected { activity: activity.clone(), leave: leave.clone() };
        self.connected.lock().insert(number, connected);
        (Slot { slots: self.clone(), number, leave, _permit: permit }, activity)
    }

    fn send_one_away(&self) {
        let connected = self.connected.lock();
        let waiting = connected.values().filter_map(|one| Some((one.activity.waiting_for()?, &one.leave)));
        if let Some((_, leave)) = waiting.filter(|(time, _)| *time >= GRACE).max_by_key(|(time, _)| *time) {
            leave.notify_one();
        }
    }

    /// How many are connected.
    pub fn count(&self) -> usize {
        self.limit - self.permits.available_permits()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.connected.lock().remove(&self.number);
    }
}
