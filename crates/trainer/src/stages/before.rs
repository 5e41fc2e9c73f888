//! `before`: what a log holds before the day on which a share of it has passed; later stages judge on what follows (`sampled-labels`).

use super::settings::{Context, KeyError, check_share, read, value};
use super::source::{SOURCE_FILE, Source};
use crate::data::{UserRecord, find, read_events, read_users, split_day, write_jsonl};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, copy_file, write_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use taiji::event::{ActionTable, Event};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Of the events.
    share: f64,
}

struct Before {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    check_share("share", settings.share)?;
    let value = value(&settings)?;
    Ok(Arc::new(Before { settings, value }))
}

impl Stage for Before {
    fn kind(&self) -> &'static str {
        "before"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Data)]
    }

    fn output(&self) -> Artefact {
        Artefact::Data
    }

    /// The catalogue stays whole (titles of what is sold later are known, that it sells is not), and profiles that have no time with it; what a generated world knows of a user's end is left out.
    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let data = inputs.one(Artefact::Data)?;
        let until_ms = split_day(data, self.settings.share)?;
        let path = find(data, "events.jsonl").unwrap_or_else(|| data.join("events.jsonl"));
        let mut all = 0;
        let counted = read_events(&path, ActionTable::default())?.inspect(|_| all += 1);
        let is_before = |event: &Result<Event, _>| event.as_ref().map_or(true, |event| event.ts_ms < until_ms);
        let events: Vec<Event> = counted.filter(is_before).collect::<Result<_, _>>()?;
        if events.is_empty() {
            let message = format!("{}: none of {all} events is before {until_ms} ms, give more", self.settings.share);
            return Err(StageError::Setting { key: "share", message });
        }
        inputs.progress().say(&format!("{} of {all} events are before {until_ms} ms", events.len()));
        write_jsonl(&folder.join("events.jsonl"), events)?;
        if let Some(items) = find(data, "items.jsonl") {
            copy_file(&items, &folder.join(items.file_name().unwrap_or_default()))?;
        }
        if let Some(users) = find(data, "users.jsonl") {
            let users = read_users(&users)?.into_iter().map(|user| UserRecord { latent: None, ..user });
            write_jsonl(&folder.join("users.jsonl"), users)?;
        }
        write_json(&folder.join(SOURCE_FILE), &Source::Files)
    }
}
