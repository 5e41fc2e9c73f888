//! `roll-outs`: many answers of a language model to the prompt of each held-out user, drawn at a temperature: what an alignment sees.
//!
//! In: data, the form of the prompts, graphs. Out: `roll_outs.jsonl`. Same seed, same texts, whatever else runs.

use super::settings::{Context, KeyError, read, value};
use super::source::dataset;
use crate::data::{DEFAULT_TARGET, TestCase, test_cases, write_jsonl};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use taiji::llm::{GenerateRequest, LlmEngine, LlmOptions, OnnxLlm, Sampling};
use taiji::prompt::{PromptSchema, render};

/// Its name.
pub const ROLL_OUTS_FILE: &str = "roll_outs.jsonl";
/// Rows of the engine's pool.
const ROWS: usize = 64;
/// Users whose roll-outs are asked for together.
const USERS: usize = 16;

/// One user's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollOuts {
    /// As in the data.
    pub user_id: String,
    /// As written, in the order of their draws.
    pub texts: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Users, at most; every n-th where there are more.
    users: usize,
    /// Answers of each.
    count: usize,
    /// At which they are drawn.
    temperature: f32,
    /// Decides the draws.
    seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { users: 500, count: 50, temperature: 1.0, seed: 7 }
    }
}

struct Roll {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    for (key, count) in [("users", settings.users), ("count", settings.count)] {
        if count == 0 {
            return Err(KeyError::new(key, "must be positive"));
        }
    }
    if !(settings.temperature > 0.0 && settings.temperature.is_finite()) {
        return Err(KeyError::new("temperature", format!("must be positive, got {}", settings.temperature)));
    }
    let value = value(&settings)?;
    Ok(Arc::new(Roll { settings, value }))
}

impl Stage for Roll {
    fn kind(&self) -> &'static str {
        "roll-outs"
    }

    fn version(&self) -> u32 {
        2
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Data), Input::one(Artefact::Examples), Input::one(Artefact::Graphs)]
    }

    fn output(&self) -> Artefact {
        Artefact::RollOuts
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let (dataset, _) = dataset(inputs)?;
        let schema = PromptSchema::load(&inputs.one(Artefact::Examples)?.join("prompt.toml"))?;
        let cases = test_cases(&dataset, DEFAULT_TARGET, schema.max_engagements, self.settings.users).cases;
        let options = LlmOptions {
            threads: threads.unwrap_or(0),
            max_rows: ROWS,
            max_len: schema.max_prompt_tokens + schema.max_new_tokens,
            queue_limit: USERS * self.settings.count,
            queue_tokens: usize::MAX,
            ..LlmOptions::default()
        };
        let llm = OnnxLlm::load(inputs.one(Artefact::Graphs)?, options)?;
        let mut bar = inputs.progress().bar("roll-outs", cases.len() as u64);
        let mut all = Vec::with_capacity(cases.len());
        for (part, cases) in cases.chunks(USERS).enumerate() {
            let requests: Vec<GenerateRequest> = cases
                .iter()
                .enumerate()
                .flat_map(|(place, case)| self.requests(&llm, &schema, case, (part * USERS + place) as u64))
                .collect();
            let written = llm.generate_all(&requests).into_iter().map(|generation| Ok(generation?.text));
            let written: Vec<String> = written.collect::<Result<_, StageError>>()?;
            let of = |(case, texts): (&TestCase, &[String])| RollOuts {
                user_id: case.user_id.clone(),
                texts: texts.to_vec(),
            };
            all.extend(cases.iter().zip(written.chunks(self.settings.count)).map(of));
            bar.add(cases.len() as u64);
        }
        write_jsonl(&folder.join(ROLL_OUTS_FILE), &all)?;
        Ok(())
    }
}

impl Roll {
    /// All of one user, each with a seed of its own.
    fn requests(&self, llm: &OnnxLlm, schema: &PromptSchema, case: &TestCase, user: u64) -> Vec<GenerateRequest> {
        let count = |text: &str| llm.count_tokens(text);
        let prompt = render(schema, &case.prompt, schema.mode(), &count).text;
        let request = |number: u64| {
            let seed = self.settings.seed ^ (user << 20 | number);
            let sampling = Sampling { temperature: self.settings.temperature, seed, ..Sampling::GREEDY };
            GenerateRequest { sampling: Some(sampling), ..GenerateRequest::new(prompt.clone(), schema.max_new_tokens) }
        };
        (0..self.settings.count as u64).map(request).collect()
    }
}
