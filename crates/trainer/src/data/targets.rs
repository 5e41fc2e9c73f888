//! What of a user is predicted, and what nothing that is made may have seen: one rule for training, index and evaluation.
//!
//! The targets of a user are the items of one action (purchases) in order, then, in a generated world, the purchase after the
//! last event. Leave-one-out: the last target is for the test, the one before for validation, all others for training.
//! Callers: `examples`, `test_cases`, `index`, `evaluate`.

use super::dataset::{Cut, Dataset, UserRow};
use crate::reason::Reason;

/// The action whose items are predicted, unless told otherwise.
pub const DEFAULT_TARGET: &str = "purchase";

/// Which targets of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// All but the last two.
    Train,
    /// The last but one.
    Validation,
    /// The last.
    Test,
}

impl Split {
    /// Targets at the end of a user's that training does not see.
    pub const HELD_OUT: usize = 2;

    /// The part of a user's targets, oldest first.
    pub(crate) fn of(self, all: &[Target]) -> &[Target] {
        let (train, test) = (all.len().saturating_sub(Self::HELD_OUT), all.len().saturating_sub(1));
        match self {
            Split::Train => &all[..train],
            Split::Validation => &all[train..test],
            Split::Test => &all[test..],
        }
    }
}

/// A target, with text or without, and the point of the history that lies before it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    /// Just before it.
    pub cut: Cut,
    /// As in the files.
    pub item_id: String,
    /// Index into the dataset's items; `None` for an item without text.
    pub item: Option<usize>,
    /// Why; `None`: nobody knows.
    pub reasons: Option<Vec<Reason>>,
}

/// All targets of a user, oldest first.
pub(crate) fn targets_of(dataset: &Dataset, user: &UserRow, action: &str) -> Vec<Target> {
    let latent = user.latent.as_ref();
    let engaged = user.engagements.iter().enumerate().filter(|(_, behaviour)| behaviour.action == action);
    let mut all: Vec<Target> = engaged
        .map(|(place, behaviour)| Target {
            cut: Cut { engagements: place, before_ms: behaviour.ts_ms },
            item_id: behaviour.item_id.clone(),
            item: behaviour.item,
            reasons: latent.and_then(|latent| latent.purchases.get(&behaviour.event_id)).cloned(),
        })
        .collect();
    if let Some(next) = latent.and_then(|latent| latent.next_purchase.as_ref()) {
        all.push(Target {
            cut: Cut { engagements: user.engagements.len(), before_ms: i64::MAX },
            item_id: next.item_id.clone(),
            item: dataset.item_index.get(&next.item_id).copied(),
            reasons: Some(next.reasons.clone()),
        });
    }
    all
}

/// The first target at or after a cut: an index into the dataset's items; `None` where there is none, or none with text.
pub fn next_target(dataset: &Dataset, user: &UserRow, action: &str, cut: Cut) -> Option<usize> {
    targets_of(dataset, user, action).into_iter().find(|target| target.cut.before_ms >= cut.before_ms)?.item
}

/// What index, neighbours and counts may not be made of: a user's last targets and all that happened from the first of them on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdout {
    action: String,
    targets: usize,
}

impl Holdout {
    /// Nothing is held out: the users who are judged are others.
    pub fn none() -> Self {
        Holdout { action: DEFAULT_TARGET.to_string(), targets: 0 }
    }

    /// Training's own: the targets of validation and test.
    pub fn of_training(action: &str) -> Self {
        Holdout { action: action.to_string(), targets: Split::HELD_OUT }
    }

    /// How far a user may be looked at: all of a user who has no target.
    pub fn cut(&self, dataset: &Dataset, user: &UserRow) -> Cut {
        if self.targets == 0 {
            return Cut::END;
        }
        let all = targets_of(dataset, user, &self.action);
        all.get(all.len().saturating_sub(self.targets)).map_or(Cut::END, |first| first.cut)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use taiji::event::{ActionTable, Event};

    /// A user whose events are purchases (`true`) and clicks, one a millisecond, each of an item of its own.
    fn dataset(purchases: &[bool]) -> Dataset {
        let events = purchases.iter().enumerate().map(|(place, bought)| -> Event {
            let action = if *bought { "purchase" } else { "click" };
            serde_json::from_value(
                json!({"event_id": format!("{place:03}"), "user_id": "u", "item_id": place.to_string(),
                "action": action, "ts_ms": 1_500_000_000_000i64 + place as i64}),
            )
            .unwrap()
        });
        Dataset::from_records(vec![], vec![], events, &ActionTable::default())
    }

    proptest! {
        /// Whatever is mixed between the purchases: what may be looked at ends before the first held-out one, and loses nothing
        /// that training sees.
        #[test]
        fn the_hold_out_is_trainings(purchases in prop::collection::vec(any::<bool>(), 1..30)) {
            let data = dataset(&purchases);
            let user = &data.users[0];
            let all = targets_of(&data, user, "purchase");
            let seen = user.engagements_before(Holdout::of_training("purchase").cut(&data, user));
            for split in [Split::Validation, Split::Test] {
                for target in split.of(&all) {
                    prop_assert!(seen.iter().all(|behaviour| behaviour.item_id != target.item_id));
                    prop_assert!(seen.len() <= target.cut.engagements);
                }
            }
            for target in Split::Train.of(&all) {
                prop_assert!(seen.iter().any(|behaviour| behaviour.item_id == target.item_id));
            }
            prop_assert_eq!(user.engagements_before(Holdout::none().cut(&data, user)).len(), purchases.len());
        }
    }

    #[test]
    fn clicks_do_not_push_purchases_out_of_the_hold_out() {
        let data = dataset(&[true, true, false, true, true, false, false]);
        let cut = Holdout::of_training("purchase").cut(&data, &data.users[0]);
        assert_eq!(cut, Cut { engagements: 3, before_ms: 1_500_000_000_003 });
    }
}
