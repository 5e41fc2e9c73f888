//! What became of the calls of one kind.
//!
//! In: one outcome after another. Out: counts, latencies in HDR histograms (three digits), and what happened in each tenth of a second.

use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// Length of a [`Slot`].
pub const SLOT: Duration = Duration::from_millis(100);
/// Latencies are kept from a microsecond to ten minutes, in nanoseconds.
const RANGE_NS: (u64, u64) = (1_000, 600_000_000_000);
const DIGITS: u8 = 3;

/// How one call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With this status.
    Answered(u16),
    /// Not within the time a client waits.
    TimedOut,
    /// Refused, reset, closed, or not understood.
    Broken,
}

/// Calls whose intended start lies in one tenth of a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slot {
    /// Answered 2xx.
    pub accepted: u64,
    /// Answered otherwise.
    pub refused: u64,
    /// Not answered, or not even sent.
    pub failed: u64,
}

/// Counts and latencies.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Went out.
    pub sent: u64,
    /// Did not: as many were under way as may be.
    pub failed_to_start: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Calls that were given up.
    pub timed_out: u64,
    /// Calls whose connection was refused or broke.
    pub broken: u64,
    /// Latency of answers 2xx, from the intended start.
    pub accepted: Histogram<u64>,
    /// Latency of all that were sent; of those without an answer, the time they waited.
    pub all: Histogram<u64>,
    /// How late the generator itself sent.
    pub late: Histogram<u64>,
    /// By intended start.
    pub timeline: Vec<Slot>,
}

impl Default for Tally {
    fn default() -> Tally {
        let (accepted, all, late) = (histogram(), histogram(), histogram());
        let statuses = BTreeMap::new();
        Tally {
            sent: 0,
            failed_to_start: 0,
            statuses,
            timed_out: 0,
            broken: 0,
            accepted,
            all,
            late,
            timeline: Vec::new(),
        }
    }
}

fn histogram() -> Histogram<u64> {
    // The bounds are constants within what the library takes; a histogram without any is its own fallback.
    Histogram::new_with_bounds(RANGE_NS.0, RANGE_NS.1, DIGITS).unwrap_or_else(|_| unreachable!("constant bounds"))
}

fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record((latency.as_nanos() as u64).max(RANGE_NS.0));
}

impl Tally {
    /// A call that was meant to start at `start` and ended after `latency`.
    pub fn note(&mut self, start: Duration, latency: Duration, outcome: Outcome) {
        record(&mut self.all, latency);
        let slot = self.slot(start);
        match outcome {
            Outcome::Answered(status) if is_success(status) => slot.accepted += 1,
            Outcome::Answered(_) => slot.refused += 1,
            Outcome::TimedOut | Outcome::Broken => slot.failed += 1,
        }
        match outcome {
            Outcome::Answered(status) => {
                *self.statuses.entry(status).or_default() += 1;
                if is_success(status) {
                    record(&mut self.accepted, latency);
                }
            }
            Outcome::TimedOut => self.timed_out += 1,
            Outcome::Broken => self.broken += 1,
        }
    }

    /// A call that went out so much after its intended start.
    pub fn note_sent(&mut self, late: Duration) {
        self.sent += 1;
        record(&mut self.late, late);
    }

    /// A call that was meant to start then and found no room.
    pub fn note_failed_to_start(&mut self, start: Duration) {
        self.failed_to_start += 1;
        self.slot(start).failed += 1;
    }

    fn slot(&mut self, start: Duration) -> &mut Slot {
        let place = (start.as_nanos() / SLOT.as_nanos()) as usize;
        if self.timeline.len() <= place {
            self.timeline.resize(place + 1, Slot::default());
        }
        &mut self.timeline[place]
    }

    /// Answers 2xx.
    pub fn good(&self) -> u64 {
        self.statuses.iter().filter(|(status, _)| is_success(**status)).map(|(_, count)| count).sum()
    }

    /// All that were meant to be sent.
    pub fn meant(&self) -> u64 {
        self.sent + self.failed_to_start
    }

    /// Takes over what another thread, or another run, counted.
    pub fn add(&mut self, other: &Tally) {
        self.sent += other.sent;
        self.failed_to_start += other.failed_to_start;
        self.timed_out += other.timed_out;
        self.broken += other.broken;
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (ours, theirs) in
            [(&mut self.accepted, &other.accepted), (&mut self.all, &other.all), (&mut self.late, &other.late)]
        {
            // All have the same bounds, so that nothing can be out of them.
            let added = ours.add(theirs);
            debug_assert!(added.is_ok(), "{added:?}");
        }
        if self.timeline.len() < other.timeline.len() {
            self.timeline.resize(other.timeline.len(), Slot::default());
        }
        for (ours, theirs) in self.timeline.iter_mut().zip(&other.timeline) {
            ours.accepted += theirs.accepted;
            ours.refused += theirs.refused;
            ours.failed += theirs.failed;
        }
    }
}

/// Adds up the tallies of several threads, kind by kind.
pub(crate) fn together(kinds: usize, threads: &[Vec<Tally>]) -> Vec<Tally> {
    let mut all = vec![Tally::default(); kinds];
    for tallies in threads {
        for (whole, part) in all.iter_mut().zip(tallies) {
            whole.add(part);
        }
    }
    all
}

/// A quantile in milliseconds.
pub fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e6
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcome() -> impl Strategy<Value = Option<Outcome>> {
        prop_oneof![
            Just(None),
            prop_oneof![Just(200u16), Just(202), Just(429), Just(503)]
                .prop_map(|status| Some(Outcome::Answered(status))),
            Just(Some(Outcome::TimedOut)),
            Just(Some(Outcome::Broken)),
        ]
    }

    proptest! {
        /// Nothing is lost, whichever thread counted it: every call is in one count, one slot, and one latency if it was sent.
        #[test]
        fn every_call_is_counted_once(calls in proptest::collection::vec((0..2000u64, 0..5000u64, outcome(), 0..3usize), 0..200)) {
            let mut threads = vec![vec![Tally::default()]; 3];
            for (start, latency, outcome, thread) in &calls {
                let tally = &mut threads[*thread][0];
                let start = Duration::from_millis(*start);
                match outcome {
                    None => tally.note_failed_to_start(start),
                    Some(outcome) => {
                        tally.note_sent(Duration::ZERO);
                        tally.note(start, Duration::from_millis(*latency), *outcome);
                    }
                }
            }
            let all = together(1, &threads).remove(0);
            let answers: u64 = all.statuses.values().sum();
            prop_assert_eq!(all.meant(), calls.len() as u64);
            prop_assert_eq!(answers + all.timed_out + all.broken, all.sent);
            prop_assert_eq!((all.all.len(), all.accepted.len(), all.late.len()), (all.sent, all.good(), all.sent));
            let slots: u64 = all.timeline.iter().map(|slot| slot.accepted + slot.refused + slot.failed).sum();
            prop_assert_eq!(slots, calls.len() as u64);
            let longest = calls.iter().filter(|call| call.2.is_some()).map(|call| call.1).max().unwrap_or(0) as f64;
            prop_assert!((quantile_ms(&all.all, 1.0) - longest).abs() <= 0.002 * longest + 0.002);
        }
    }
}
