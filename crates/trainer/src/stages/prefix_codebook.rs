//! `prefix-codebook`: residual codes of text vectors, whose prefixes are sparse IDs; trained on what `codebook` is trained on.

use super::codebook::text_vectors;
use super::settings::{Context, KeyError, read, value};
use crate::codebook::{PrefixCodebook, PrefixSettings};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

struct Prefixes {
    settings: PrefixSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: PrefixSettings = read(table)?;
    settings.check().map_err(KeyError::other)?;
    let value = value(&settings)?;
    Ok(Arc::new(Prefixes { settings, value }))
}

impl Stage for Prefixes {
    fn kind(&self) -> &'static str {
        "prefix-codebook"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Examples), Input::one(Artefact::Encoder)]
    }

    fn output(&self) -> Artefact {
        Artefact::PrefixCodebook
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let vectors = text_vectors(inputs, threads)?;
        Ok(PrefixCodebook::train(&vectors, &self.settings)?.write(folder)?)
    }
}
