//! Labels for a log that says what was bought but not what was shown: each purchase beside items that were not bought.
//!
//! In: a dataset and the day from which on purchases are told. Out: [`Label`]s, a session a user and day. Called by `stages`.
//!
//! What was not bought is drawn as often as others buy it in the days around: how popular an item is then says nothing of whether it is the
//! bought one. Drawn evenly, it would reward whoever counts; drawn from all days, it would show in training what sells later only, and
//! turn round what popularity says. A ranker's chance of a click is that of being bought among the drawn, not a share of impressions.

use super::time_split::{DAY_MS, day_of};
use super::{Behaviour, DEFAULT_TARGET, Dataset, Label};
use crate::draw::choice;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ops::Range;

/// Draws for one item until it is given up: only users who have nearly everything need more.
const TRIES: usize = 200;

/// Settings of sampled labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampledLabelSettings {
    /// Share of the events that lie before the labels.
    pub share: f64,
    /// Sessions from this instant on are left out: of a log whose end is not to be trusted.
    pub until_ms: Option<i64>,
    /// Items drawn beside each bought one.
    pub negatives: usize,
    /// They are drawn from what was bought in so many days before and behind a session.
    pub days: i64,
    /// Most sessions; which of more, is drawn.
    pub points: usize,
    /// Engagements with text that a user has before a session.
    pub min_history: usize,
    /// Decides what is drawn.
    pub seed: u64,
}

impl Default for SampledLabelSettings {
    fn default() -> Self {
        Self { share: 0.7, until_ms: None, negatives: 9, days: 7, points: 15_000, min_history: 3, seed: 7 }
    }
}

/// A user's purchases of one day.
struct Session<'a> {
    user: usize,
    bought: Vec<&'a Behaviour>,
}

/// Sessions from `from_ms` on, by user and time: the bought items and those that were drawn, in an order that says nothing; all at the time
/// of the first purchase, before which lies what is known.
pub fn sampled_labels(dataset: &Dataset, from_ms: i64, settings: &SampledLabelSettings) -> Vec<Label> {
    let all: Vec<Session> = (0..dataset.users.len())
        .flat_map(|user| sessions(dataset, user, from_ms..settings.until_ms.unwrap_or(i64::MAX)))
        .filter(|session| known_before(dataset, session) >= settings.min_history)
        .collect();
    let mut pool: Vec<(i64, &str)> =
        all.iter().flat_map(|session| &session.bought).map(|one| (one.ts_ms, one.item_id.as_str())).collect();
    pool.sort_unstable();
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut chosen: Vec<usize> = (0..all.len()).collect();
    chosen.shuffle(&mut random);
    chosen.truncate(settings.points);
    chosen.sort_unstable();
    let near = |session: &Session<'_>| {
        let (ts_ms, reach) = (session.bought[0].ts_ms, settings.days.saturating_mul(DAY_MS));
        let at = |instant: i64| pool.partition_point(|(bought_ms, _)| *bought_ms < instant);
        &pool[at(ts_ms.saturating_sub(reach))..at(ts_ms.saturating_add(reach))]
    };
    let of = |place: usize| labels(dataset, &all[place], near(&all[place]), settings.negatives, &mut random);
    chosen.into_iter().flat_map(of).collect()
}

/// A user's purchases of items with text, by day.
fn sessions(dataset: &Dataset, user: usize, when: Range<i64>) -> Vec<Session<'_>> {
    let engagements = &dataset.users[user].engagements;
    let bought = engagements.iter().filter(|one| one.action == DEFAULT_TARGET && one.item.is_some());
    let later: Vec<&Behaviour> = bought.filter(|one| when.contains(&one.ts_ms)).collect();
    let days = later.chunk_by(|left, right| day_of(left.ts_ms) == day_of(right.ts_ms));
    days.map(|bought| Session { user, bought: bought.to_vec() }).collect()
}

fn known_before(dataset: &Dataset, session: &Session<'_>) -> usize {
    let user = &dataset.users[session.user];
    let cut = user.cut_before(session.bought[0].ts_ms);
    user.engagements_before(cut).iter().filter(|one| one.item.is_some()).count()
}

