//! `codebook`: the quantiser of text vectors, trained on items and answers.

use super::encoder::MODEL;
use super::examples::read_texts;
use super::settings::{Context, KeyError, read, value};
use crate::codebook::{CodebookSettings, train_codebook};
use crate::models::DEFAULT_THREADS;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use taiji::encode::{BertEncoder, Encoder, EncoderOptions};

/// The quantiser's file.
pub const CODEBOOK: &str = "pq.safetensors";
/// How well it is used.
pub const HEALTH: &str = "health.json";
/// Texts encoded at once.
const CHUNK: usize = 256;

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
        let options = EncoderOptions { threads: threads.unwrap_or(DEFAULT_THREADS), ..EncoderOptions::default() };
        let encoder = BertEncoder::load(&inputs.one(Artefact::Encoder)?.join(MODEL), options)?;
        let texts = read_texts(inputs.one(Artefact::Examples)?)?;
        let all: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut bar = inputs.progress().bar("texts", all.len() as u64);
        let mut vectors = Vec::with_capacity(all.len());
        for chunk in all.chunks(CHUNK) {
            vectors.extend(encoder.encode(chunk)?);
            bar.add(chunk.len() as u64);
        }
        drop(bar);
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
