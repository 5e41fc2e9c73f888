//! `simulator-judge`: whether a simulator puts first what the world's own truth puts first, among the items that a language model names.
//!
//! In: a generated world's held-out users, a language model, a simulator of these users. Out: `judged.json`. The roll-outs are those that the
//! alignment will see: so many answers of a prompt, drawn at a temperature.

use super::judge::JUDGED_FILE;
use super::settings::{Context, KeyError, read, value};
use super::source::dataset;
use super::synth::world_of;
use crate::data::{DEFAULT_TARGET, TestCase, test_cases};
use crate::simulate::{CategoryGrounder, Choice, Simulator, Telemetry, figures};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use crate::synth::World;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use taiji::llm::{GenerateRequest, LlmEngine, LlmOptions, OnnxLlm, Sampling};
use taiji::prompt::{PromptMode, PromptSchema, parse, render};

/// Rows of the engine's pool.
const ROWS: usize = 64;
/// Users whose roll-outs are asked for together.
const USERS: usize = 16;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Users judged, at most.
    users: usize,
    /// Roll-outs a user.
    roll_outs: usize,
    /// At which they are drawn.
    temperature: f32,
    /// Decides the draws.
    seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { users: 500, roll_outs: 50, temperature: 1.0, seed: 7 }
    }
}

struct SimulatorJudge {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    for (key, count) in [("users", settings.users), ("roll_outs", settings.roll_outs)] {
        if count == 0 {
            return Err(KeyError::new(key, "must be positive"));
        }
    }
    if !(settings.temperature > 0.0 && settings.temperature.is_finite()) {
        return Err(KeyError::new("temperature", format!("must be positive, got {}", settings.temperature)));
    }
    let value = value(&settings)?;
    Ok(Arc::new(SimulatorJudge { settings, value }))
}

impl Stage for SimulatorJudge {
    fn kind(&self) -> &'static str {
        "simulator-judge"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![
            Input::one(Artefact::Data),
            Input::one(Artefact::Examples),
            Input::one(Artefact::Graphs),
            Input::one(Artefact::Simulator),
        ]
    }

    fn output(&self) -> Artefact {
        Artefact::Judgement
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let (dataset, _) = dataset(inputs)?;
        let world = world_of(inputs.one(Artefact::Data)?)?;
        let schema = PromptSchema::load(&inputs.one(Artefact::Examples)?.join("prompt.toml"))?;
        let simulator = Simulator::load(inputs.one(Artefact::Simulator)?, &dataset.items)?;
        let mut cases = test_cases(&dataset, DEFAULT_TARGET, schema.max_engagements, usize::MAX).cases;
        cases.retain(|case| simulator.row(&case.user_id).is_some());
        cases.truncate(self.settings.users);
        let texts = self.roll_outs(inputs, &schema, &cases, threads)?;
        let truth = Truth::of(&world);
        let grounder = CategoryGrounder::new(&dataset.items);
        let mut telemetry = Telemetry::default();
        let choices: Vec<Choice> = cases
            .iter()
            .zip(texts.chunks(self.settings.roll_outs))
            .map(|(case, texts)| choice(case, texts, &grounder, &simulator, &truth, &mut telemetry))
            .collect();
        let figures = figures(&choices, telemetry)?;
        inputs.progress().say(&format!(
            "true chance: chosen {:.5}, best {:.5}, drawn {:.5}; chosen / best {:.3} ({:.3} to {:.3}); Spearman {:.3}; table hit {:.3}, \
             ungrounded {:.3}",
            figures.chosen,
            figures.best,
            figures.drawn,
            figures.share.estimate,
            figures.share.low,
            figures.share.high,
            figures.spearman.estimate,
            figures.hit_rate,
            figures.ungrounded_share
        ));
        write_json(&folder.join(JUDGED_FILE), &figures)
    }
}

impl SimulatorJudge {
    /// What the model writes, `roll_outs` texts a user.
    fn roll_outs(
        &self,
        inputs: &Inputs,
        schema: &PromptSchema,
        cases: &[TestCase],
        threads: Option<usize>,
    ) -> Result<Vec<String>, StageError> {
        let options = LlmOptions {
            threads: threads.unwrap_or(0),
            max_rows: ROWS,
            max_len: schema.max_prompt_tokens + schema.max_new_tokens,
            queue_limit: USERS * self.settings.roll_outs,
            queue_tokens: usize::MAX,
            ..LlmOptions::default()
        };
        let llm = OnnxLlm::load(inputs.one(Artefact::Graphs)?, options)?;
        let count = |text: &str| llm.tokenize(text).map(|ids| ids.len()).unwrap_or(0);
        let mut texts = Vec::with_capacity(cases.len() * self.settings.roll_outs);
        for (part, cases) in cases.chunks(USERS).enumerate() {
            let mut requests = Vec::with_capacity(cases.len() * self.settings.roll_outs);
            for (place, case) in cases.iter().enumerate() {
                let prompt = render(schema, &case.prompt, PromptMode::Think, &count).text;
                let user = (part * USERS + place) as u64;
                requests.extend((0..self.settings.roll_outs as u64).map(|number| {
                    let seed = self.settings.seed ^ (user << 20 | number);
                    let sampling = Sampling { temperature: self.settings.temperature, seed, ..Sampling::GREEDY };
                    GenerateRequest {
                        sampling: Some(sampling),
                        ..GenerateRequest::new(prompt.clone(), schema.max_new_tokens)
                    }
                }));
            }
            for generation in llm.generate_all(&requests) {
                texts.push(generation?.text);
            }
            inputs.progress().say(&format!("{} of {} roll-outs", texts.len(), texts.capacity()));
        }
        Ok(texts)
    }
}

/// The world's own chances, users by id.
struct Truth<'a> {
    world: &'a World,
    users: HashMap<&'a str, usize>,
}

impl<'a> Truth<'a> {
    fn of(world: &'a World) -> Self {
        Self { world, users: world.users.iter().map(|user| user.user_id.as_str()).zip(0..).collect() }
    }

    fn ctcvr(&self, user_id: &str, item: usize) -> f64 {
        self.users.get(user_id).and_then(|&user| self.world.ctcvr(user, item)).unwrap_or(0.0)
    }
}

fn choice(
    case: &TestCase,
    texts: &[String],
    grounder: &CategoryGrounder,
    simulator: &Simulator,
    truth: &Truth,
    telemetry: &mut Telemetry,
) -> Choice {
    let (mut items, mut named) = (Vec::new(), Vec::new());
    let row = simulator.row(&case.user_id);
    for text in texts {
        let item = grounder.ground(&parse(text, PromptMode::Think).answer);
        let Some((row, item)) = row.zip(item) else {
            telemetry.count(None);
            continue;
        };
        let known = simulator.look_up(row, item);
        telemetry.count(Some(known.level));
        if !named.contains(&item) {
            named.push(item);
            items.push((known, truth.ctcvr(&case.user_id, item)));
        }
    }
    Choice { items }
}
