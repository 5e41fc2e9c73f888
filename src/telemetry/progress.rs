//! Whether something that has work makes steps: what a probe asks of an engine that may hang inside a call.
//!
//! In: when work begins, a step is done, work ends. Out: for how long there has been work without a step. Callers: `llm`,
//! `encode` tell; `admin` and the refresh worker ask.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The steps of one engine.
#[derive(Debug)]
pub struct Progress {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    under_way: usize,
    /// When the last step was done, or the first work of an idle engine began.
    last: Instant,
}

/// Work under way; over when dropped, also by a panic.
#[derive(Debug)]
pub struct Work(Arc<Progress>);

/// An engine that has had work for longer than its limit without making a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// Which engine.
    pub part: &'static str,
    /// Since its last step.
    pub time: Duration,
}

impl Default for Progress {
    fn default() -> Self {
        Self { state: Mutex::new(State { under_way: 0, last: Instant::now() }) }
    }
}

impl Progress {
    /// Work begins.
    pub fn begin(self: &Arc<Self>) -> Work {
        let mut state = self.state.lock();
        if state.under_way == 0 {
            state.last = Instant::now();
        }
        state.under_way += 1;
        Work(self.clone())
    }

    /// A step was done.
    pub fn step(&self) {
        self.state.lock().last = Instant::now();
    }

    /// For how long there has been work without a step; `None` without work.
    pub fn stalled(&self) -> Option<Duration> {
        let state = self.state.lock();
        (state.under_way > 0).then(|| state.last.elapsed())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.under_way -= 1;
        state.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_without_a_step_counts() {
        let progress = Arc::new(Progress::default());
        assert_eq!(progress.stalled(), None, "an idle engine never stalls");
        let (one, other) = (progress.begin(), progress.begin());
        let pause = || std::thread::sleep(Duration::from_millis(5));
        pause();
        let stalled = progress.stalled().unwrap_or_default();
        assert!(stalled >= Duration::from_millis(5), "{stalled:?}");
        progress.step();
        assert!(progress.stalled().is_some_and(|after| after < stalled), "a step begins the time anew");
        pause();
        drop(one);
        assert!(progress.stalled().is_some_and(|after| after < stalled), "so does the end of work");
        drop(other);
        assert_eq!(progress.stalled(), None);
    }
}
