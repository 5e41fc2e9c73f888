//! Events, items and users in memory, ordered as the service orders them.
//!
//! In: the readers' records. Out: [`Dataset`] with each user's engagements, impressions, queries and profile, and the
//! [`PromptInput`] of a user at a given point of the history ([`Cut`]). Callers: `targets`, `examples`, `index`, `evaluate`.

use super::read::find;
use super::{DataError, Latent, UserRecord, read_events, read_items, read_users};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use taiji::answer::{Engagement, plain, prompt_input};
use taiji::event::{ActionClass, ActionTable, Event, Item};
use taiji::prompt::PromptInput;
use taiji::store::QUERY_CAP;

/// One engagement or impression.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    /// Order within a user is (ts_ms, event_id).
    pub ts_ms: i64,
    /// As in the file.
    pub event_id: String,
    /// As in the file.
    pub item_id: String,
    /// Index into [`Dataset::items`]; `None` for an item without text.
    pub item: Option<usize>,
    /// Configured action name.
    pub action: String,
    /// Name of the domain, where known.
    pub domain: Option<&'static str>,
    /// What the action carried, such as a rating.
    pub value: Option<f64>,
}

/// A value of an attribute, and since when it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileValue {
    /// Of the attribute.
    pub name: String,
    /// Time of the profile event; `i64::MIN` for what `users.jsonl` says, which has no time.
    pub since_ms: i64,
    /// As plain text.
    pub value: String,
}

/// A point of a user's history: only what lies before it may be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Engagements before it.
    pub engagements: usize,
    /// Searches and profile values count that are older than this instant. Strictly: what has the time of the engagement that
    /// is cut off may have followed it.
    pub before_ms: i64,
}

impl Cut {
    /// Behind everything.
    pub const END: Cut = Cut { engagements: usize::MAX, before_ms: i64::MAX };
}

/// One user's data.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UserRow {
    /// As in the files.
    pub user_id: String,
    /// Every value there was, sorted by name, then oldest first.
    pub profile: Vec<ProfileValue>,
    /// Oldest first.
    pub engagements: Vec<Behaviour>,
    /// Oldest first.
    pub impressions: Vec<Behaviour>,
    /// (ts_ms, query), oldest first.
    pub queries: Vec<(i64, String)>,
    /// Only in generated worlds.
    pub latent: Option<Latent>,
}

impl UserRow {
    /// The newest value of each attribute before an instant, sorted by name; profile events win over `users.jsonl`.
    pub fn profile_before(&self, before_ms: i64) -> Vec<(String, String)> {
        let mut newest: Vec<(String, String)> = Vec::new();
        for known in self.profile.iter().filter(|known| known.since_ms < before_ms) {
            newest.pop_if(|(name, _)| *name == known.name);
            newest.push((known.name.clone(), known.value.clone()));
        }
        newest
    }

    /// Strictly before an instant: what has its time may have come of what is looked at.
    pub fn cut_before(&self, before_ms: i64) -> Cut {
        Cut { engagements: self.engagements.partition_point(|behaviour| behaviour.ts_ms < before_ms), before_ms }
    }

    /// The engagements before a cut, oldest first.
    pub fn engagements_before(&self, cut: Cut) -> &[Behaviour] {
        &self.engagements[..cut.engagements.min(self.engagements.len())]
    }
}

/// Everything the trainer knows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Dataset {
    /// In the order of the file.
    pub items: Vec<Item>,
    /// Item id → index into `items`.
    pub item_index: HashMap<String, usize>,
    /// Sorted by user id.
    pub users: Vec<UserRow>,
}

impl Dataset {
    /// Reads a folder; `users.jsonl` may be absent.
    pub fn load(folder: &Path, actions: &ActionTable) -> Result<Self, DataError> {
        let require = |name: &str| {
            find(folder, name)
                .ok_or_else(|| DataError::Missing { folder: folder.display().to_string(), name: name.to_string() })
        };
        let items = read_items(&require("items.jsonl")?)?;
        let events = read_events(&require("events.jsonl")?, actions.clone())?;
        let users = match find(folder, "users.jsonl") {
            Some(path) => read_users(&path)?,
            None => Vec::new(),
        };
        let mut builder = Builder::new(items, users, actions);
        for event in events {
            builder.add(event?);
        }
        Ok(builder.finish())
    }

    /// The same from records in memory.
    pub fn from_records(
        items: Vec<Item>,
        users: Vec<UserRecord>,
        events: impl IntoIterator<Item = Event>,
        actions: &ActionTable,
    ) -> Self {
        let mut builder = Builder::new(items, users, actions);
        for event in events {
            builder.add(event);
        }
        builder.finish()
    }

    /// What the service would have put into the prompt at a point of the user's history.
    ///
    /// `limit` bounds the engagements; those without text are skipped.
    pub fn prompt_input(&self, user: &UserRow, cut: Cut, limit: usize) -> PromptInput {
        let engagements = user.engagements_before(cut).iter().rev().map(|behaviour| Engagement {
            item: behaviour.item.and_then(|place| self.items.get(place)),
            action: &behaviour.action,
            domain: behaviour.domain.unwrap_or_default(),
        });
        let known = engagements.filter(|engagement| engagement.item.is_some()).take(limit);
        let queries = user.queries.iter().rev().filter(|(ts_ms, _)| *ts_ms < cut.before_ms).take(QUERY_CAP);
        prompt_input(user.profile_before(cut.before_ms), known, queries.map(|(_, query)| query.as_str()))
    }
}

