//! When the generations of an index begin.
//!
//! In: points. Out: at most so many days. A point sees the newest generation that began no later than its own day, and a generation holds
//! what lay before it began: whatever a neighbour shows ends before the day of the impression.

use crate::data::day_of;
use crate::rank::Point;

/// Beginnings, rising; each is the beginning of a day.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generations(Vec<i64>);

impl Generations {
    /// At most `count`, so that about as many points see each of them.
    pub fn of(points: &[Point], count: usize) -> Self {
        let mut times: Vec<i64> = points.iter().map(|point| point.cut.before_ms).collect();
        times.sort_unstable();
        let mut days: Vec<i64> =
            (0..count).filter_map(|place| times.get(place * times.len() / count.max(1)).copied()).map(day_of).collect();
        days.dedup();
        Generations(days)
    }

    /// As they were written.
    pub(super) fn from_starts(starts_ms: Vec<i64>) -> Self {
        Generations(starts_ms)
    }

    /// The newest that began no later than the day of an instant.
    pub fn as_of(&self, ms: i64) -> Option<usize> {
        self.0.partition_point(|start| *start <= day_of(ms)).checked_sub(1)
    }

    /// Their beginnings.
    pub fn starts_ms(&self) -> &[i64] {
        &self.0
    }
}
