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
    read::<NoSettings>(table)?;
    Ok(Arc::new(SimulatorJudge))
}

/// Any key is one too many.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

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
        let choices: Vec<Choice> = written
            .iter()
            .map(|of| choice(of, &grounder, &simulator, &truth, &mut telemetry))
            .collect::<Result<_, _>>()?;
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
pub(super) struct Truth<'a> {
    world: &'a World,
    users: HashMap<&'a str, usize>,
}

impl<'a> Truth<'a> {
    pub(super) fn of(world: &'a World) -> Self {
        Self { world, users: world.users.iter().map(|user| user.user_id.as_str()).zip(0..).collect() }
    }

    pub(super) fn ctcvr(&self, user_id: &str, item: usize) -> Option<f64> {
        self.world.ctcvr(*self.users.get(user_id)?, item)
    }
}

fn choice(
    written: &RollOuts,
    grounder: &CategoryGrounder,
    simulator: &Simulator,
    truth: &Truth,
    telemetry: &mut Telemetry,
) -> Result<Choice, StageError> {
    let stranger = || StageError::Refused {
        message: format!(
            "user {} of the roll-outs is unknown to the simulator or to the world: make all of the same data, \
             the simulator of all its users",
            written.user_id
        ),
    };
    let (mut items, mut named) = (Vec::new(), Vec::new());
    let row = simulator.row(&written.user_id).ok_or_else(stranger)?;
    for text in &written.texts {
        let Some(item) = grounder.ground(&parse(text, PromptMode::Think).answer) else {
            telemetry.count(None);
            continue;
        };
        let known = simulator.look_up(row, item);
        telemetry.count(Some(known.level));
        if !named.contains(&item) {
            named.push(item);
            items.push((known, truth.ctcvr(&written.user_id, item).ok_or_else(stranger)?));
        }
    }
    Ok(Choice { items })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::data::{DEFAULT_TARGET, test_cases};
    use crate::simulate::tests::{ranker, world};
    use crate::simulate::{Level, SimulatorSettings, User};
    use taiji::prompt::{ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE};

    /// Each item once, with the truth of the user who was asked; whom the table lacks is an error, not an answer without an item.
    #[test]
    fn what_roll_outs_name_is_looked_up_for_their_own_user() {
        let (world, dataset) = world();
        let folder = tempfile::tempdir().unwrap();
        let ranker = ranker(&world, &dataset, folder.path());
        let cases = test_cases(&dataset, DEFAULT_TARGET, 10, usize::MAX).cases;
        let users: Vec<User> = cases.iter().take(5).map(|case| User { user: case.user, cut: case.cut }).collect();
        let simulator = Simulator::build(&dataset, &users, &ranker, &SimulatorSettings::default()).unwrap();
        let item = &dataset.items[3];
        let answer = |text: &str| format!("so{THINK_CLOSE}{ANSWER_OPEN}{text}{ANSWER_CLOSE}");
        let known = answer(&format!("{}: {}", item.categories.join(" > "), item.title));
        let texts = vec![known.clone(), answer("nothing of the kind"), known];
        let written = |place: usize| RollOuts { user_id: cases[place].user_id.clone(), texts: texts.clone() };
        let (truth, grounder) = (Truth::of(&world), CategoryGrounder::new(&dataset.items));
        let mut telemetry = Telemetry::default();
        let found = choice(&written(4), &grounder, &simulator, &truth, &mut telemetry).unwrap();
        let person = world.users.iter().position(|user| user.user_id == cases[4].user_id).unwrap();
        let row = simulator.row(&cases[4].user_id).unwrap();
        assert_eq!(found.items, [(simulator.look_up(row, 3), world.ctcvr(person, 3).unwrap())]);
        assert_eq!((telemetry.answers, telemetry.ungrounded, telemetry.levels.len()), (3, 1, 1));
        assert!(
            telemetry
                .levels
                .keys()
                .all(|level| *level == Level::Pair || *level == Level::L3 || *level == Level::UserL3)
        );
        let refused = choice(&written(5), &grounder, &simulator, &truth, &mut telemetry).unwrap_err().to_string();
        assert!(refused.contains(&cases[5].user_id) && refused.contains("unknown to the simulator"), "{refused}");
        assert_eq!(telemetry.answers, 3);
    }
}
