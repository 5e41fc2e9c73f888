//! `sequences`: users' items as tokens of their codes, cut into training, validation and test, and the codes' tokenizer.

use super::code_table::code_table;
use super::examples::read_lines;
use super::settings::{Context, KeyError, read, value};
use super::source::dataset;
use crate::data::write_jsonl;
use crate::generative::{SequenceSettings, Sequences, cut};
use crate::semantic_ids::tokenizer_json;
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

const TRAIN: &str = "train.jsonl";
const VALIDATION: &str = "validation.jsonl";
const TEST: &str = "test.jsonl";

struct Cut {
    settings: SequenceSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: SequenceSettings = read(table)?;
    settings.check().map_err(KeyError::other)?;
    let value = value(&settings)?;
    Ok(Arc::new(Cut { settings, value }))
}

impl Stage for Cut {
    fn kind(&self) -> &'static str {
        "sequences"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Data), Input::one(Artefact::CodeTable)]
    }

    fn output(&self) -> Artefact {
        Artefact::Sequences
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let table = code_table(inputs)?;
        let (dataset, _) = dataset(inputs)?;
        let sequences = cut(&dataset, &table, &self.settings)?;
        let (windows, tokens) = (sequences.train.len(), sequences.train.iter().map(Vec::len).sum::<usize>());
        let (validation, test) = (sequences.validation.len(), sequences.test.len());
        inputs
            .progress()
            .say(&format!("{windows} windows of {tokens} tokens, {validation} users to validate, {test} to test"));
        write_jsonl(&folder.join(TRAIN), &sequences.train)?;
        write_jsonl(&folder.join(VALIDATION), &sequences.validation)?;
        write_jsonl(&folder.join(TEST), &sequences.test)?;
        let path = folder.join(TOKENIZER_FILE);
        std::fs::write(&path, tokenizer_json(&table)?).map_err(StageError::io(&path))
    }
}

/// The sequences in a folder.
pub fn read_sequences(folder: &Path) -> Result<Sequences, StageError> {
    Ok(Sequences {
        train: read_lines(&folder.join(TRAIN))?,
        validation: read_lines(&folder.join(VALIDATION))?,
        test: read_lines(&folder.join(TEST))?,
    })
}
