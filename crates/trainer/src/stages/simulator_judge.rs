//! `simulator-judge`: whether a simulator puts first what the world's own truth puts first, among the items that a language model names.
//!
//! In: a generated world's held-out users, a simulator of them, roll-outs. Out: `judged.json`.

use super::judge::JUDGED_FILE;
use super::roll_outs::{ROLL_OUTS_FILE, RollOuts};
use super::settings::{Context, KeyError, read};
use super::source::dataset;
use super::synth::world_of;
use crate::data::read_lines;
use crate::simulate::{CategoryGrounder, Choice, Simulator, Telemetry, figures};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use crate::synth::World;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use taiji::prompt::{PromptMode, parse};

struct SimulatorJudge;

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    read::<None>(table)?;
    Ok(Arc::new(SimulatorJudge))
}

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct None {}

impl Stage for SimulatorJudge {
    fn kind(&self) -> &'static str {
        "simulator-judge"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Data), Input::one(Artefact::Simulator), Input::one(Artefact::RollOuts)]
    }

    fn output(&self) -> Artefact {
        Artefact::Judgement
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let (dataset, _) = dataset(inputs)?;
        let world = world_of(inputs.one(Artefact::Data)?)?;
        let simulator = Simulator::load(inputs.one(Artefact::Simulator)?, &dataset.items)?;
        let path = inputs.one(Artefact::RollOuts)?.join(ROLL_OUTS_FILE);
        let written: Vec<RollOuts> = read_lines(&path)?.collect::<Result<_, _>>()?;
        let truth = Truth::of(&world);
        let grounder = CategoryGrounder::new(&dataset.items);
        let mut telemetry = Telemetry::default();
        let choices: Vec<Choice> =
            written.iter().map(|of| choice(of, &grounder, &simulator, &truth, &mut telemetry)).collect();
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
    written: &RollOuts,
    grounder: &CategoryGrounder,
    simulator: &Simulator,
    truth: &Truth,
    telemetry: &mut Telemetry,
) -> Choice {
    let (mut items, mut named) = (Vec::new(), Vec::new());
    let row = simulator.row(&written.user_id);
    for text in &written.texts {
        let item = grounder.ground(&parse(text, PromptMode::Think).answer);
        let Some((row, item)) = row.zip(item) else {
            telemetry.count(None);
            continue;
        };
        let known = simulator.look_up(row, item);
        telemetry.count(Some(known.level));
        if !named.contains(&item) {
            named.push(item);
            items.push((known, truth.ctcvr(&written.user_id, item)));
        }
    }
    Choice { items }
}
