//! When a user becomes due, and how urgently (DESIGN 7).

use crate::config::RefreshSettings;
use crate::store::{AppendOutcome, UserState};

/// A caller waits for this user.
pub const CLASS_SYNC: u8 = 0;
/// No features yet, or a high-value action.
pub const CLASS_URGENT: u8 = 1;
/// The weight of new events reached the threshold.
pub const CLASS_THRESHOLD: u8 = 2;
/// Some new events; refreshed at the latest after `max_interval`.
pub const CLASS_ROUTINE: u8 = 3;

/// The policy of one process; pure.
#[derive(Debug, Clone)]
pub struct DuePolicy {
    weight_threshold: f64,
    min_interval_ms: i64,
    max_interval_ms: i64,
    immediate_actions: Vec<String>,
    sparse_events: u64,
    returning_after_ms: i64,
    ttl_ms: i64,
}

impl DuePolicy {
    /// The policy of these settings.
    pub fn new(settings: &RefreshSettings) -> DuePolicy {
        DuePolicy {
            weight_threshold: settings.weight_threshold,
            min_interval_ms: settings.min_interval_ms,
            max_interval_ms: settings.max_interval_ms,
            immediate_actions: settings.immediate_actions.clone(),
            sparse_events: settings.sparse_events,
            returning_after_ms: settings.returning_after_ms,
            ttl_ms: settings.ttl_ms,
        }
    }

    /// Whether this action makes its user due at once.
    pub fn is_immediate(&self, action: &str) -> bool {
        self.immediate_actions.iter().any(|name| name == action)
    }

    /// Class and due time after an append; `None` when the features have seen every event, or none is
    /// kept: the user was erased, and what came again counts as duplicate.
    ///
    /// `immediate`: the call carried a high-value action (a redelivered one counts, too: it may have crashed before).
    pub fn due(&self, outcome: &AppendOutcome, immediate: bool, now_ms: i64) -> Option<(u8, i64)> {
        let state = &outcome.state;
        if !state.has_events() {
            return None;
        }
        if outcome.refreshed_seq >= Some(state.seq) {
            return None;
        }
        if immediate || self.has_no_features(outcome, now_ms) || self.returns_after_long(state, now_ms) {
            return Some((CLASS_URGENT, now_ms));
        }
        if state.weight >= self.weight_threshold {
            return Some((CLASS_THRESHOLD, now_ms.max(state.last_refresh_ms.saturating_add(self.min_interval_ms))));
        }
        Some((CLASS_ROUTINE, now_ms.max(state.last_refresh_ms.saturating_add(self.max_interval_ms))))
    }

    /// Never refreshed, or so long ago that every group has expired: a group is no younger than the last refresh. (Where that
    /// was a skip, the groups are older than it and may have expired unnoticed; the other rules find the user.)
    pub fn has_no_features(&self, outcome: &AppendOutcome, now_ms: i64) -> bool {
        let age_ms = now_ms.saturating_sub(outcome.state.last_refresh_ms);
        outcome.state.has_events() && (outcome.refreshed_seq.is_none() || (self.ttl_ms > 0 && age_ms >= self.ttl_ms))
    }

