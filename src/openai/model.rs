//! What this port must know of the model's folder besides the engine: chat template, default sampling, stop tokens.
//!
//! In: the folder of the LLM in the bundle. Out: [`ServedModel`], or an error that names the file. Caller: `cli::wiring`.

use super::template::{ChatTemplate, TemplateError};
use crate::llm::{GENERATION_FILE, LlmEngine, Sampling};
use serde::Deserialize;
use std::path::Path;

/// What is read once, at start.
#[derive(Debug, Default)]
pub struct ServedModel {
    /// Messages → prompt; `None` = the model has no template and the settings name none.
    pub template: Option<ChatTemplate>,
    /// How the model samples when a request says nothing.
    pub sampling: Sampling,
    /// Tokens that end an answer, as the vocabulary and as the text spell them.
    pub stops: Vec<(u32, String)>,
    /// The template's end of text, where the tokenizer knows it as one token: it ends chat answers, too.
    pub end_of_text: Option<(u32, String)>,
}

/// `generation.json`, as far as this port reads it; the engine checks it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Generation {
    stop: Vec<String>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl ServedModel {
    /// Reads the folder. `template`: the setting `openai.template`.
    pub fn load(folder: &Path, template: &str, llm: &dyn LlmEngine) -> Result<ServedModel, TemplateError> {
        let template = ChatTemplate::load(folder, template)?;
        let path = folder.join(GENERATION_FILE);
        let failed = |message: String| TemplateError { path: path.display().to_string(), message };
        let bytes = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
        let generation: Generation = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        let one_token = |text: &String| match llm.tokenize(text).ok()?.as_slice() {
            [token] => Some((*token, text.clone())),
            _ => None,
        };
        let greedy = Sampling::GREEDY;
        Ok(ServedModel {
            sampling: Sampling {
                temperature: generation.temperature.unwrap_or(greedy.temperature),
                top_k: generation.top_k.unwrap_or(greedy.top_k),
                top_p: generation.top_p.unwrap_or(greedy.top_p),
                repetition_penalty: generation.repetition_penalty.unwrap_or(greedy.repetition_penalty),
                seed: greedy.seed,
            },
            stops: generation.stop.iter().filter_map(one_token).collect(),
            end_of_text: template.as_ref().and_then(|template| one_token(template.eos_token()?)),
            template,
        })
    }
}
