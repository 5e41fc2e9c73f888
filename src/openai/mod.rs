//! The OpenAI-compatible port, off by default: prompts, chats and texts in; answers, streams and vectors out.
//!
//! It lets a bundle act as a teacher for another one, and lets load tools and OpenAI's client libraries drive the engine.
//! In: HTTP requests with an admin key. Out: JSON and server-sent events in OpenAI's shapes. Callers: `cli::wiring`
//! builds one [`OpenAiState`], `cli::serve` serves [`router`]. One file a resource; `options` and `fields` read
//! requests, `answer` and `stream` write answers.

mod answer;
mod chat;
mod completions;
mod embeddings;
mod error;
mod fields;
mod models;
mod options;
mod respond;
mod stream;

#[cfg(test)]
mod tests;

pub use error::OpenAiError;

use crate::config::OpenAiSettings;
use crate::encode::Encoder;
use crate::http::{self, Admission, ApiKeys, BodyLimits, Scope, read_body};
use crate::live::{Live, View};
use crate::llm::{LlmEngine, Prompt, ServedModel};
use crate::telemetry::Metrics;
use axum::Router;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use fields::Fields;
use rand::Rng;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the handlers share.
pub struct OpenAiState {
    /// The models.
    pub live: Arc<Live>,
    /// `[openai]`.
    pub settings: OpenAiSettings,
    /// What bodies may cost.
    pub bodies: BodyLimits,
    /// Keys; none = open.
    pub keys: ApiKeys,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Unix seconds of the start.
    pub started: u64,
}

/// The models of one request, all of one epoch.
struct Serving {
    /// Writes answers.
    llm: Arc<dyn LlmEngine>,
    /// Text → vector.
    encoder: Arc<dyn Encoder>,
    /// Chat template, default sampling, stops.
    model: Arc<ServedModel>,
    /// `openai.max_tokens_default`.
    max_tokens_default: usize,
}

/// The port's routes over a state.
pub fn router(state: Arc<OpenAiState>) -> Router {
    let (bodies, keys) = (state.bodies.clone(), state.keys.clone());
    let refuse = |error| OpenAiError::from(error).into_response();
    let admission = Arc::new(Admission::new(state.settings.max_in_flight, bodies, keys, refuse, state.metrics.clone()));
    Router::new()
        .route("/v1/completions", post(completions::post_completions))
        .route("/v1/chat/completions", post(chat::post_chat_completions))
        .route("/v1/embeddings", post(embeddings::post_embeddings))
        .route("/v1/models", get(models::list_models))
        .route("/v1/models/{id}", get(models::get_model))
        .route("/health", get(models::health))
        .method_not_allowed_fallback(error::method_not_allowed)
        .fallback(error::not_found)
        .with_state(state)
        .layer(middleware::from_fn_with_state(admission, http::admit))
}

/// Unix time in seconds.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl OpenAiState {
    /// What a request works with to its end.
    fn serving(&self) -> Result<Serving, OpenAiError> {
        self.of_view(&self.live.view()).ok_or(OpenAiError::NotLoaded)
    }

    fn of_view(&self, view: &View) -> Option<Serving> {
        let models = view.models()?;
        let (llm, encoder, model) = (models.llm.clone(), models.encoder.clone(), models.served.clone()?);
        Some(Serving { llm, encoder, model, max_tokens_default: self.settings.max_tokens_default })
    }

    fn require_key(&self, headers: &HeaderMap) -> Result<(), OpenAiError> {
        self.keys.require(headers, Scope::Admin)?;
        Ok(())
    }

    /// Key, body, JSON; the key comes before the body.
    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Fields, OpenAiError> {
        self.require_key(headers)?;
        Fields::parse(&read_body(body).await?)
    }

    /// Takes `model`, which must be the one that serves this call; absent = that one.
    fn require_model(&self, fields: &mut Fields, served: &str) -> Result<String, OpenAiError> {
        match fields.text("model")? {
            Some(model) if model != served => Err(OpenAiError::UnknownModel { model, served: served.to_string() }),
            _ => Ok(served.to_string()),
        }
    }

    /// Refuses a request that asks for too many answers or vectors.
    fn check_count(&self, param: &str, count: usize) -> Result<(), OpenAiError> {
        let most = self.settings.max_inputs;
        match count > most {
            true => {
                Err(OpenAiError::field(param, format!("{count} in one request, at most {most} (openai.max_inputs)")))
            }
            false => Ok(()),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let time = self.settings.deadline_ms;
        (time > 0).then(|| Duration::from_millis(time))
    }
}

impl Serving {
    /// Tokens a prompt's answer may have: what was asked for, or the default as far as it fits.
    fn budget(&self, asked: Option<usize>, prompt: &Prompt) -> usize {
        if let Some(asked) = asked {
            return asked;
        }
        let prompt_tokens = match prompt {
            Prompt::Text(text) => self.llm.count_tokens(text),
            Prompt::Tokens(tokens) => tokens.len(),
        };
        let room = self.llm.prompt_limit(0).saturating_sub(prompt_tokens);
        // A prompt that leaves no room is refused by the engine, which knows the numbers.
        self.max_tokens_default.min(room).max(1)
    }

    /// What every answer and every chunk begins with.
    fn head(&self, prefix: &str, object: &str, model: &str) -> Value {
        let id: u128 = rand::rng().random();
        json!({
            "id": format!("{prefix}-{id:032x}"),
            "object": object,
            "created": unix_seconds(),
            "model": model,
            "system_fingerprint": self.llm.model_id(),
        })
    }
}