fn labels(
    dataset: &Dataset,
    session: &Session<'_>,
    pool: &[(i64, &str)],
    negatives: usize,
    random: &mut ChaCha8Rng,
) -> Vec<Label> {
    let user = &dataset.users[session.user];
    let ts_ms = session.bought[0].ts_ms;
    let mut shown: Vec<(&str, bool)> = Vec::new();
    // Bought twice on one day is bought.
    let mut own: HashSet<&str> = user.engagements.iter().map(|one| one.item_id.as_str()).collect();
    let mut bought: HashSet<&str> = HashSet::new();
    shown.extend(
        session.bought.iter().filter(|one| bought.insert(&one.item_id)).map(|one| (one.item_id.as_str(), true)),
    );
    for _ in 0..shown.len() * negatives {
        let drawn = (0..TRIES).filter_map(|_| choice(pool, random)).find(|(_, item)| !own.contains(item));
        let Some(&(_, item)) = drawn else { break };
        own.insert(item);
        shown.push((item, false));
    }
    shown.shuffle(random);
    let label = |(item, bought): (&str, bool)| Label {
        user_id: user.user_id.clone(),
        item_id: item.to_string(),
        ts_ms,
        request_id: format!("{}-{ts_ms}", user.user_id),
        clicked: bought,
        converted: bought,
    };
    shown.into_iter().map(label).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use taiji::event::{ActionTable, Event};

    const DAY: i64 = 86_400_000;
    const START: i64 = 17_000 * DAY;

    /// 40 users, a purchase a day for ten days, two on the last; item 0 is bought by everybody, on day 8.
    fn dataset() -> Dataset {
        let items =
            (0..200).map(|id| serde_json::from_value(json!({"id": id.to_string(), "title": "x", "categories": []})));
        let event = |user: usize, place: usize, item: usize, ts_ms: i64| -> Event {
            serde_json::from_value(
                json!({"event_id": format!("{user}-{place:02}"), "user_id": user.to_string(), "action": "purchase",
                "ts_ms": ts_ms, "item_id": item.to_string()}),
            )
            .unwrap()
        };
        let of = |user: usize| {
            (0..11).map(move |place: usize| {
                let day = place.min(9) as i64;
                let item = if place == 8 { 0 } else { 1 + (user * 7 + place * 13) % 199 };
                event(user, place, item, START + day * DAY + place as i64)
            })
        };
        Dataset::from_records(
            items.map(Result::unwrap).collect(),
            vec![],
            (0..40).flat_map(of),
            &ActionTable::default(),
        )
    }

    #[test]
    fn sessions_hold_what_was_bought_and_what_never_was() {
        let dataset = dataset();
        let settings = SampledLabelSettings { negatives: 4, ..SampledLabelSettings::default() };
        let labels = sampled_labels(&dataset, START + 8 * DAY, &settings);
        let sessions: HashSet<&str> = labels.iter().map(|label| label.request_id.as_str()).collect();
        // Days 8 and 9 of 40 users; five items for the one of day 8, ten for the two of day 9.
        assert_eq!((sessions.len(), labels.len()), (80, 40 * (5 + 10)));
        for label in &labels {
            let user = dataset.users.iter().find(|user| user.user_id == label.user_id).unwrap();
            assert!(label.ts_ms >= START + 8 * DAY);
            assert_eq!(label.clicked, user.engagements.iter().any(|one| one.item_id == label.item_id), "{label:?}");
            assert_eq!(label.clicked, label.converted);
        }
        assert_eq!(labels, sampled_labels(&dataset, START + 8 * DAY, &settings));
    }

    #[test]
    fn the_bought_one_stands_anywhere_and_is_as_popular_as_the_drawn() {
        let dataset = dataset();
        let settings = SampledLabelSettings { negatives: 1, ..SampledLabelSettings::default() };
        let labels = sampled_labels(&dataset, START + 9 * DAY, &settings);
        let first = labels.iter().enumerate().filter(|(place, label)| place % 4 == 0 && label.clicked).count();
        assert!((8..32).contains(&first), "{first} of 40 sessions begin with a bought one");
        // Item 0 was bought before the labels begin: it is in no pool.
        assert!(labels.iter().all(|label| label.item_id != "0"));
    }

    #[test]
    fn what_sells_later_only_is_beside_nothing_earlier() {
        let dataset = dataset();
        let settings = SampledLabelSettings { days: 1, ..SampledLabelSettings::default() };
        let labels = sampled_labels(&dataset, START + 5 * DAY, &settings);
        let days: HashSet<i64> =
            labels.iter().filter(|label| label.item_id == "0").map(|label| (label.ts_ms - START) / DAY).collect();
        // Bought on day 8 by everybody, who are then never shown it as a thing not bought.
        assert_eq!(days, HashSet::from([8]));
        let bought_on = |day: i64| -> HashSet<String> {
            let all = dataset.users.iter().flat_map(|user| &user.engagements);
            all.filter(|one| (one.ts_ms - START) / DAY == day).map(|one| one.item_id.clone()).collect()
        };
        for label in labels.iter().filter(|label| !label.clicked) {
            let day = (label.ts_ms - START) / DAY;
            let near = [day - 1, day, day + 1].into_iter().any(|day| bought_on(day).contains(&label.item_id));
            assert!(near, "{label:?}");
        }
    }

    #[test]
    fn few_sessions_are_drawn_from_many_and_newcomers_have_none() {
        let dataset = dataset();
        let settings = SampledLabelSettings { points: 17, ..SampledLabelSettings::default() };
        let count = |settings: &SampledLabelSettings, from: i64| {
            let labels = sampled_labels(&dataset, from, settings);
            labels.iter().map(|label| label.request_id.clone()).collect::<HashSet<_>>().len()
        };
        assert_eq!(count(&settings, START), 17);
        // Three earlier purchases lie before days 3 to 9.
        let all = SampledLabelSettings::default();
        assert_eq!(count(&all, START), 40 * 7);
        let until_ms = Some(START + 5 * DAY);
        assert_eq!(count(&SampledLabelSettings { until_ms, ..all.clone() }, START), 40 * 2);
        assert_eq!(count(&SampledLabelSettings { min_history: 100, ..all }, START), 0);
    }
}
