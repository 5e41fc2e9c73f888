//! `collaborative`: vectors of items from what people do after one another.

use super::settings::{Context, KeyError, read, value};
use super::source::dataset;
use crate::lift::item_vectors;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Values of a vector.
    dim: usize,
    /// Where the search for the strongest directions begins.
    seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { dim: 64, seed: 7 }
    }
}

struct Collaborative {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    if settings.dim == 0 {
        return Err(KeyError::new("dim", "must be positive"));
    }
    let value = value(&settings)?;
    Ok(Arc::new(Collaborative { settings, value }))
}

impl Stage for Collaborative {
    fn kind(&self) -> &'static str {
        "collaborative"
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
        Artefact::ItemVectors
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let (dataset, _) = dataset(inputs)?;
        Ok(item_vectors(&dataset, self.settings.dim, self.settings.seed).write(folder)?)
    }
}
