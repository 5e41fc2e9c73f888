//! The models among a stage's inputs, opened as the service opens them.

use super::codebook::CODEBOOK;
use super::encoder::MODEL;
use crate::models::{DEFAULT_THREADS, ModelFolders, ServedModels};
use crate::progress::Progress;
use crate::stage::{Artefact, Inputs, StageError};
use taiji::encode::{BertEncoder, Encoder, EncoderOptions};
use taiji::event::Item;
use taiji::prompt::PromptSchema;

/// Texts encoded at once.
const CHUNK: usize = 256;

/// Where the models of a stage's inputs lie.
pub fn folders(inputs: &Inputs) -> Result<ModelFolders, StageError> {
    Ok(ModelFolders {
        llm: inputs.one(Artefact::Graphs)?.to_path_buf(),
        encoder: inputs.one(Artefact::Encoder)?.join(MODEL),
        codebook: inputs.one(Artefact::Codebook)?.join(CODEBOOK),
    })
}

/// The encoder alone.
pub fn encoder(inputs: &Inputs, threads: Option<usize>) -> Result<BertEncoder, StageError> {
    let options = EncoderOptions { threads: threads.unwrap_or(DEFAULT_THREADS), ..EncoderOptions::default() };
    Ok(BertEncoder::load(&inputs.one(Artefact::Encoder)?.join(MODEL), options)?)
}

/// Vectors of many texts, in order, with a progress bar.
pub fn encode(encoder: &dyn Encoder, texts: &[String], progress: &Progress) -> Result<Vec<Vec<f32>>, StageError> {
    let mut bar = progress.bar("texts", texts.len() as u64);
    let mut vectors = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(CHUNK) {
        vectors.extend(encoder.encode(&chunk.iter().map(String::as_str).collect::<Vec<_>>())?);
        bar.add(chunk.len() as u64);
    }
    Ok(vectors)
}

/// Opens them; `items` are what answers may be grounded to.
pub fn open(inputs: &Inputs, items: &[Item], threads: Option<usize>) -> Result<ServedModels, StageError> {
    let schema = PromptSchema::load(&inputs.one(Artefact::Examples)?.join("prompt.toml"))?;
    let mut models = ServedModels::open(&folders(inputs)?, &schema, items, threads.unwrap_or(DEFAULT_THREADS))?;
    models.progress = inputs.progress().clone();
    Ok(models)
}
