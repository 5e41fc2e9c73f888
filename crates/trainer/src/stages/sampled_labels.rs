//! `sampled-labels`: a log's purchases from a day on, each beside drawn items, as the impressions that a ranker is taught and judged on.

use super::settings::{Context, KeyError, check_share, read, value};
use super::source::{SOURCE_FILE, Source, copy_found, dataset};
use crate::data::{SampledLabelSettings, events_with_split, sampled_labels, write_jsonl};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

struct SampledLabels {
    settings: SampledLabelSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: SampledLabelSettings = read(table)?;
    check_share("share", settings.share)?;
    let counts =
        [("negatives", settings.negatives as i64), ("points", settings.points as i64), ("days", settings.days)];
    for (key, count) in counts {
        if count <= 0 {
            return Err(KeyError::new(key, "must be positive"));
        }
    }
    let value = value(&settings)?;
    Ok(Arc::new(SampledLabels { settings, value }))
}

impl Stage for SampledLabels {
    fn kind(&self) -> &'static str {
        "sampled-labels"
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

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let data = inputs.one(Artefact::Data)?;
        let (dataset, _) = dataset(inputs)?;
        let (_, from_ms) = events_with_split(data, self.settings.share)?;
        if let Some(until_ms) = self.settings.until_ms.filter(|until_ms| *until_ms <= from_ms) {
            let message =
                format!("is {until_ms}, and labels begin at {from_ms}: give a later instant, or a smaller share");
            return Err(StageError::Setting { key: "until_ms", message });
        }
        let labels = sampled_labels(&dataset, from_ms, &self.settings);
        if labels.is_empty() {
            let least = self.settings.min_history;
            let message = format!("leaves no purchase from {from_ms} ms on of anybody who did {least} things before");
            return Err(StageError::Setting { key: "share", message });
        }
        let sessions: HashSet<&str> = labels.iter().map(|label| label.request_id.as_str()).collect();
        let bought = labels.iter().filter(|label| label.clicked).count();
        inputs.progress().say(&format!(
            "{} sessions from {from_ms} ms on, {bought} bought items and {} drawn ones",
            sessions.len(),
            labels.len() - bought
        ));
        write_jsonl(&folder.join("labels.jsonl"), &labels)?;
        copy_found(data, &["events.jsonl", "items.jsonl", "users.jsonl"], folder)?;
        write_json(&folder.join(SOURCE_FILE), &Source::Files)
    }
}
