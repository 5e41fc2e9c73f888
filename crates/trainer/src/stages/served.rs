//! The models among a stage's inputs, opened as the service opens them.

use super::codebook::CODEBOOK;
use super::encoder::MODEL;
use crate::models::{DEFAULT_THREADS, ModelFolders, ServedModels};
use crate::stage::{Artefact, Inputs, StageError};
use taiji::event::Item;
use taiji::prompt::PromptSchema;

/// Where the models of a stage's inputs lie.
pub fn folders(inputs: &Inputs) -> Result<ModelFolders, StageError> {
    Ok(ModelFolders {
        llm: inputs.one(Artefact::Graphs)?.to_path_buf(),
        encoder: inputs.one(Artefact::Encoder)?.join(MODEL),
        codebook: inputs.one(Artefact::Codebook)?.join(CODEBOOK),
    })
}

/// Opens them; `items` are what answers may be grounded to.
pub fn open(inputs: &Inputs, items: &[Item], threads: Option<usize>) -> Result<ServedModels, StageError> {
    let schema = PromptSchema::load(&inputs.one(Artefact::Examples)?.join("prompt.toml"))?;
    let mut models = ServedModels::open(&folders(inputs)?, &schema, items, threads.unwrap_or(DEFAULT_THREADS))?;
    models.progress = inputs.progress().clone();
    Ok(models)
}
