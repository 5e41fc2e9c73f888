//! `max_staleness_ms` and `deadline_ms` of `POST /v1/features`: how old an answer may be, and how long to wait for a newer one.
//!
//! In: the two fields, users, groups. Out: users who are behind are queued, and waited for where there is a deadline and the readers'
//! budget holds them; the answer is read afterwards, whatever became of it. Caller: `features`.

use super::ApiState;
use super::waiting::{Awaited, queue, refresh_and_wait};
use crate::due::CLASS_URGENT;
use crate::feature::{DecodedGroup, Group};
use crate::http::{ApiError, KeyNumber};
use crate::live::View;
use crate::store::{StoredFeatures, UserMarks};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Staleness {
    max_ms: u64,
    /// `None` = queue only.
    deadline: Option<Duration>,
}

impl Staleness {
    /// The two fields of a request; `None` when neither is there. A 400 names the field that makes no sense.
    pub fn of_request(
        state: &ApiState,
        max_staleness_ms: Option<u64>,
        deadline_ms: Option<u64>,
    ) -> Result<Option<Staleness>, ApiError> {
        let deadline = state.waiting.limit("deadline_ms", deadline_ms)?;
        match max_staleness_ms {
            Some(max_ms) => Ok(Some(Staleness { max_ms, deadline })),
            None if deadline.is_none() => Ok(None),
            None => Err(ApiError::field("deadline_ms", "goes with max_staleness_ms, which says for what to wait")),
        }
    }
}

/// Queues the users who are behind: in class 0 and waited for where there is a deadline, else in class 1, where the token
/// budget holds them like everybody else. With a deadline the readers' budget holds some of them, in the order given; returns how
/// many were over it.
pub(super) async fn freshen(
    state: &ApiState,
    view: &View,
    key: KeyNumber,
    users: &[String],
    groups: &[Group],
    wanted: Staleness,
) -> Result<usize, ApiError> {
    let mut seen = HashSet::new();
    let users: Vec<String> = users.iter().filter(|user| seen.insert(user.as_str())).cloned().collect();
    // The counters first: features that are newer than them are not taken for behind.
    let marks = state.store.states_each(view.spaces().all(), &users).await?;
    let stored = state.store.feature_groups_each(view.space(), &users, groups).await?;
    let now_ms = state.store.clock_ms();
    let mut behind = Vec::new();
    for ((user, before), features) in users.into_iter().zip(marks).zip(&stored) {
        // Who cannot be read is not refreshed either; the answer says so.
        let Ok(Some(before)) = before else { continue };
        let features = match features {
            Ok(features) => features.as_ref(),
            // A refresh writes over what cannot be read.
            Err(error) if error.is_unreadable() => None,
            Err(_) => continue,
        };
        match shown(features, &before, groups, wanted.max_ms, now_ms) {
            Shown::Level => {}
            Shown::Old => behind.push(Awaited { user, before, without_features: false }),
            Shown::Nothing => behind.push(Awaited { user, before, without_features: true }),
        }
    }
    // They hold what was received, and the wait may be long.
    drop(stored);
    if behind.is_empty() {
        return Ok(0);
    }
    let Some(limit) = wanted.deadline else {
        queue(state, &behind, CLASS_URGENT, None).await?;
        return Ok(0);
    };
    let held = state.readers.take(key, behind.len(), Instant::now());
    let over = behind.len() - held;
    state.metrics.reader_refreshes.with_label_values(&["granted"]).inc_by(held as u64);
    state.metrics.reader_refreshes.with_label_values(&["over"]).inc_by(over as u64);
    behind.truncate(held);
    if held > 0
        && let Err(error) = refresh_and_wait(state, view, behind, limit).await
    {
        state.readers.give_back(key, held);
        return Err(error);
    }
    Ok(over)
}

/// What a read would show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// All there is, or young enough.
    Level,
    /// Too old and without the latest events, or only the fast path's.
    Old,
    /// A group is missing or expired.
    Nothing,
}

/// Whether a refresh could show something that the stored groups do not, and they are old.
///
/// Groups that have read every event are not behind, however old they are: a refresh would find the prompt unchanged. A
/// group that is missing, expired or of the fast path is, at any age. `scid` is not built and never waited for.
fn shown(stored: Option<&StoredFeatures>, marks: &UserMarks, groups: &[Group], max_ms: u64, now_ms: i64) -> Shown {
    if !marks.state.has_events() {
        return Shown::Level;
    }
    let lags = marks.refreshed_seq < Some(marks.state.seq);
    let mut found = Shown::Level;
    for group in groups.iter().filter(|group| **group != Group::Scid) {
        let Some(blob) = stored.and_then(|features| features.living(*group, now_ms)) else {
            return Shown::Nothing;
        };
        // A group that cannot be decoded shows nothing.
        let Ok(decoded) = DecodedGroup::decode(blob) else { return Shown::Nothing };
        if blob.tier == 0 || (lags && age_ms(&decoded, now_ms) >= max_ms) {
            found = Shown::Old;
        }
    }
    found
}

