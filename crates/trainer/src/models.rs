//! The models of a bundle in the making, run as the service will run them.
//!
//! In: prompts of many users. Out: for each what serving would find. Callers: `index` (vectors of the main part),
//! `judge` (held-out users). The pipeline is the service's own (`taiji::answer`).

use crate::model::{DecoderConfig, ModelError};
use crate::nn::FileError;
use crate::nn::tensor_file::write_json;
use crate::progress::Progress;
use crate::sft::SftError;
use crate::sft::tokenizer::{END_OF_TEXT, TOKENIZER_FILE, TextTokenizer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use taiji::answer::{Answer, AnswerError, Answering};
use taiji::catalogue::{Catalogue, CatalogueRow};
use taiji::encode::{BertEncoder, EncodeError, Encoder, EncoderOptions};
use taiji::event::Item;
use taiji::llm::{GENERATION_FILE, LlmError, LlmOptions, OnnxLlm};
use taiji::prompt::{ANSWER_CLOSE, PromptInput, PromptMode, PromptSchema};
use taiji::quantize::{PqCodebook, QuantizeError};
use taiji_export::{Checkpoint, ExportError, ExportOptions, Precision, export};
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};

/// Threads of each model while nothing else runs.
pub const DEFAULT_THREADS: usize = 2;
/// Users in one LLM batch.
const MAX_ROWS: usize = 16;
/// Prompts handed to the engine at once.
const CHUNK: usize = 128;

/// Why models do not open or answer.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ModelsError {
    #[error(transparent)]
    Llm(#[from] LlmError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the model was not trained to answer in the mode {asked}; its prompt.toml names {known}")]
    Mode { asked: &'static str, known: String },
    #[error(
        "{}: {ANSWER_CLOSE} is no token of tokenizer.json and config.json has no eos_token_id: nothing says where an answer ends; give one of \
         them",
        .0.display()
    )]
    End(PathBuf),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Sft(#[from] SftError),
    #[error("the threads of the models cannot be started: {0}")]
    Runtime(std::io::Error),
}

/// Where the models lie.
#[derive(Debug, Clone)]
pub struct ModelFolders {
    /// Decoder graph and tokenizer.
    pub llm: PathBuf,
    /// Encoder graph and tokenizer.
    pub encoder: PathBuf,
    /// `pq.safetensors`.
    pub codebook: PathBuf,
}

/// Where answers end by our own tokenizers.
pub const OWN_STOPS: [&str; 2] = [ANSWER_CLOSE, END_OF_TEXT];

/// Exports a checkpoint for the engine, which is told where answers end: at the answer's tag, which is one token of our own tokenizers; in
/// texts of somebody else's at the token that ends them, behind the tag.
pub fn export_for_engine(checkpoint: &Path, graphs: &Path, precision: Precision) -> Result<(), ModelsError> {
    export(checkpoint, graphs, &ExportOptions { precision, ..ExportOptions::default() })?;
    Ok(write_json(&graphs.join(GENERATION_FILE), &stops(checkpoint)?)?)
}

/// Where answers of a checkpoint end, as `generation.json` says it.
pub fn stops(checkpoint: &Path) -> Result<Value, ModelsError> {
    let tokenizer = TextTokenizer::load(&checkpoint.join(TOKENIZER_FILE))?;
    Ok(match tokenizer.ends_by_tag() {
        true => json!({ "stop": OWN_STOPS }),
        false => json!({ "stop_token_ids": [end_token(checkpoint)?] }),
    })
}

/// The token by which a checkpoint's texts end.
fn end_token(checkpoint: &Path) -> Result<u32, ModelsError> {
    let config = Checkpoint::open(checkpoint)?.config;
    DecoderConfig::of_checkpoint(&config)?.eos_token_id.ok_or_else(|| ModelsError::End(checkpoint.to_owned()))
}

/// LLM, encoder, quantiser and catalogue, ready to answer.
pub struct ServedModels {
    /// What prompts look like.
    pub schema: PromptSchema,
    /// How the model is asked: the schema's first mode, unless it is set.
    pub mode: PromptMode,
    /// The decoder.
    pub llm: OnnxLlm,
    /// The encoder.
    pub encoder: Arc<dyn Encoder>,
    /// The quantiser.
    pub codebook: PqCodebook,
    /// For grounding.
    pub catalogue: Catalogue,
    /// What is told of long work.
    pub progress: Progress,
    /// What the pipeline's tasks run on.
    runtime: Runtime,
}

impl ServedModels {
    /// Opens the models, each with so many threads; `items` are what answers may be grounded to.
    pub fn open(
        folders: &ModelFolders,
        schema: &PromptSchema,
        items: &[Item],
        threads: usize,
    ) -> Result<ServedModels, ModelsError> {
        let options = LlmOptions {
            threads,
            max_rows: MAX_ROWS,
            max_len: schema.max_prompt_tokens + schema.max_new_tokens,
            queue_limit: CHUNK,
            queue_tokens: usize::MAX,
            prefix: schema.prefix(),
            ..LlmOptions::default()
        };
        let rows = items.iter().map(|item| CatalogueRow { item: Arc::new(item.clone()), distinct_users: 0 });
        Ok(ServedModels {
            schema: schema.clone(),
            mode: schema.mode(),
            llm: OnnxLlm::load(&folders.llm, options)?,
            encoder: Arc::new(BertEncoder::load(
                &folders.encoder,
                EncoderOptions { threads, ..EncoderOptions::default() },
            )?),
            codebook: PqCodebook::load(&folders.codebook)?,
            catalogue: Catalogue::from_rows(rows.collect()),
            progress: Progress::default(),
            runtime: Builder::new_current_thread().build().map_err(ModelsError::Runtime)?,
        })
    }

    /// Sets the mode in which the model is asked.
    pub fn ask(&mut self, mode: PromptMode) -> Result<(), ModelsError> {
        if !self.schema.modes.contains(&mode) {
            let known: Vec<&str> = self.schema.modes.iter().map(|mode| mode.name()).collect();
            return Err(ModelsError::Mode { asked: mode.name(), known: known.join(", ") });
        }
        self.mode = mode;
        Ok(())
    }

    /// The pipeline, as the service has it.
    pub fn answering(&self) -> Answering<'_> {
        Answering {
            schema: &self.schema,
            mode: self.mode,
            llm: &self.llm,
            encoder: &self.encoder,
            codebook: &self.codebook,
            catalogue: &self.catalogue,
        }
    }

    /// Prompt text of an input, as the service renders it.
    pub fn prompt(&self, input: &PromptInput) -> String {
        self.answering().prompt(input).text
    }

    /// Answers for many users, in order, with a progress bar.
    pub fn answer(&self, inputs: &[PromptInput]) -> Result<Vec<Answer>, ModelsError> {
        let mut bar = self.progress.bar("answers", inputs.len() as u64);
        let mut answers = Vec::with_capacity(inputs.len());
        for chunk in inputs.chunks(CHUNK) {
            answers.extend(self.runtime.block_on(self.answering().answer(chunk))?);
            bar.add(chunk.len() as u64);
        }
        Ok(answers)
    }
}
