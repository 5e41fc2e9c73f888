//! Events, items and users in memory, ordered as the service orders them.
//!
//! In: the readers' records. Out: [`Dataset`] with each user's engagements, impressions, queries and profile, and the
//! [`PromptInput`] of a user at a given point of the history. Callers: `examples`, `index`, `evaluate`.

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

/// One user's data.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UserRow {
    /// As in the files.
    pub user_id: String,
    /// Sorted by name; profile events win over `users.jsonl`.
    pub profile: Vec<(String, String)>,
    /// Oldest first.
    pub engagements: Vec<Behaviour>,
    /// Oldest first.
    pub impressions: Vec<Behaviour>,
    /// (ts_ms, query), oldest first.
    pub queries: Vec<(i64, String)>,
    /// Only in generated worlds.
    pub latent: Option<Latent>,
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

    /// What the service would put into the prompt if the user's first `cut` engagements had happened and nothing later.
    ///
    /// `limit` bounds the engagements; those without text are skipped. Queries up to the instant `now_ms` count.
    pub fn prompt_input(&self, user: &UserRow, cut: usize, now_ms: i64, limit: usize) -> PromptInput {
        let seen = &user.engagements[..cut.min(user.engagements.len())];
        let engagements = seen.iter().rev().map(|behaviour| Engagement {
            item: behaviour.item.and_then(|place| self.items.get(place)),
            action: &behaviour.action,
            domain: behaviour.domain.unwrap_or_default(),
        });
        let known = engagements.filter(|engagement| engagement.item.is_some()).take(limit);
        let queries = user.queries.iter().rev().filter(|(ts_ms, _)| *ts_ms <= now_ms).take(QUERY_CAP);
        prompt_input(user.profile.iter().cloned(), known, queries.map(|(_, query)| query.as_str()))
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
    /// Attribute → (ts of its newest event, value).
    profile: BTreeMap<String, (i64, String)>,
}

impl<'a> Builder<'a> {
    fn new(items: Vec<Item>, records: Vec<UserRecord>, actions: &'a ActionTable) -> Self {
        let item_index = items.iter().enumerate().map(|(index, item)| (item.id.clone(), index)).collect();
        let mut users: BTreeMap<String, Gathered> = BTreeMap::new();
        for record in records {
            let gathered = users.entry(record.user_id).or_default();
            gathered.row.latent = record.latent;
            gathered.profile.extend(record.profile.into_iter().map(|(name, value)| (name, (i64::MIN, value))));
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
                    let newest = gathered.profile.get(&name).is_none_or(|(ts_ms, _)| *ts_ms <= event.ts_ms);
                    if newest {
                        gathered.profile.insert(name, (event.ts_ms, plain(&value)));
                    }
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
            row.profile = gathered.profile.into_iter().map(|(name, (_, value))| (name, value)).collect();
            row.engagements.sort_by(order);
            row.impressions.sort_by(order);
            row.queries.sort();
            self.dataset.users.push(row);
        }
        self.dataset
    }
}
