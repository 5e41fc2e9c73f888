//! What a rewind does to each partition. Pure: no Kafka, no clock.

/// Where a group is put back to.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The consumer group.
    pub group: String,
    /// Records of this time and later are to be read again, unix ms.
    pub since_ms: i64,
    /// Every partition of the topics that the service reads, in order.
    pub partitions: Vec<Partition>,
    /// Topics whose records bear their producers' time, or whose setting may not be read.
    pub by_producers: Vec<String>,
}

impl Plan {
    /// Partitions whose offset changes.
    pub fn moving(&self) -> usize {
        self.partitions.iter().filter(|part| part.moves_to().is_some()).count()
    }

    /// Records that are read again, at most: compacted and transactional topics have gaps.
    pub fn records(&self) -> i64 {
        self.partitions.iter().map(Partition::records).sum()
    }
}

/// One partition of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// What the group has committed; `None`: nothing, so that it begins at the first record that is kept.
    pub committed: Option<i64>,
    /// What it is to have committed: `committed` or less.
    pub target: Option<i64>,
    /// The first record that is kept.
    pub low: i64,
    /// Behind the last record.
    pub high: i64,
    /// Records of the time asked for may be gone by retention.
    pub may_lack: bool,
}

impl Partition {
    /// The offset to commit, where it changes.
    pub fn moves_to(&self) -> Option<i64> {
        self.target.filter(|_| self.target != self.committed)
    }

    /// Records that are read again, at most.
    pub fn records(&self) -> i64 {
        match (self.committed, self.target) {
            (Some(committed), Some(target)) => (committed.min(self.high) - target.max(self.low)).max(0),
            _ => 0,
        }
    }

    /// The committed offset lies behind the partition's end: the topic was made anew, or cut.
    pub fn is_beyond_end(&self) -> bool {
        self.committed.is_some_and(|committed| committed > self.high)
    }
}

/// What the broker says of a partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    pub committed: Option<i64>,
    pub low: i64,
    pub high: i64,
    /// The first record of the time asked for or later.
    pub since: Option<i64>,
    /// The newest record of before that time, among those that stand before `since`.
    pub before: Option<i64>,
}

pub(super) fn look_at(name: &(String, i32), sight: &Sight) -> Partition {
    let Sight { committed, low, high, since, before } = *sight;
    // Records without any time are found by none.
    let begin = before.or(since).unwrap_or(low);
    Partition {
        topic: name.0.clone(),
        partition: name.1,
        committed,
        target: committed.map(|committed| committed.min(begin)),
        low,
        high,
        may_lack: low > 0 && before.is_none(),
    }
}

/// A time between one with a record (or before all times) and one without.
pub(super) fn middle(with: Option<i64>, without: i64) -> i64 {
    let with = with.unwrap_or(-1);
    with + (without - with) / 2
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use proptest::prelude::*;

    fn name() -> (String, i32) {
        ("t".to_string(), 0)
    }

    /// What the broker says of records with these times that stand from `low` on.
    fn sight(times: &[i64], low: i64, since_ms: i64, committed: Option<i64>) -> Sight {
        let at = |place: usize| low + place as i64;
        let since = times.iter().position(|time| *time >= since_ms);
        let earlier = &times[..since.unwrap_or(times.len())];
        let newest = earlier.iter().max();
        let before = newest.map(|newest| at(earlier.iter().position(|time| time == newest).unwrap()));
        Sight { committed, low, high: at(times.len()), since: since.map(at), before }
    }

    proptest! {
        /// Records bear a time that is late by less than the margin, or, as dead letters that were sent back, that of a record before
        /// them: what came after the store's backup is read again, and nothing is moved forward.
        #[test]
        fn whatever_came_after_the_backup_is_read_again(
            steps in proptest::collection::vec((0_i64..50, 0_i64..30, any::<Option<u8>>()), 1..60),
            backup in 0_i64..1500, low in 0_i64..100, committed in 0_i64..60,
        ) {
            let margin = 30;
            let (mut now, mut came, mut times) = (0, Vec::new(), Vec::new());
            for (wait, late, repeats) in steps {
                now += wait;
                let repeated = repeats.filter(|_| !times.is_empty()).map(|of| times[usize::from(of) % times.len()]);
                came.push(now);
                times.push(repeated.unwrap_or((now - late).max(0)));
            }
            let committed = low + committed.min(times.len() as i64);
            let part = look_at(&name(), &sight(&times, low, backup - margin, Some(committed)));
            let target = part.target.unwrap();
            prop_assert!((low..=committed).contains(&target));
            prop_assert_eq!(part.records(), committed - target);
            for (offset, came) in (low..committed).zip(&came) {
                prop_assert!(*came < backup || target <= offset, "{offset} of {times:?} came at {came} and is not read again");
            }
        }
    }

    #[test]
    fn nothing_committed_stays_so_and_lost_beginnings_are_told() {
        let part = look_at(&name(), &sight(&[10, 20, 30], 7, 15, None));
        assert_eq!((part.target, part.moves_to(), part.records(), part.may_lack), (None, None, 0, false));
        let part = look_at(&name(), &sight(&[10, 20, 30], 7, 5, Some(9)));
        assert_eq!((part.target, part.records(), part.may_lack), (Some(7), 2, true));
        let part = look_at(&name(), &sight(&[10, 20, 30], 0, 5, Some(3)));
        assert_eq!((part.target, part.records(), part.may_lack), (Some(0), 3, false));
    }

    #[test]
    fn an_offset_behind_the_end_or_before_the_beginning_is_seen() {
        // Made anew: it begins with the first record of the time.
        let part = look_at(&name(), &sight(&[10, 20, 30], 0, 5, Some(900)));
        assert_eq!((part.target, part.records(), part.is_beyond_end()), (Some(0), 3, true));
        // Gone by retention before it was ever read: the consumer begins with what is there.
        let part = look_at(&name(), &sight(&[10, 20, 30], 50, 5, Some(40)));
        assert_eq!((part.moves_to(), part.records(), part.may_lack), (None, 0, true));
        // Nothing is kept at all.
        let part = look_at(&name(), &sight(&[], 50, 5, Some(50)));
        assert_eq!((part.moves_to(), part.records(), part.may_lack), (None, 0, true));
    }

    #[test]
    fn a_middle_lies_between() {
        assert_eq!([middle(None, 1), middle(Some(0), 2), middle(Some(4), 9)], [0, 1, 6]);
    }
}
