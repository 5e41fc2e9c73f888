//! One serializer for training and serving: a user's behaviour → prompt text, and the LLM's text → reasoning and answer.
//!
//! In: [`PromptInput`] (titles already looked up in the catalogue). Out: [`RenderedPrompt`], [`ParsedAnswer`].
//! Callers: `refresh` (serving), `train` (the same text for training; never a copy of this code).

mod answer;
mod history;
mod mode;
mod render;
mod sanitise;
mod schema;

pub use answer::{answer_text, completion, parse, split_answer};
pub use history::history_text;
pub use mode::PromptMode;
pub use render::{prompt_hash, render};
pub use sanitise::sanitise;
pub use schema::PromptError;

use serde::{Deserialize, Serialize};

/// Opens the reasoning.
pub const THINK_OPEN: &str = "<think>";
/// Closes the reasoning.
pub const THINK_CLOSE: &str = "</think>";
/// Opens the answer.
pub const ANSWER_OPEN: &str = "<answer>";
/// Closes the answer; generation stops here.
pub const ANSWER_CLOSE: &str = "</answer>";

/// One behaviour as the prompt shows it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PromptItem {
    /// Title from the catalogue, unsanitised.
    pub title: String,
    /// Broadest first, unsanitised.
    pub categories: Vec<String>,
    /// Shop currency.
    pub price: Option<f64>,
    /// Configured action name.
    pub action: String,
    /// Where it happened.
    pub domain: Option<String>,
}

/// What a prompt is made of.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PromptInput {
    /// Profile attributes, sorted by name; sensitive ones are dropped by the serializer.
    pub profile: Vec<(String, String)>,
    /// Newest first.
    pub engagements: Vec<PromptItem>,
    /// Newest first.
    pub queries: Vec<String>,
}

/// `prompt.toml` of a bundle: everything that decides the prompt's text. What a later version adds is passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptSchema {
    /// Name and version, part of provenance.
    pub id: String,
    /// Most engagements shown (50 by default, fewer for small models).
    pub max_engagements: usize,
    /// Most queries shown.
    pub max_queries: usize,
    /// Titles are cut to this many characters.
    pub max_title_chars: usize,
    /// Most prompt tokens; oldest history is left out first, never the instruction.
    pub max_prompt_tokens: usize,
    /// Most generated tokens.
    pub max_new_tokens: usize,
    /// Profile attributes that never enter a prompt.
    #[serde(default)]
    pub sensitive_attributes: Vec<String>,
    /// Instruction at the head of every prompt; may be empty for models trained on this one task.
    #[serde(default)]
    pub instruction: String,
    /// How the model was trained to answer; the first is how it is asked unless told otherwise.
    #[serde(default = "mode::think_alone", skip_serializing_if = "mode::is_think_alone")]
    pub modes: Vec<PromptMode>,
}

/// A prompt ready for the LLM; ends as its [`PromptMode`] says.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderedPrompt {
    /// Full text.
    pub text: String,
    /// Some of the allowed history was left out to fit `max_prompt_tokens`.
    pub truncated: bool,
    /// Engagements shown.
    pub engagements_used: usize,
}

/// The LLM's text, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParsedAnswer {
    /// Between the think tags; empty where none was asked for; what could be found if the format is broken.
    pub reasoning: String,
    /// Between the answer tags; what could be found if the format is broken.
    pub answer: String,
    /// All that the mode asks for is present, closed, in order, not empty, and nothing is around it.
    pub format_ok: bool,
}

impl ParsedAnswer {
    /// What is embedded for serving: the answer, then the reasoning; the encoder's limit cuts the tail (DESIGN 5.3).
    pub fn embedding_text(&self) -> String {
        format!("{} {}", self.answer, self.reasoning).trim().to_string()
    }
}
