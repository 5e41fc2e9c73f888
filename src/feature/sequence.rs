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

/// The behaviours of a `CrossGroup`, newest first, with absolute times.
pub fn cross_behaviours(cross: &CrossGroup) -> Vec<Behaviour> {
    let mut ts_ms = 0;
    let mut first = true;
    let rows = cross.item_ids.iter().zip(&cross.actions).zip(&cross.ts_ms);
    rows.map(|((item, action), delta)| {
        ts_ms = if first { *delta } else { i64::wrapping_sub(ts_ms, *delta) };
        first = false;
        Behaviour { ts_ms, item_id: item.clone(), action: action.clone(), ..Behaviour::default() }
    })
    .collect()
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
