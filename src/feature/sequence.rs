//! Behaviours ↔ the columns of a `CrossGroup`: items, actions, delta-coded times.

use crate::proto::{Behaviour, CrossGroup};

/// Puts behaviours (newest first) into the columns of a `CrossGroup`; the other fields stay empty.
pub fn cross_sequence(engagements: &[Behaviour]) -> CrossGroup {
    let mut previous = None;
    let mut times = Vec::with_capacity(engagements.len());
    for behaviour in engagements {
        times.push(match previous {
            None => behaviour.ts_ms,
            Some(newer) => i64::wrapping_sub(newer, behaviour.ts_ms),
        });
        previous = Some(behaviour.ts_ms);
    }
    CrossGroup {
        item_ids: engagements.iter().map(|behaviour| behaviour.item_id.clone()).collect(),
        actions: engagements.iter().map(|behaviour| behaviour.action.clone()).collect(),
        ts_ms: times,
        ..CrossGroup::default()
    }
}

/// Absolute times of a `CrossGroup`, newest first, unix ms: as many as there are items with an action and a time.
pub fn cross_times(cross: &CrossGroup) -> impl Iterator<Item = i64> + '_ {
    let count = cross.item_ids.len().min(cross.actions.len());
    let mut newer = None;
    cross.ts_ms.iter().take(count).map(move |delta| {
        let ts_ms = newer.map_or(*delta, |newer| i64::wrapping_sub(newer, *delta));
        newer = Some(ts_ms);
        ts_ms
    })
}

/// The behaviours of a `CrossGroup`, newest first, with absolute times.
pub fn cross_behaviours(cross: &CrossGroup) -> Vec<Behaviour> {
    let rows = cross.item_ids.iter().zip(&cross.actions).zip(cross_times(cross));
    let behaviour = |((item, action), ts_ms): ((&String, &String), i64)| Behaviour {
        ts_ms,
        item_id: item.clone(),
        action: action.clone(),
        ..Behaviour::default()
    };
    rows.map(behaviour).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sequences_round_trip(times in proptest::collection::vec(0i64..2_000_000_000_000, 0..100)) {
            let behaviours: Vec<Behaviour> = times
                .into_iter()
                .enumerate()
                .map(|(index, ts_ms)| Behaviour {
                    ts_ms,
                    item_id: format!("i{index}"),
                    action: "click".into(),
                    ..Behaviour::default()
                })
                .collect();
            prop_assert_eq!(cross_behaviours(&cross_sequence(&behaviours)), behaviours);
        }
    }
}
