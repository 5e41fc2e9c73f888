//! A data folder as later stages find it: its files, and `source.json`, which says whether it was generated and decides some defaults further
//! down.

use crate::data::{Dataset, find};
use crate::stage::{Artefact, Inputs, StageError, copy_files, read_json};
use serde::{Deserialize, Serialize};
use std::path::Path;
use taiji::event::ActionTable;

/// Its name.
pub const SOURCE_FILE: &str = "source.json";

/// Where a data folder's records come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Source {
    /// A generated world; users of another seed are held out.
    Synth {
        /// Of users and events.
        seed: u64,
    },
    /// Somebody's files; the last two purchases of every user, and what follows the first of them, are held out.
    Files,
}

impl Source {
    /// Of a data folder.
    pub fn read(folder: &Path) -> Result<Source, StageError> {
        read_json(&folder.join(SOURCE_FILE))
    }
}

/// Copies those of some files that a data folder has, plain or gzip.
pub fn copy_found(data: &Path, names: &[&str], folder: &Path) -> Result<(), StageError> {
    let found = names.iter().filter_map(|name| find(data, name));
    let named = found.filter_map(|path| Some((path.file_name()?.to_str()?.to_string(), path)));
    copy_files(named.collect(), folder)
}

/// The data among a stage's inputs.
pub fn dataset(inputs: &Inputs) -> Result<(Dataset, Source), StageError> {
    let folder = inputs.one(Artefact::Data)?;
    Ok((Dataset::load(folder, &ActionTable::default())?, Source::read(folder)?))
}
