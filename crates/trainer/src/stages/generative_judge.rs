//! `generative-judge`: lists by the engine's beam on held-out items, beside tuned counting.

use super::JUDGED_FILE;
use super::code_table::code_table;
use super::sequences::read_sequences;
use super::settings::{Context, KeyError, read, value};
use super::source::dataset;
use crate::data::{DEFAULT_TARGET, Holdout};
use crate::evaluate::Counting;
use crate::generative::{Case, Judged, Recommender, judge};
use crate::models::DEFAULT_THREADS;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Beams of a search.
    width: usize,
    /// Most users of validation, evenly over all; 0 = none.
    validation_users: usize,
    /// Most users of the test; by default all, 0 = none, for choices that may not see it.
    test_users: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { width: 20, validation_users: 2_500, test_users: None }
    }
}

struct GenerativeJudge {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    if settings.width == 0 {
        return Err(KeyError::new("width", "must be at least 1"));
    }
    let value = value(&settings)?;
    Ok(Arc::new(GenerativeJudge { settings, value }))
}

impl Stage for GenerativeJudge {
    fn kind(&self) -> &'static str {
        "generative-judge"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        [Artefact::Data, Artefact::CodeTable, Artefact::Sequences, Artefact::Graphs].map(Input::one).to_vec()
    }

    fn output(&self) -> Artefact {
        Artefact::Judgement
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let (dataset, _) = dataset(inputs)?;
        let table = code_table(inputs)?;
        let sequences = read_sequences(inputs.one(Artefact::Sequences)?)?;
        let counting = Counting::new(&dataset, &Holdout::of_training(DEFAULT_TARGET));
        let met = |item: &String| counting.number(item).map_or(0.0, |number| counting.popularity()[number]);
        let popularity: Vec<f64> = table.items().iter().map(met).collect();
        let cases = || sequences.validation.iter().chain(&sequences.test);
        let longest = cases().map(|case| case.prompt.len()).max().unwrap_or(1);
        let (graphs, width) = (inputs.one(Artefact::Graphs)?, self.settings.width);
        let threads = threads.unwrap_or(DEFAULT_THREADS);
        let recommender = Recommender::open(graphs, &table, &popularity, width, longest, threads)?;
        let mut splits = Vec::new();
        for (split, all, most) in [
            ("validation", &sequences.validation, self.settings.validation_users),
            ("test", &sequences.test, self.settings.test_users.unwrap_or(usize::MAX)),
        ] {
            let chosen: Vec<&Case> = all.iter().step_by(all.len().div_ceil(most.max(1)).max(1)).take(most).collect();
            if chosen.is_empty() {
                continue;
            }
            let figures = judge(split, &chosen, &recommender, &table, &counting, inputs.progress())?;
            for figure in &figures.seen_kept {
                let (metric, model, counting) = (&figure.metric, &figure.model, &figure.counting);
                let (model, counting) = (model.estimate, counting.estimate);
                let users = figures.users;
                inputs.progress().say(&format!("{split}, {users} users: {metric} {model:.4}, counting {counting:.4}"));
            }
            splits.push(figures);
        }
        let judged = Judged { width, items: table.items().len(), collisions: table.collisions(), splits };
        write_json(&folder.join(JUDGED_FILE), &judged)
    }
}
