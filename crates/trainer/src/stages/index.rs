//! `index`: catalogue and user index, one generation of a bundle.

use super::served::open;
use super::settings::{Context, KeyError, read, take, value};
use super::source::{Source, dataset};
use crate::data::{DEFAULT_TARGET, Holdout};
use crate::index::{IndexRecipe, build_index};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

struct Index {
    recipe: IndexRecipe,
    holdout: Option<bool>,
    value: Value,
}

pub(super) fn make(mut table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let holdout = take(&mut table, "holdout")?;
    let recipe: IndexRecipe = read(table)?;
    let value = json!({ "index": value(&recipe)?, "holdout": holdout });
    Ok(Arc::new(Index { recipe, holdout, value }))
}

impl Stage for Index {
    fn kind(&self) -> &'static str {
        "index"
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
            Input::one(Artefact::Encoder),
            Input::one(Artefact::Codebook),
        ]
    }

    fn output(&self) -> Artefact {
        Artefact::Generation
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let (dataset, source) = dataset(inputs)?;
        // Of a generated world nothing is held out: the users who are judged are others.
        let holdout = match self.holdout.unwrap_or(source == Source::Files) {
            true => Holdout::of_training(DEFAULT_TARGET),
            false => Holdout::none(),
        };
        let models = open(inputs, &dataset.items, threads)?;
        Ok(build_index(&self.recipe, &dataset, &holdout, &models, folder)?)
    }
}
