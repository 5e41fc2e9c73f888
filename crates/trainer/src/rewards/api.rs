//! The routes: who may call, what a body must be, what it is answered with.

use super::metrics::Metrics;
use super::wire::{AnswerIn, CallError, Described, RewardsRequest, RewardsResponse};
use super::worker::{Answer, Job, Valued, Worker};
use super::{ServeError, ServeSettings};
use crate::align::{PromptCase, Start};
use crate::sft::TextTokenizer;
use crate::simulate::CategoryGrounder;
use crate::stages::AlignSources;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::LengthLimitError;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use taiji::http::{ApiError, ApiKeys, Scope, method_not_allowed, not_found, parse_json};
use taiji::prompt::PromptMode;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// From a body's first byte to its last.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What the routes share.
pub(super) struct Service {
    keys: ApiKeys,
    prompts: Arc<Vec<PromptCase>>,
    places: HashMap<String, usize>,
    tokenizer: TextTokenizer,
    mode: PromptMode,
    names: Vec<String>,
    start: Option<Start>,
    max_answers: usize,
    max_waiting: usize,
    max_body_bytes: usize,
    jobs: mpsc::Sender<Job>,
    metrics: Arc<Metrics>,
}

pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/rewards", get(describe).post(rewards))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || StatusCode::OK))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(service)
}

impl Service {
    /// Starts the worker; it ends when the service is dropped.
    pub(super) fn new(sources: AlignSources, keys: ApiKeys, settings: &ServeSettings) -> Result<Self, ServeError> {
        let AlignSources { schema, tokenizer, items, prompts, rewards, written } = sources;
        let start = written.map(|written| written.start(&rewards)).transpose()?;
        let (jobs, queue) = mpsc::channel(settings.max_waiting);
        let metrics = Arc::new(Metrics::new()?);
        let prompts = Arc::new(prompts);
        let names = rewards.names().into_iter().map(str::to_string).collect();
        let grounder = CategoryGrounder::new(&items);
        let worker = Worker {
            prompts: prompts.clone(),
            rewards,
            items,
            grounder,
            most: settings.max_answers,
            metrics: metrics.clone(),
        };
        std::thread::Builder::new()
            .name("rewards".into())
            .spawn(move || worker.run(queue))
            .map_err(ServeError::Serve)?;
        let places = prompts.iter().enumerate().map(|(place, prompt)| (prompt.user_id.clone(), place)).collect();
        let ServeSettings { max_answers, max_waiting, max_body_bytes, .. } = *settings;
        let mode = schema.mode();
        Ok(Self {
            keys,
            prompts,
            places,
            tokenizer,
            mode,
            names,
            start,
            max_answers,
            max_waiting,
            max_body_bytes,
            jobs,
            metrics,
        })
    }

    async fn call(&self, headers: &HeaderMap, body: Body) -> Result<RewardsResponse, CallError> {
        self.keys.require(headers, Scope::Read)?;
        let bytes = timeout(BODY_TIMEOUT, axum::body::to_bytes(body, self.max_body_bytes)).await;
        let bytes = bytes.map_err(|_| CallError::SlowBody { seconds: BODY_TIMEOUT.as_secs() })?;
        let bytes = bytes.map_err(|error| self.unread(&error))?;
        let request: RewardsRequest = parse_json(&bytes)?;
        let found = request.answers.len();
        if found == 0 {
            return Err(CallError::Empty);
        }
        if found > self.max_answers {
            return Err(CallError::TooMany { found, most: self.max_answers });
        }
        let mode = request.mode.unwrap_or(self.mode);
        let answers: Vec<Answer> = request
            .answers
            .into_iter()
            .enumerate()
            .map(|(place, answer)| self.checked(place, answer, mode))
            .collect::<Result<_, _>>()?;
        let prompts: Vec<usize> = answers.iter().map(|answer| answer.prompt).collect();
        let (reply, waits) = oneshot::channel();
        self.jobs.try_send(Job { answers, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CallError::Busy { waiting: self.max_waiting },
            mpsc::error::TrySendError::Closed(_) => CallError::Ended,
        })?;
        let valued = waits.await.map_err(|_| CallError::Ended)?.map_err(CallError::Rewards)?;
        Ok(self.response(valued, &prompts))
    }

    fn unread(&self, error: &axum::Error) -> CallError {
        match error.source().is_some_and(|source| source.is::<LengthLimitError>()) {
            true => CallError::TooLarge { limit: self.max_body_bytes },
            false => ApiError::bad_request(format!("body could not be read: {error}")).into(),
        }
    }

    fn checked(&self, place: usize, answer: AnswerIn, mode: PromptMode) -> Result<Answer, CallError> {
        let AnswerIn { user_id, tokens, text } = answer;
        let wrong = |message: String| CallError::Answer { place, message };
        let Some(prompt) = self.places.get(&user_id).copied() else {
            return Err(CallError::UnknownUser { place, user_id });
        };
        let (text, tokens) = match (tokens, text) {
            (Some(ids), None) => {
                let vocab = self.tokenizer.vocab_size();
                if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
                    return Err(wrong(format!(
                        "token {id} is none of the checkpoint's {vocab}: is it of another tokenizer?"
                    )));
                }
                (self.tokenizer.decode(&ids).map_err(|error| wrong(error.to_string()))?, ids.len())
            }
            (None, Some(text)) => {
                let tokens = self.tokenizer.encode(&text).map_err(|error| wrong(error.to_string()))?.len();
                (text, tokens)
            }
            _ => return Err(wrong("give tokens or text, one of them".into())),
        };
        Ok(Answer { prompt, text, tokens, mode })
    }

    fn response(&self, valued: Valued, prompts: &[usize]) -> RewardsResponse {
        let named = |rewards: Vec<Vec<Option<f64>>>| self.names.iter().cloned().zip(rewards).collect();
        let start = self.start.as_ref().map(|start| {
            let of = |reward: usize| prompts.iter().map(|prompt| start.means(*prompt)[reward]).collect();
            self.names.iter().enumerate().map(|(reward, name)| (name.clone(), of(reward))).collect()
        });
        RewardsResponse {
            names: self.names.clone(),
            rewards: named(valued.rewards),
            format: valued.format,
            items: valued.items,
            start,
        }
    }

    fn described(&self) -> Described {
        let deviations = |start: &Start| -> BTreeMap<String, f64> {
            self.names.iter().cloned().zip(start.deviations.iter().copied()).collect()
        };
        Described {
            names: self.names.clone(),
            mode: self.mode,
            users: self.prompts.len(),
            max_answers: self.max_answers,
            start_deviations: self.start.as_ref().map(deviations),
        }
    }
}

async fn rewards(State(service): State<Arc<Service>>, headers: HeaderMap, body: Body) -> Response {
    let response = match service.call(&headers, body).await {
        Ok(response) => Json(response).into_response(),
        Err(error) => error.into_response(),
    };
    service.metrics.request(response.status().as_u16());
    response
}

async fn describe(State(service): State<Arc<Service>>, headers: HeaderMap) -> Result<Json<Described>, CallError> {
    service.keys.require(&headers, Scope::Read)?;
    Ok(Json(service.described()))
}

async fn metrics(State(service): State<Arc<Service>>) -> Result<Response, CallError> {
    let text = service.metrics.text().map_err(|error| CallError::Rewards(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
