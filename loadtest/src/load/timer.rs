//! A timer of the system: tokio's own rounds up to a millisecond, which is as long as a read takes.

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;
use tokio::io::unix::AsyncFd;

/// One alarm at a time.
pub(crate) struct Timer {
    descriptor: AsyncFd<OwnedFd>,
}

impl Timer {
    /// Within a runtime.
    pub(crate) fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // It was replaced by an unsafe one, for types whose descriptor may change; an `OwnedFd` is one descriptor while it lives.
        #[allow(deprecated)]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Timer { descriptor })
    }

    /// Waits until then; false where that has gone by.
    pub(crate) async fn until(&self, due: Instant) -> io::Result<bool> {
        let rest = due.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Ok(false);
        }
        let after = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: i64::from(rest.subsec_nanos()) };
        let alarm = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: after };
        rustix::time::timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &alarm)?;
        loop {
            let mut ready = self.descriptor.readable().await?;
            let mut expirations = [0; 8];
            match ready.try_io(|descriptor| Ok(rustix::io::read(descriptor, &mut expirations)?)) {
                Ok(read) => return read.map(|_| true),
                // It was the alarm before this one that made it readable.
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_is_not_early_and_does_not_wait_for_what_is_over() {
        super::super::runtime().expect("runtime").block_on(async {
            let timer = Timer::new().expect("timer");
            for microseconds in [20, 300, 2500] {
                let due = Instant::now() + Duration::from_micros(microseconds);
                assert!(timer.until(due).await.expect("alarm"));
                assert!(Instant::now() >= due, "{microseconds} µs");
            }
            assert!(!timer.until(Instant::now()).await.expect("alarm"));
        });
    }
}
