//! `files`: a folder of events, items, users and labels, copied so that nobody changes it under the stages that stand on it.

use super::settings::{Context, KeyError, read};
use super::source::{SOURCE_FILE, Source};
use crate::data::DataError;
use crate::stage::{Artefact, Inputs, Stage, StageError, copy_files, write_json};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    path: Option<PathBuf>,
}

struct Files {
    folder: PathBuf,
}

pub(super) fn make(table: toml::Table, context: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    let own = settings.path.map(|path| context.folder.join(path));
    let folder = own.or_else(|| context.data.clone());
    let folder = folder.ok_or_else(|| KeyError::new("path", "is missing: give it here, or its folder with --data"))?;
    Ok(Arc::new(Files { folder }))
}

impl Stage for Files {
    fn kind(&self) -> &'static str {
        "files"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn output(&self) -> Artefact {
        Artefact::Data
    }

    /// `users.jsonl` counts, too: profiles are in prompts and index.
    fn files(&self) -> Result<Vec<(String, PathBuf)>, StageError> {
        let mut found = Vec::new();
        for (name, required) in
            [("items.jsonl", true), ("events.jsonl", true), ("users.jsonl", false), ("labels.jsonl", false)]
        {
            let names = [name.to_string(), format!("{name}.gz")];
            let file = names.into_iter().find(|file| self.folder.join(file).is_file());
            match file {
                Some(file) => found.push((file.clone(), self.folder.join(file))),
                None if required => {
                    let folder = self.folder.display().to_string();
                    return Err(DataError::Missing { folder, name: name.to_string() }.into());
                }
                None => {}
            }
        }
        Ok(found)
    }

    fn run(&self, _: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        copy_files(self.files()?, folder)?;
        write_json(&folder.join(SOURCE_FILE), &Source::Files)
    }
}
