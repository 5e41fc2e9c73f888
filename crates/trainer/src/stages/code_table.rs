//! `code-table`: semantic IDs that somebody made, item → codes, out of a file in the data's folder.

use super::settings::{Context, KeyError, read};
use crate::semantic_ids::CodeTable;
use crate::stage::{Artefact, Inputs, Stage, StageError, write_json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Items and their codes.
const TABLE: &str = "codes.tsv";
/// What a table's file does not say itself.
const SHAPE: &str = "codes.json";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// From `--data`, else from the recipe's folder.
    path: PathBuf,
    /// Codes of a level.
    codebook_size: usize,
}

/// `codes.json`.
#[derive(Serialize, Deserialize)]
struct Shape {
    codebook_size: usize,
    levels: usize,
    items: usize,
    /// Items that share their codes with one before them.
    collisions: usize,
}

struct Codes {
    file: PathBuf,
    size: usize,
}

pub(super) fn make(table: toml::Table, context: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    let folder = context.data.as_ref().unwrap_or(&context.folder);
    Ok(Arc::new(Codes { file: folder.join(settings.path), size: settings.codebook_size }))
}

impl Stage for Codes {
    fn kind(&self) -> &'static str {
        "code-table"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        json!({ "codebook_size": self.size })
    }

    fn output(&self) -> Artefact {
        Artefact::CodeTable
    }

    fn files(&self) -> Result<Vec<(String, PathBuf)>, StageError> {
        Ok(vec![("codes".to_owned(), self.file.clone())])
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let table = CodeTable::read(&self.file, self.size)?;
        let (levels, items, collisions) = (table.levels(), table.items().len(), table.collisions());
        let size = self.size;
        inputs.progress().say(&format!("{items} items, {levels} levels of {size}, {collisions} share their codes"));
        let path = folder.join(TABLE);
        std::fs::write(&path, table.to_tsv()).map_err(StageError::io(&path))?;
        write_json(&folder.join(SHAPE), &Shape { codebook_size: self.size, levels, items, collisions })
    }
}

/// The table among a stage's inputs.
pub fn code_table(inputs: &Inputs) -> Result<CodeTable, StageError> {
    let folder = inputs.one(Artefact::CodeTable)?;
    let shape: Shape = crate::stage::read_json(&folder.join(SHAPE))?;
    Ok(CodeTable::read(&folder.join(TABLE), shape.codebook_size)?)
}
