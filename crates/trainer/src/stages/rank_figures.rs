//! Figures of a ranker's test points, user by user, and what the world itself knows of them.
//!
//! In: test points, scored impressions. Out: metrics of a row of an experiment. Called by `rank`.

use crate::data::{Dataset, Label, find, read_events};
use crate::evaluate::{PerUser, Values};
use crate::rank::{Point, PointNdcg, RankError, Scored, sessions};
use crate::stage::StageError;
use crate::stats::{auc, auc_by_group};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use taiji::event::ActionTable;

/// Thirds of the users, by what they had done before the first point that they are tested on.
const SLICES: [(&str, &str); 3] =
    [("low", "test (least active third)"), ("mid", "test (middle third)"), ("high", "test (most active third)")];

/// Areas under the curve, one value a tested user (mean = the area): of clicks, of clicks that converted, and of clicks in each third.
pub(super) fn by_user(
    dataset: &Dataset,
    test: &[Point],
    scored: &[Scored],
) -> Result<BTreeMap<String, PerUser>, StageError> {
    let mut activity: BTreeMap<usize, usize> = BTreeMap::new();
    for point in test {
        let seen = dataset.users[point.user].engagements_before(point.cut).len();
        activity.entry(point.user).and_modify(|least| *least = seen.min(*least)).or_insert(seen);
    }
    let places: HashMap<usize, usize> = activity.keys().copied().zip(0..).collect();
    let clicks: Vec<(f64, bool, usize)> =
        scored.iter().map(|one| (one.click, one.clicked, places[&one.user])).collect();
    let conversions: Vec<(f64, bool, usize)> =
        scored.iter().map(|one| (one.click * one.conversion, one.converted, places[&one.user])).collect();
    let mut metrics = BTreeMap::new();
    let mut add = |name: String, scores: &[(f64, bool, usize)], users: usize, (part, label)| {
        let positive = scores.iter().filter(|one| one.1).count();
        let constant = || RankError::ConstantLabel { part, label, positive, count: scores.len() };
        let values = auc_by_group(scores, users).ok_or_else(constant)?;
        metrics.insert(name, PerUser::Values(Values::new(&values)));
        Ok::<(), RankError>(())
    };
    add("click_auc".into(), &clicks, places.len(), ("test", "clicked"))?;
    add("ctcvr_auc".into(), &conversions, places.len(), ("test", "converted"))?;
    for ((name, part), users) in SLICES.into_iter().zip(thirds(&activity)?) {
        let within: HashMap<usize, usize> = users.iter().map(|user| places[user]).zip(0..).collect();
        let shown: Vec<(f64, bool, usize)> =
            clicks.iter().filter_map(|&(score, clicked, place)| Some((score, clicked, *within.get(&place)?))).collect();
        add(format!("click_auc_{name}"), &shown, users.len(), (part, "clicked"))?;
    }
    Ok(metrics)
}

/// NDCG@10 of what was clicked, one value a user (mean over the user's points): among all items, and among those that were shown.
pub(super) fn lists_by_user(lists: &[PointNdcg]) -> BTreeMap<String, PerUser> {
    let mut users: BTreeMap<usize, Vec<&PointNdcg>> = BTreeMap::new();
    lists.iter().for_each(|list| users.entry(list.user).or_default().push(list));
    let mean = |of: &dyn Fn(&PointNdcg) -> f64| {
        let values = users.values().map(|lists| lists.iter().map(|list| of(list)).sum::<f64>() / lists.len() as f64);
        PerUser::Values(Values::new(&values.collect::<Vec<_>>()))
    };
    BTreeMap::from([
        ("ndcg_10_catalogue".to_owned(), mean(&|list| list.catalogue)),
        ("ndcg_10_shown".to_owned(), mean(&|list| list.shown)),
    ])
}

/// Users by activity, then number, in three parts; refuses to leave one empty.
fn thirds(activity: &BTreeMap<usize, usize>) -> Result<[Vec<usize>; 3], RankError> {
    let mut users: Vec<(usize, usize)> = activity.iter().map(|(user, seen)| (*seen, *user)).collect();
    users.sort_unstable();
    if users.len() < SLICES.len() {
        return Err(RankError::FewUsers { users: users.len(), slices: SLICES.len() });
    }
    // The first thirds are the larger ones where it does not come out even.
    let end = |part: usize| (users.len() * part).div_ceil(SLICES.len());
    Ok([0, 1, 2].map(|part| users[end(part)..end(part + 1)].iter().map(|(_, user)| *user).collect()))
}

/// Areas that the chances have with which a generated world drew the test impressions; null where the events do not say them.
pub(super) fn truth(data: &Path, labels: &[Label], dataset: &Dataset, test: &[Point]) -> Result<Value, StageError> {
    let Some(path) = find(data, "events.jsonl") else { return Ok(Value::Null) };
    let mut chances: HashMap<(String, String, i64), (f64, f64)> = HashMap::new();
    for event in read_events(&path, ActionTable::default())? {
        let event = event?;
        let chance = |name: &str| event.context.get(name).and_then(Value::as_f64);
        if let (Some(click), Some(buy), Some(item)) = (chance("ctr"), chance("cvr"), event.item_id.clone()) {
            chances.insert((event.user_id.clone(), item, event.ts_ms), (click, buy));
        }
    }
    let tested: HashSet<(&str, i64)> =
        test.iter().map(|point| (dataset.users[point.user].user_id.as_str(), point.cut.before_ms)).collect();
    let is_tested = |shown: &Vec<&Label>| {
        shown.first().is_some_and(|first| tested.contains(&(first.user_id.as_str(), first.ts_ms)))
    };
    let (mut clicks, mut conversions) = (Vec::new(), Vec::new());
    for label in sessions(labels).into_values().filter(is_tested).flatten() {
        let key = (label.user_id.clone(), label.item_id.clone(), label.ts_ms);
        let Some((click, buy)) = chances.get(&key) else { return Ok(Value::Null) };
        clicks.push((*click, label.clicked));
        conversions.push((click * buy, label.converted));
    }
    Ok(json!({ "click_auc": auc(clicks), "ctcvr_auc": auc(conversions) }))
}
