//! `codebook`: the quantiser of text vectors, trained on items and answers.

use super::examples::read_texts;
use super::served::{encode, encoder};
use super::settings::{Context, KeyError, read, value};
use crate::codebook::{CodebookSettings, train_codebook};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// The quantiser's file.
pub const CODEBOOK: &str = "pq.safetensors";
/// How well it is used.
pub const HEALTH: &str = "health.json";

struct Codebook {
    settings: CodebookSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: CodebookSettings = read(table)?;
    let value = value(&settings)?;
    Ok(Arc::new(Codebook { settings, value }))
}

impl Stage for Codebook {
    fn kind(&self) -> &'static str {
        "codebook"
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
        Artefact::Codebook
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let vectors = text_vectors(inputs, threads)?;
        let (codebook, health) = train_codebook(&vectors, &self.settings)?;
        inputs.progress().say(&format!(
            "{} texts, least entropy {:.2} bits",
            vectors.len(),
            health.least_entropy_bits()
        ));
        write_json(&folder.join(HEALTH), &health)?;
        codebook.save(&folder.join(CODEBOOK))?;
        Ok(())
    }
}

/// Vectors of the texts that quantisers are trained on.
pub(super) fn text_vectors(inputs: &Inputs, threads: Option<usize>) -> Result<Vec<Vec<f32>>, StageError> {
    let texts = read_texts(inputs.one(Artefact::Examples)?)?;
    encode(&encoder(inputs, threads)?, &texts, inputs.progress())
}
