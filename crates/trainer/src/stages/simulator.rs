//! `simulator`: the chances of click and conversion of many pairs of user and item, by a trained ranker; without one, in a generated world,
//! by the world's own truth (`truth = true`): a control of what a ranker's errors cost.

use super::settings::{Context, KeyError, read, take, value};
use super::simulator_judge::Truth;
use super::source::dataset;
use super::synth::world_of;
use crate::data::{DEFAULT_TARGET, test_cases};
use crate::rank::Ranker;
use crate::simulate::{Simulator, SimulatorSettings, User};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

struct Simulate {
    settings: SimulatorSettings,
    /// The world's own truth instead of a ranker. Not in the hash: that there is no ranker is.
    truth: bool,
    value: Value,
}

pub(super) fn make(mut table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let truth = take(&mut table, "truth")?.unwrap_or(false);
    let settings: SimulatorSettings = read(table)?;
    settings.check().map_err(KeyError::other)?;
    let value = value(&settings)?;
    Ok(Arc::new(Simulate { settings, truth, value }))
}

impl Stage for Simulate {
    fn kind(&self) -> &'static str {
        "simulator"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    /// The data are those of the users who are simulated: before their last purchase.
    fn inputs(&self) -> Vec<Input> {
        let ranker = (!self.truth).then_some(Artefact::Ranker);
        [Artefact::Data].into_iter().chain(ranker).map(Input::one).collect()
    }

    fn output(&self) -> Artefact {
        Artefact::Simulator
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let (dataset, _) = dataset(inputs)?;
        let most = self.settings.users.unwrap_or(usize::MAX);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build()?;
        let users = |limit: usize| -> Vec<User> {
            let cases = test_cases(&dataset, DEFAULT_TARGET, limit, most).cases;
            cases.iter().map(|case| User { user: case.user, cut: case.cut }).collect()
        };
        let (simulator, unknown) = match inputs.optional(Artefact::Ranker) {
            Some(ranker) => {
                let ranker = Ranker::load(ranker, &dataset)?;
                let users = users(ranker.limits.0);
                let simulator = pool.install(|| Simulator::build(&dataset, &users, &ranker, &self.settings))?;
                (simulator, ranker.unknown_items)
            }
            None => {
                let world = world_of(inputs.one(Artefact::Data)?)?;
                let truth = Truth::of(&world);
                let chance = |user: usize, item: usize| truth.ctcvr(&dataset.users[user].user_id, item);
                (pool.install(|| Simulator::of_truth(&dataset, &users(1), &self.settings, chance))?, 0)
            }
        };
        simulator.write(folder)?;
        let (users, pairs, coverage) = simulator.size();
        inputs.progress().say(&format!(
            "{users} users, {pairs} pairs, {:.1} % of all; {unknown} items unknown to the ranker",
            100.0 * coverage
        ));
        Ok(())
    }
}
