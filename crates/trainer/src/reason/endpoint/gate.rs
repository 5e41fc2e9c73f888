//! When the next request may go out: so many a minute, and not before an endpoint that is busy wants the next one.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Shared by all requests of a run.
pub(super) struct Gate {
    interval: Duration,
    /// No request goes out before.
    next: Mutex<Instant>,
}

impl Gate {
    /// `per_minute` = 0: no limit.
    pub(super) fn new(per_minute: f64) -> Gate {
        let interval = if per_minute > 0.0 { Duration::from_secs_f64(60.0 / per_minute) } else { Duration::ZERO };
        Gate { interval, next: Mutex::new(Instant::now()) }
    }

    /// Takes the next place and waits for it.
    pub(super) async fn pass(&self) {
        let place = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let place = (*next).max(Instant::now());
            *next = place + self.interval;
            place
        };
        sleep_until(place).await;
    }

    /// Nobody goes out for so long: the endpoint has asked for it.
    pub(super) fn hold(&self, pause: Duration) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + pause);
    }
}
