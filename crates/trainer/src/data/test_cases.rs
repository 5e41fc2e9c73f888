//! [`Dataset`] → what a model is judged by: each user's last target, as published leave-one-out protocols have it, over *all*
//! users. Where an item has no text the prompt cannot show it and the answer cannot name it; such users are kept and counted.
//!
//! Callers: `judge`, `evaluate`.

use super::targets::{Split, targets_of};
use super::{Cut, Dataset};
use serde::{Deserialize, Serialize};
use taiji::event::Item;
use taiji::prompt::PromptInput;

/// One user's last target and what lies before it.
#[derive(Debug, Clone, PartialEq)]
pub struct TestCase {
    /// Whose.
    pub user_id: String,
    /// Index into the dataset's users.
    pub user: usize,
    /// Just before the target.
    pub cut: Cut,
    /// Exactly what serving would have rendered; without engagements where none before the cut has text.
    pub prompt: PromptInput,
    /// What was bought.
    pub target_id: String,
    /// Its text, where it has one.
    pub target: Option<Item>,
}

/// How many users are judged and what of them the model cannot see.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Protocol {
    /// Users of the data.
    pub users: usize,
    /// Of them without a target, or with nothing before it: nothing to judge.
    pub users_without_target: usize,
    /// Users judged; every n-th of the others where fewer were asked for.
    pub judged: usize,
    /// Of the judged, targets without text: counted as misses of title, category and list, for no answer can name them.
    pub targets_without_text: usize,
    /// Of the judged, histories in which nothing has text.
    pub histories_without_text: usize,
    /// Engagements of the judged before their targets.
    pub engagements: usize,
    /// Of them without text.
    pub engagements_without_text: usize,
    /// What a prompt shows in their place.
    pub without_text_the_prompt_shows: String,
}

/// The judged users.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TestSet {
    /// By user id.
    pub cases: Vec<TestCase>,
    /// What was counted.
    pub protocol: Protocol,
}

/// The last target of every user who has one and something before it; at most `max_users`, evenly over the users.
/// `max_engagements` bounds the prompt's lines; the prompt schema may cut further.
pub fn test_cases(dataset: &Dataset, action: &str, max_engagements: usize, max_users: usize) -> TestSet {
    let mut all = Vec::new();
    for (place, user) in dataset.users.iter().enumerate() {
        let targets = targets_of(dataset, user, action);
        let last = Split::Test.of(&targets).iter().find(|target| target.cut.engagements > 0);
        all.extend(last.cloned().map(|target| (place, target)));
    }
    let users_without_target = dataset.users.len() - all.len();
    let step = all.len().div_ceil(max_users.max(1)).max(1);
    let case = |(place, target): (usize, super::targets::Target)| TestCase {
        user_id: dataset.users[place].user_id.clone(),
        user: place,
        cut: target.cut,
        prompt: dataset.prompt_input(&dataset.users[place], target.cut, max_engagements),
        target: target.item.and_then(|item| dataset.items.get(item)).cloned(),
        target_id: target.item_id,
    };
    let cases: Vec<TestCase> = all.into_iter().step_by(step).map(case).collect();
    let seen = || cases.iter().flat_map(|case| dataset.users[case.user].engagements_before(case.cut));
    let protocol = Protocol {
        users: dataset.users.len(),
        users_without_target,
        judged: cases.len(),
        targets_without_text: cases.iter().filter(|case| case.target.is_none()).count(),
        histories_without_text: cases.iter().filter(|case| case.prompt.engagements.is_empty()).count(),
        engagements: seen().count(),
        engagements_without_text: seen().filter(|behaviour| behaviour.item.is_none()).count(),
        without_text_the_prompt_shows:
            "nothing: a line is left out, and a history without any text leaves profile and \
            searches alone"
                .to_string(),
    };
    TestSet { cases, protocol }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;
    use taiji::event::{ActionTable, Event};

    #[test]
    fn users_whose_items_have_no_text_are_judged_and_counted() {
        let item = |id: &str| serde_json::from_value(json!({"id": id, "title": format!("thing {id}")})).unwrap();
        let bought = |user: &str, items: &[&str]| -> Vec<Event> {
            let event = |(place, item): (usize, &&str)| {
                serde_json::from_value(json!({"event_id": format!("{user}{place}"), "user_id": user, "item_id": item,
                    "action": "purchase", "ts_ms": 1_500_000_000_000i64 + place as i64}))
                .unwrap()
            };
            items.iter().enumerate().map(event).collect()
        };
        let events = [
            bought("a", &["1", "2", "1"]),      // all with text
            bought("b", &["1", "x", "2", "y"]), // a target without text
            bought("c", &["x", "y", "1"]),      // a history without text
            bought("d", &["1"]),                // nothing before the target
        ]
        .concat();
        let data = Dataset::from_records(vec![item("1"), item("2")], vec![], events, &ActionTable::default());
        let found = test_cases(&data, "purchase", 50, usize::MAX);
        let shown: Vec<(&str, &str, usize, bool)> = found
            .cases
            .iter()
            .map(|case| {
                let lines = case.prompt.engagements.len();
                (case.user_id.as_str(), case.target_id.as_str(), lines, case.target.is_some())
            })
            .collect();
        assert_eq!(shown, [("a", "1", 2, true), ("b", "y", 2, false), ("c", "1", 0, true)]);
        let protocol = &found.protocol;
        assert_eq!((protocol.users, protocol.users_without_target, protocol.judged), (4, 1, 3));
        assert_eq!((protocol.targets_without_text, protocol.histories_without_text), (1, 1));
        assert_eq!((protocol.engagements, protocol.engagements_without_text), (7, 3));
        assert_eq!(test_cases(&data, "purchase", 50, 2).cases.len(), 2);
    }
}