    /// Few events ever, and none for long. The last refresh stands for the last event: no event waits for its refresh
    /// longer than `max_interval`, and the time of events before is not among the counters.
    fn returns_after_long(&self, state: &UserState, now_ms: i64) -> bool {
        let events = state.seq.saturating_sub(state.erased_seq);
        events <= self.sparse_events && now_ms.saturating_sub(state.last_refresh_ms) >= self.returning_after_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy() -> DuePolicy {
        DuePolicy {
            weight_threshold: 4.0,
            min_interval_ms: 100,
            max_interval_ms: 1000,
            immediate_actions: vec!["purchase".into()],
            sparse_events: 0,
            returning_after_ms: 2000,
            ttl_ms: 100_000,
        }
    }

    fn outcome(seq: u64, weight: f64, last_refresh_ms: i64, refreshed_seq: Option<u64>) -> AppendOutcome {
        let state = UserState { seq, weight, last_refresh_ms, ..UserState::default() };
        AppendOutcome { accepted: 1, duplicates: 0, state, refreshed_seq }
    }

    #[test]
    fn the_rules_of_the_policy() {
        let due = |outcome, immediate| policy().due(&outcome, immediate, 5000);
        assert_eq!(due(outcome(1, 1.0, 0, None), false), Some((CLASS_URGENT, 5000)));
        assert_eq!(due(outcome(3, 9.0, 4990, Some(3)), false), None);
        assert_eq!(due(outcome(4, 1.0, 4990, Some(3)), true), Some((CLASS_URGENT, 5000)));
        assert_eq!(due(outcome(4, 4.0, 4990, Some(3)), false), Some((CLASS_THRESHOLD, 5090)));
        assert_eq!(due(outcome(4, 1.0, 4990, Some(3)), false), Some((CLASS_ROUTINE, 5990)));
        assert_eq!(due(outcome(4, 1.0, 10, Some(3)), false), Some((CLASS_ROUTINE, 5000)));
        let mut erased = outcome(4, 0.0, 0, None);
        erased.state.erased_seq = 4;
        assert_eq!(due(erased, true), None, "nothing is kept to refresh from");
    }

    #[test]
    fn a_user_of_few_events_who_comes_back_goes_first() {
        let policy = DuePolicy { sparse_events: 4, ..policy() };
        let class = |outcome| policy.due(&outcome, false, 5000).map(|(class, _)| class);
        assert_eq!(class(outcome(4, 1.0, 3000, Some(3))), Some(CLASS_URGENT));
        assert_eq!(class(outcome(4, 1.0, 3001, Some(3))), Some(CLASS_ROUTINE), "was here not long ago");
        assert_eq!(class(outcome(5, 1.0, 3000, Some(3))), Some(CLASS_ROUTINE), "acts often");
        let mut again = outcome(9, 1.0, 3000, Some(8));
        again.state.erased_seq = 5;
        assert_eq!(class(again), Some(CLASS_URGENT), "events before an erasure do not count");
        assert_eq!(class(outcome(3, 0.0, 10, Some(3))), None, "nothing new");
    }

    #[test]
    fn a_user_whose_features_have_expired_goes_first() {
        let policy = DuePolicy { ttl_ms: 2500, ..policy() };
        let due = |outcome: &AppendOutcome| (policy.due(outcome, false, 5000), policy.has_no_features(outcome, 5000));
        assert_eq!(due(&outcome(40, 1.0, 2500, Some(39))), (Some((CLASS_URGENT, 5000)), true));
        assert_eq!(due(&outcome(40, 1.0, 2501, Some(39))), (Some((CLASS_ROUTINE, 5000)), false));
        assert_eq!(due(&outcome(1, 1.0, 0, None)), (Some((CLASS_URGENT, 5000)), true), "never refreshed");
        assert_eq!(due(&outcome(0, 0.0, 0, None)), (None, false), "no event");
        let for_ever = DuePolicy { ttl_ms: 0, ..policy.clone() };
        assert!(!for_ever.has_no_features(&outcome(40, 1.0, 1, Some(39)), 5000));
    }

    proptest! {
        #[test]
        fn a_user_behind_is_always_due_within_max_interval(
            seq in 0u64..10, refreshed in proptest::option::of(0u64..10), weight in 0.0f64..10.0,
            last in 0i64..10_000, immediate: bool,
        ) {
            let due = policy().due(&outcome(seq, weight, last, refreshed), immediate, 10_000);
            match refreshed {
                _ if seq == 0 => prop_assert_eq!(due, None),
                Some(refreshed) if seq <= refreshed => prop_assert_eq!(due, None),
                _ => {
                    let (_, due_ms) = due.expect("behind");
                    prop_assert!((10_000..=last.max(10_000) + 1000).contains(&due_ms));
                }
            }
        }
    }
}
