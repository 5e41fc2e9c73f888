//! `checkpoint`: a language model of somebody else in Hugging Face form, as the first stage of a recipe.

use super::settings::{Context, KeyError, read};
use crate::stage::{Artefact, Inputs, Stage, StageError, copy_files};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    path: PathBuf,
}

struct Checkpoint {
    folder: PathBuf,
}

pub(super) fn make(table: toml::Table, context: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    let folder = context.folder.join(settings.path);
    if !folder.join("config.json").is_file() {
        let message =
            format!("{} holds no config.json: give the folder of a Hugging Face checkpoint", folder.display());
        return Err(KeyError::new("path", message));
    }
    Ok(Arc::new(Checkpoint { folder }))
}

impl Stage for Checkpoint {
    fn kind(&self) -> &'static str {
        "checkpoint"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn output(&self) -> Artefact {
        Artefact::Checkpoint
    }

    fn files(&self) -> Result<Vec<(String, PathBuf)>, StageError> {
        let mut found = Vec::new();
        walk(&self.folder, "", &mut found)?;
        found.sort();
        Ok(found)
    }

    fn run(&self, _: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        copy_files(self.files()?, folder)
    }
}

/// All files but hidden ones. Links are followed: a hub's cache consists of them.
fn walk(folder: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> Result<(), StageError> {
    for entry in std::fs::read_dir(folder).map_err(StageError::io(folder))? {
        let path = entry.map_err(StageError::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let metadata = path.metadata().map_err(StageError::io(&path))?;
        let name = format!("{prefix}{name}");
        match metadata.is_dir() {
            true => walk(&path, &format!("{name}/"), found)?,
            false => found.push((name, path)),
        }
    }
    Ok(())
}
