//! What an OpenAI-compatible port must know of a model's folder besides the engine: chat template, default sampling, stop tokens.
//!
//! In: the folder of the LLM in the bundle. Out: [`ServedModel`], or an error that names the file. Callers: `bundle` loads it with
//! the engine, `openai` serves it.

mod template;

pub use template::{ChatTemplate, TemplateError};

use super::Sampling;
use super::generation::load_generation;
use crate::onnx::folder;
use std::path::Path;

/// A token and the text it is shown as.
pub type Spelled = (u32, String);

/// What is read once, at start.
#[derive(Debug, Default)]
pub struct ServedModel {
    /// Messages → prompt; `None` = the model has no template and the settings name none.
    pub template: Option<ChatTemplate>,
    /// How the model samples when a request says nothing.
    pub sampling: Sampling,
    /// Tokens that end an answer.
    pub stops: Vec<Spelled>,
    /// The tokenizer's end of text, where a template is used: it ends chat answers, too.
    pub end_of_text: Option<Spelled>,
}

impl ServedModel {
    /// Reads the folder. `template`: the setting `openai.template`.
    pub fn load(dir: &Path, template: &str) -> Result<ServedModel, TemplateError> {
        let failed = |message: String| TemplateError { path: dir.display().to_string(), message };
        let template = ChatTemplate::load(dir, template)?;
        let tokenizer = folder::load_tokenizer(dir).map_err(failed)?;
        let defaults = load_generation(dir, &tokenizer).map_err(failed)?;
        let spelled = |token: u32| match tokenizer.decode(&[token], false) {
            Ok(text) => Ok((token, text)),
            Err(error) => Err(failed(format!("token {token}: {error}"))),
        };
        let eos_token = template.as_ref().and_then(ChatTemplate::eos_token);
        let end_of_text = eos_token.and_then(|token| tokenizer.token_to_id(token));
        Ok(ServedModel {
            template,
            sampling: defaults.sampling,
            stops: defaults.stop_tokens.into_iter().map(spelled).collect::<Result<_, _>>()?,
            end_of_text: end_of_text.map(spelled).transpose()?,
        })
    }
}
