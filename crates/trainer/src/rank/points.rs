//! Impressions of one session → a [`Point`]: a user and a time, before which all that is looked at must lie.
//!
//! In: a dataset and its `labels.jsonl`. Out: points in the order of time. Called by `stages`.

use crate::data::{Cut, Dataset, Label};
use std::collections::BTreeMap;

/// Something shown, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impression {
    /// Index into the dataset's items.
    pub item: usize,
    /// A click came of it.
    pub clicked: bool,
    /// The click converted.
    pub converted: bool,
}

/// A user at a time, and what was shown in the session that began then.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Index into the dataset's users.
    pub user: usize,
    /// What was known: strictly before the first impression.
    pub cut: Cut,
    /// Where the items are shown; a ranker is asked there, so that it is known.
    pub domain: Option<&'static str>,
    /// In the order in which they were shown.
    pub impressions: Vec<Impression>,
}

/// What was left out, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftOut {
    /// Impressions of users without events.
    pub unknown_users: usize,
    /// Impressions of items that the catalogue does not have.
    pub unknown_items: usize,
}

/// Points of a dataset, by time, then user.
pub fn points(dataset: &Dataset, labels: &[Label]) -> (Vec<Point>, LeftOut) {
    let sessions = sessions(labels);
    let mut left_out = LeftOut::default();
    let mut points = Vec::with_capacity(sessions.len());
    for ((user_id, _), shown) in sessions {
        let Ok(user) = dataset.users.binary_search_by(|row| row.user_id.as_str().cmp(user_id)) else {
            left_out.unknown_users += shown.len();
            continue;
        };
        let impressions: Vec<Impression> = shown.iter().filter_map(|label| impression(dataset, label)).collect();
        left_out.unknown_items += shown.len() - impressions.len();
        let (Some(first), false) = (shown.first(), impressions.is_empty()) else { continue };
        points.push(Point {
            user,
            cut: dataset.users[user].cut_before(first.ts_ms),
            domain: domain(dataset, user, first.ts_ms),
            impressions,
        });
    }
    points.sort_by_key(|point| (point.cut.before_ms, point.user));
    (points, left_out)
}

/// Labels by user and request, in the order in which their items were shown.
pub fn sessions(labels: &[Label]) -> BTreeMap<(&str, &str), Vec<&Label>> {
    let mut sessions: BTreeMap<(&str, &str), Vec<&Label>> = BTreeMap::new();
    for label in labels {
        sessions.entry((&label.user_id, &label.request_id)).or_default().push(label);
    }
    sessions.values_mut().for_each(|shown| shown.sort_by_key(|label| label.ts_ms));
    sessions
}

fn impression(dataset: &Dataset, label: &Label) -> Option<Impression> {
    let item = *dataset.item_index.get(&label.item_id)?;
    Some(Impression { item, clicked: label.clicked, converted: label.converted })
}

/// As the events say it of the impression at a time.
fn domain(dataset: &Dataset, user: usize, ts_ms: i64) -> Option<&'static str> {
    let shown = &dataset.users[user].impressions;
    let place = shown.partition_point(|behaviour| behaviour.ts_ms < ts_ms);
    shown.get(place).filter(|behaviour| behaviour.ts_ms == ts_ms)?.domain
}