/// Gathers events by user; sorts once at the end.
struct Builder<'a> {
    dataset: Dataset,
    actions: &'a ActionTable,
    users: BTreeMap<String, Gathered>,
}

#[derive(Default)]
struct Gathered {
    row: UserRow,
    /// Attribute → (ts, event id) → value: the service's order, in which the later of two at one instant wins.
    profile: BTreeMap<String, BTreeMap<(i64, String), String>>,
}

impl<'a> Builder<'a> {
    fn new(items: Vec<Item>, records: Vec<UserRecord>, actions: &'a ActionTable) -> Self {
        let item_index = items.iter().enumerate().map(|(index, item)| (item.id.clone(), index)).collect();
        let mut users: BTreeMap<String, Gathered> = BTreeMap::new();
        for record in records {
            let gathered = users.entry(record.user_id).or_default();
            gathered.row.latent = record.latent;
            for (name, value) in record.profile {
                gathered.profile.entry(name).or_default().insert((i64::MIN, String::new()), value);
            }
        }
        Builder { dataset: Dataset { items, item_index, users: Vec::new() }, actions, users }
    }

    fn add(&mut self, event: Event) {
        let gathered = self.users.entry(event.user_id).or_default();
        match event.action.as_str() {
            "search" => {
                if let Some(query) = event.context.get("query").and_then(Value::as_str) {
                    gathered.row.queries.push((event.ts_ms, query.to_string()));
                }
            }
            "profile" => {
                for (name, value) in event.context {
                    let values = gathered.profile.entry(name).or_default();
                    values.insert((event.ts_ms, event.event_id.clone()), plain(&value));
                }
            }
            action => {
                let Some(item_id) = event.item_id else { return };
                let behaviour = Behaviour {
                    ts_ms: event.ts_ms,
                    event_id: event.event_id,
                    item: self.dataset.item_index.get(&item_id).copied(),
                    item_id,
                    action: action.to_string(),
                    domain: event.domain.map(|domain| domain.as_str()),
                    value: event.value,
                };
                match self.actions.get(action).map(|rule| rule.class) {
                    Some(ActionClass::Engagement) => gathered.row.engagements.push(behaviour),
                    Some(ActionClass::Impression) => gathered.row.impressions.push(behaviour),
                    _ => {}
                }
            }
        }
    }

    fn finish(mut self) -> Dataset {
        let order =
            |left: &Behaviour, right: &Behaviour| (left.ts_ms, &left.event_id).cmp(&(right.ts_ms, &right.event_id));
        for (user_id, gathered) in self.users {
            let mut row = gathered.row;
            row.user_id = user_id;
            let values = gathered.profile.into_iter().flat_map(|(name, values)| {
                values.into_iter().map(move |((since_ms, _), value)| ProfileValue {
                    name: name.clone(),
                    since_ms,
                    value,
                })
            });
            row.profile = values.collect();
            row.engagements.sort_by(order);
            row.impressions.sort_by(order);
            row.queries.sort();
            self.dataset.users.push(row);
        }
        self.dataset
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn event(id: &str, action: &str, ts_ms: i64, rest: Value) -> Event {
        let mut event =
            json!({"event_id": id, "user_id": "u", "action": action, "ts_ms": 1_500_000_000_000i64 + ts_ms});
        event.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn a_prompt_has_the_profile_and_the_searches_of_its_moment() {
        let item = serde_json::from_value(json!({"id": "1", "title": "thing", "categories": []})).unwrap();
        let record = UserRecord {
            user_id: "u".into(),
            profile: BTreeMap::from([("city".into(), "Bern".into()), ("stage".into(), "student".into())]),
            latent: None,
        };
        let said =
            |id: &str, ts_ms: i64, stage: &str| event(id, "profile", ts_ms, json!({"context": {"stage": stage}}));
        let searched =
            |id: &str, ts_ms: i64| event(id, "search", ts_ms, json!({"context": {"query": format!("q{id}")}}));
        let events = [
            said("b", 10, "parent"),
            said("a", 10, "professional"), // as old, but an earlier id
            event("c", "purchase", 20, json!({"item_id": "1"})),
            searched("d", 19),
            searched("e", 20),
            said("f", 20, "retired"),
            searched("g", 21),
        ];
        let data = Dataset::from_records(vec![item], vec![record], events, &ActionTable::default());
        let user = &data.users[0];
        let at = |ts_ms: i64| data.prompt_input(user, Cut { engagements: 0, before_ms: 1_500_000_000_000 + ts_ms }, 50);
        let stage = |input: &PromptInput| input.profile.clone();
        let expected = |stage: &str| vec![("city".into(), "Bern".into()), ("stage".to_string(), stage.to_string())];
        assert_eq!(stage(&at(5)), expected("student"));
        assert_eq!((stage(&at(20)), at(20).queries), (expected("parent"), vec!["qd".to_string()]));
        assert_eq!((stage(&at(21)), at(21).queries), (expected("retired"), vec!["qe".to_string(), "qd".into()]));
        let end = data.prompt_input(user, Cut::END, 50);
        assert_eq!((stage(&end), end.queries.len(), end.engagements.len()), (expected("retired"), 3, 1));
    }
}
