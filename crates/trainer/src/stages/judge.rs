//! `judge`: figures of models and index on held-out users.

use super::served::open;
use super::settings::{Context, KeyError, read, value};
use super::source::{Source, dataset};
use crate::judge::{items_of, judge_held_out};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use taiji::prompt::PromptMode;

/// The figures.
pub const JUDGED_FILE: &str = "judged.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Most users judged; by default all of the data.
    users: Option<usize>,
    /// Of what is drawn beside the users.
    seed: u64,
    /// How the model is asked; by default the first mode of its prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<PromptMode>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { users: None, seed: 4242, mode: None }
    }
}

struct Judge {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    let value = value(&settings)?;
    Ok(Arc::new(Judge { settings, value }))
}

impl Stage for Judge {
    fn kind(&self) -> &'static str {
        "judge"
    }

    fn version(&self) -> u32 {
        3
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    /// The data are the held-out ones: a world of another seed, or the files whose ends were kept from training.
    fn inputs(&self) -> Vec<Input> {
        vec![
            Input::one(Artefact::Data),
            Input::one(Artefact::Examples),
            Input::one(Artefact::Graphs),
            Input::one(Artefact::Encoder),
            Input::one(Artefact::Codebook),
            Input::one(Artefact::Generation),
        ]
    }

    fn output(&self) -> Artefact {
        Artefact::Judgement
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let generation = inputs.one(Artefact::Generation)?;
        let (dataset, source) = dataset(inputs)?;
        let mut models = open(inputs, &items_of(generation)?, threads)?;
        if let Some(mode) = self.settings.mode {
            models.ask(mode)?;
        }
        let words = match source {
            Source::Synth { seed } => format!("generated users of seed {seed}, never seen in training"),
            Source::Files => "last item of each user held out".to_string(),
        };
        let users = self.settings.users.unwrap_or(usize::MAX);
        let judged = judge_held_out(&dataset, users, &models, generation, self.settings.seed, words)?;
        write_json(&folder.join(JUDGED_FILE), &judged)
    }
}
