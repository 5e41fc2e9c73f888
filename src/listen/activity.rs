//! What one connection is doing, and until when it may go on so.
//!
//! In: bytes read, writes that block, requests that begin and end. Out: the time at which the connection is over
//! ([`Activity::deadline`]). Callers: `stream`, `connection`, `slots`.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a connection may stay in one state.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From the first byte of a request's head (or the connection's beginning) to the head's end.
    pub header: Duration,
    /// Without any request, and for a client that does not take its answer.
    pub idle: Duration,
}

/// Why a connection was closed by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// Its request's head did not come.
    Header,
    /// No request came.
    Idle,
    /// The client does not take its answer.
    Write,
    /// The port is full, and this one had waited longest for a request.
    Full,
}

impl CloseReason {
    /// Label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseReason::Header => "header_timeout",
            CloseReason::Idle => "idle_timeout",
            CloseReason::Write => "write_timeout",
            CloseReason::Full => "port_full",
        }
    }
}

/// No time at all; the others are milliseconds since the connection began, plus one.
const NEVER: u64 = 0;

/// Shared by a connection's parts; all of it is read and written by relaxed atomics, for a moment's error harms nobody.
#[derive(Debug)]
pub struct Activity {
    began: Instant,
    /// Requests under way, to the end of their answers.
    requests: AtomicUsize,
    /// A request has come.
    used: AtomicBool,
    /// The last request was of HTTP/2: bytes between requests are no request's head.
    multiplexed: AtomicBool,
    /// When the last request ended.
    idle_since: AtomicU64,
    /// When the first byte came that belongs to no request yet.
    head_since: AtomicU64,
    /// Since when the client takes nothing of what we write.
    blocked_since: AtomicU64,
}

impl Activity {
    /// A connection that begins now.
    pub fn new() -> Activity {
        Activity {
            began: Instant::now(),
            requests: AtomicUsize::new(0),
            used: AtomicBool::new(false),
            multiplexed: AtomicBool::new(false),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(NEVER),
            blocked_since: AtomicU64::new(NEVER),
        }
    }

    /// A request's head has come.
    pub fn request_began(&self, multiplexed: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
        self.multiplexed.store(multiplexed, Ordering::Relaxed);
        self.head_since.store(NEVER, Ordering::Relaxed);
    }

    /// A request's answer is written, or given up.
    pub fn request_ended(&self) {
        self.idle_since.store(self.now(), Ordering::Relaxed);
        self.head_since.store(NEVER, Ordering::Relaxed);
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Bytes came.
    pub fn read(&self) {
        if self.is_waiting() && self.head_since.load(Ordering::Relaxed) == NEVER {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The client took bytes, or does not.
    pub fn wrote(&self, blocked: bool) {
        let since = self.blocked_since.load(Ordering::Relaxed);
        if blocked == (since == NEVER) {
            self.blocked_since.store(if blocked { self.now() } else { NEVER }, Ordering::Relaxed);
        }
    }

    /// No request is under way.
    pub fn is_waiting(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    /// For how long the connection has had no request; `None` while it has one.
    pub fn waiting_for(&self) -> Option<Duration> {
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        self.is_waiting().then(|| self.began.elapsed().saturating_sub(since))
    }

    /// When the connection is over if nothing changes, and why; `None` while we owe it an answer.
    pub fn deadline(&self, timeouts: &Timeouts) -> Option<(Instant, CloseReason)> {
        let after = |since: u64, time: Duration| self.began + Duration::from_millis(since.saturating_sub(1)) + time;
        let blocked = self.blocked_since.load(Ordering::Relaxed);
        if blocked != NEVER {
            return Some((after(blocked, timeouts.idle), CloseReason::Write));
        }
        if !self.is_waiting() {
            return None;
        }
        if !self.used.load(Ordering::Relaxed) {
            return Some((self.began + timeouts.header, CloseReason::Header));
        }
        let head = self.head_since.load(Ordering::Relaxed);
        if head != NEVER && !self.multiplexed.load(Ordering::Relaxed) {
            return Some((after(head, timeouts.header), CloseReason::Header));
        }
        Some((after(self.idle_since.load(Ordering::Relaxed), timeouts.idle), CloseReason::Idle))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts { header: Duration::from_secs(1), idle: Duration::from_secs(60) };

    fn over(activity: &Activity) -> Option<CloseReason> {
        activity.deadline(&TIMEOUTS).map(|(_, over)| over)
    }

    #[test]
    fn every_state_has_its_own_time() {
        let activity = Activity::new();
        assert_eq!(over(&activity), Some(CloseReason::Header), "nothing came yet");
        activity.request_began(false);
        activity.read();
        assert_eq!((over(&activity), activity.waiting_for()), (None, None), "we owe an answer, however long it takes");
        activity.request_ended();
        assert_eq!(over(&activity), Some(CloseReason::Idle));
        assert!(activity.waiting_for().is_some());
        activity.read();
        assert_eq!(over(&activity), Some(CloseReason::Header), "half a head");
        activity.request_began(true);
        activity.request_ended();
        activity.read();
        assert_eq!(over(&activity), Some(CloseReason::Idle), "a ping of http/2 is no head");
        activity.wrote(true);
        assert_eq!(over(&activity), Some(CloseReason::Write));
        activity.wrote(false);
        assert_eq!(over(&activity), Some(CloseReason::Idle));
    }

    #[test]
    fn times_are_counted_from_where_the_state_began() {
        let activity = Activity::new();
        activity.request_began(false);
        activity.request_ended();
        let (until, _) = activity.deadline(&TIMEOUTS).expect("idle");
        let left = until.saturating_duration_since(Instant::now());
        assert!(left <= TIMEOUTS.idle && left > TIMEOUTS.idle / 2, "{left:?}");
    }
}