fn age_ms(group: &DecodedGroup, now_ms: i64) -> u64 {
    // A clock that went back makes nothing old.
    now_ms.saturating_sub(group.meta().generated_at_ms).max(0).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::{GroupBlob, Version};
    use crate::proto::{CrossGroup, GroupMeta, IntraGroup};
    use crate::store::UserState;
    use prost::Message;

    const BOTH: [Group; 3] = [Group::Intra, Group::Cross, Group::Scid];
    const NOW_MS: i64 = 1000;

    fn blob(group: Group, generated_at_ms: i64, tier: u8, expires_at_ms: i64) -> GroupBlob {
        let meta = Some(GroupMeta { generated_at_ms, ..GroupMeta::default() });
        let bytes = match group {
            Group::Intra => IntraGroup { meta, ..IntraGroup::default() }.encode_to_vec(),
            _ => CrossGroup { meta, ..CrossGroup::default() }.encode_to_vec(),
        };
        GroupBlob { group, bytes: bytes.into(), tier, version: Version::default(), expires_at_ms }
    }

    fn made(generated_at_ms: i64, tier: u8, expires_at_ms: i64) -> StoredFeatures {
        let groups = [Group::Intra, Group::Cross].map(|group| blob(group, generated_at_ms, tier, expires_at_ms));
        StoredFeatures { groups: groups.to_vec(), ..StoredFeatures::default() }
    }

    fn marks(seq: u64, refreshed_seq: Option<u64>) -> UserMarks {
        UserMarks { state: UserState { seq, ..UserState::default() }, refreshed_seq }
    }

    fn behind(stored: Option<&StoredFeatures>, marks: &UserMarks, max_ms: u64) -> bool {
        shown(stored, marks, &BOTH, max_ms, NOW_MS) != Shown::Level
    }

    #[test]
    fn behind_is_old_and_without_the_latest_events() {
        let stored = made(900, 1, 0);
        assert!(behind(Some(&stored), &marks(3, Some(2)), 100), "100 ms old, one event behind");
        assert!(!behind(Some(&stored), &marks(3, Some(2)), 101));
        assert!(behind(Some(&made(NOW_MS, 1, 0)), &marks(3, Some(2)), 0), "0 = every event counts");
        assert!(!behind(Some(&made(1, 1, 0)), &marks(3, Some(3)), 0), "nothing to add");
        assert!(!behind(Some(&made(2000, 1, 0)), &marks(3, Some(2)), 1), "a clock that went back");
    }

    #[test]
    fn what_is_missing_expired_or_quick_is_behind_at_any_age() {
        assert!(behind(None, &marks(1, None), u64::MAX));
        assert!(behind(Some(&made(NOW_MS, 1, NOW_MS)), &marks(1, Some(1)), u64::MAX));
        assert!(behind(Some(&made(NOW_MS, 0, 0)), &marks(1, None), u64::MAX));
        let half = StoredFeatures { groups: vec![blob(Group::Intra, NOW_MS, 1, 0)], ..StoredFeatures::default() };
        assert!(behind(Some(&half), &marks(1, Some(1)), u64::MAX));
        let asked = |groups: &[Group]| shown(Some(&half), &marks(1, Some(1)), groups, 0, NOW_MS);
        assert_eq!(
            (asked(&[Group::Intra]), asked(&[Group::Scid])),
            (Shown::Level, Shown::Level),
            "only what was asked for"
        );
        assert_eq!((asked(&BOTH), asked(&[Group::Cross])), (Shown::Nothing, Shown::Nothing));
        let quick = shown(Some(&made(NOW_MS, 0, 0)), &marks(1, None), &BOTH, 0, NOW_MS);
        assert_eq!(quick, Shown::Old, "no case for another quick answer");
    }

    #[test]
    fn without_events_there_is_nothing_to_wait_for() {
        assert!(!behind(None, &marks(0, None), 0));
        let erased = UserState { seq: 4, erased_seq: 4, ..UserState::default() };
        assert!(!behind(None, &UserMarks { state: erased, refreshed_seq: None }, 0));
    }
}
