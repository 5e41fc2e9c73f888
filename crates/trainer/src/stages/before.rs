//! `before`: what a log holds before an instant, or before the day on which a share of it has passed; later stages judge on what follows
//! (`sampled-labels`, or labels that a log has).

use super::settings::{Context, KeyError, check_share, read, value};
use super::source::{SOURCE_FILE, Source, copy_found};
use crate::data::{UserRecord, events_with_split, find, read_users, write_jsonl};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Of the events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
    /// In its place: what is earlier than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until_ms: Option<i64>,
}

struct Before {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    match (settings.share, settings.until_ms) {
        (Some(share), None) => check_share("share", share)?,
        (None, Some(_)) => {}
        _ => return Err(KeyError::new("share", "give it, or until_ms; not both")),
    }
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
        let (mut events, split_ms) = events_with_split(data, self.settings.share.unwrap_or(1.0))?;
        let until_ms = self.settings.until_ms.unwrap_or(split_ms);
        let all = events.len();
        events.retain(|event| event.ts_ms < until_ms);
        if events.is_empty() {
            let key = if self.settings.share.is_some() { "share" } else { "until_ms" };
            let message = format!("none of {all} events is before {until_ms} ms, give more");
            return Err(StageError::Setting { key, message });
        }
        inputs.progress().say(&format!("{} of {all} events are before {until_ms} ms", events.len()));
        write_jsonl(&folder.join("events.jsonl"), events)?;
        copy_found(data, &["items.jsonl"], folder)?;
        if let Some(users) = find(data, "users.jsonl") {
            let users = read_users(&users)?.into_iter().map(|user| UserRecord { latent: None, ..user });
            write_jsonl(&folder.join("users.jsonl"), users)?;
        }
        write_json(&folder.join(SOURCE_FILE), &Source::Files)
    }
}
