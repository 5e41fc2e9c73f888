//! The models of a bundle in the making, run as the service will run them.
//!
//! In: prompts of many users. Out: for each what serving would find. Callers: `index` (vectors of the main part),
//! `pipeline::judge` (held-out users). Prompt, parser, encoder, quantiser and grounding are the service's own modules.

use std::path::PathBuf;
use std::sync::Arc;
use taiji::catalogue::{Catalogue, CatalogueRow, Grounding};
use taiji::encode::{BertEncoder, EncodeError, Encoder, EncoderOptions};
use taiji::event::Item;
use taiji::llm::{GenerateRequest, LlmEngine, LlmError, LlmOptions, OnnxLlm};
use taiji::prompt::{ParsedAnswer, PromptInput, PromptSchema, parse, render};
use taiji::quantize::{PqCodebook, QuantizeError};
use thiserror::Error;

/// Threads of each model while training; nothing else runs then.
const THREADS: usize = 2;
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

/// LLM, encoder, quantiser and catalogue, ready to answer.
pub struct ServedModels {
    /// What prompts look like.
    pub schema: PromptSchema,
    /// The decoder.
    pub llm: OnnxLlm,
    /// The encoder.
    pub encoder: BertEncoder,
    /// The quantiser.
    pub codebook: PqCodebook,
    /// For grounding.
    pub catalogue: Catalogue,
}

/// What serving would find for one user.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Answered {
    /// As generated.
    pub text: String,
    pub parsed: ParsedAnswer,
    pub grounding: Grounding,
    pub vector: Vec<f32>,
    pub codes: Vec<u16>,
    pub prompt_tokens: usize,
    pub new_tokens: usize,
}

impl ServedModels {
    /// Opens the models; `items` are what answers may be grounded to.
    pub fn open(folders: &ModelFolders, schema: &PromptSchema, items: &[Item]) -> Result<ServedModels, ModelsError> {
        let options = LlmOptions {
            threads: THREADS,
            max_rows: MAX_ROWS,
            max_len: schema.max_prompt_tokens + schema.max_new_tokens,
            queue_limit: CHUNK,
            prefix: schema.prefix(),
            ..LlmOptions::default()
        };
        let rows = items.iter().map(|item| CatalogueRow { item: Arc::new(item.clone()), distinct_users: 0 });
        Ok(ServedModels {
            schema: schema.clone(),
            llm: OnnxLlm::load(&folders.llm, options)?,
            encoder: BertEncoder::load(
                &folders.encoder,
                EncoderOptions { threads: THREADS, ..EncoderOptions::default() },
            )?,
            codebook: PqCodebook::load(&folders.codebook)?,
            catalogue: Catalogue::from_rows(rows.collect()),
        })
    }

    /// Prompt text of an input, as the service renders it.
    pub fn prompt(&self, input: &PromptInput) -> String {
        render(&self.schema, input, &|text| self.llm.count_tokens(text)).text
    }

    /// Answers for many users, in order, with a progress bar.
    pub fn answer(&self, inputs: &[PromptInput]) -> Result<Vec<Answered>, ModelsError> {
        let bar = indicatif::ProgressBar::new(inputs.len() as u64);
        let mut answers = Vec::with_capacity(inputs.len());
        for chunk in inputs.chunks(CHUNK) {
            answers.extend(self.answer_chunk(chunk)?);
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
        Ok(answers)
    }

    fn answer_chunk(&self, inputs: &[PromptInput]) -> Result<Vec<Answered>, ModelsError> {
        let max_new_tokens = self.schema.max_new_tokens;
        let requests: Vec<GenerateRequest> =
            inputs.iter().map(|input| GenerateRequest::new(self.prompt(input), max_new_tokens)).collect();
        let generations = self.llm.generate_all(&requests).into_iter().collect::<Result<Vec<_>, _>>()?;
        let parsed: Vec<ParsedAnswer> = generations.iter().map(|generation| parse(&generation.text)).collect();
        let texts: Vec<String> = parsed.iter().map(ParsedAnswer::embedding_text).collect();
        let vectors = self.encoder.encode(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
        let mut answers = Vec::with_capacity(inputs.len());
        for ((generation, parsed), vector) in generations.into_iter().zip(parsed).zip(vectors) {
            answers.push(Answered {
                grounding: self.catalogue.ground(&parsed.answer),
                codes: self.codebook.encode(&vector)?,
                text: generation.text,
                parsed,
                vector,
                prompt_tokens: generation.prompt_tokens,
                new_tokens: generation.new_tokens,
            });
        }
        Ok(answers)
    }
}
