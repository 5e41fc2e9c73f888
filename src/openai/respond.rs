//! The response to a request for completions: whole, or piece by piece.
//!
//! In: [`Choice`]s under way and the resource's form ([`Shape`]). Out: an HTTP response. Callers: `completions`, `chat`.

use super::OpenAiError;
use super::answer::{self, Answer, Choice, Token, Usage};
use super::stream::stream;
use crate::llm::Finish;
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// How a resource writes the entries of `choices`.
pub trait Shape: Send + 'static {
    /// The fields of every chunk, or of the whole response, but `choices` and `usage`; an object with at least one field.
    fn head(&self) -> &Value;
    /// A whole answer.
    fn whole(&self, index: usize, answer: &Answer) -> Value;
    /// Sent before anything of an answer, if the resource has such a thing.
    fn opening(&self, index: usize) -> Option<Value>;
    /// One token.
    fn token(&self, index: usize, token: &Token) -> Value;
    /// The end of an answer.
    fn closing(&self, index: usize, finish: Finish) -> Value;
}

/// What the answers of one request have in common.
pub struct Plan {
    /// Piece by piece, or whole.
    pub stream: bool,
    /// Answers per prompt.
    pub n: usize,
    /// End with the counts.
    pub include_usage: bool,
    /// Tokens without text (half characters) are sent, too, for their log-probabilities.
    pub every_token: bool,
}

/// Answers as the plan says.
pub async fn respond(choices: Vec<Choice>, shape: impl Shape, plan: Plan) -> Result<Response, OpenAiError> {
    if plan.stream {
        return Ok(stream(choices, shape, plan));
    }
    let answers = answer::collect(choices).await?;
    let mut usage = Usage::default();
    for (index, answer) in answers.iter().enumerate() {
        usage.add(&answer.generation, index, plan.n);
    }
    let written: Vec<Value> = answers.iter().enumerate().map(|(index, answer)| shape.whole(index, answer)).collect();
    let mut whole = shape.head().clone();
    whole["choices"] = json!(written);
    whole["usage"] = usage.json();
    Ok(Json(whole).into_response())
}
