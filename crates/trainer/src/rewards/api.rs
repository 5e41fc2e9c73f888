//! The routes: who may call, what a body must be, what it is answered with.

use super::metrics::Metrics;
use super::wire::{AnswerIn, CallError, Described, RewardsRequest, RewardsResponse};
use super::worker::{Answer, Job, Valued, Worker, Written};
use super::{ServeError, ServeSettings};
use crate::align::{PromptCase, Start};
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
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// From a body's first byte to its last.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What the routes share.
pub(super) struct Service {
    keys: ApiKeys,
    prompts: Arc<Vec<PromptCase>>,
    by_user: HashMap<String, usize>,
    vocab_size: usize,
    mode: PromptMode,
    names: Vec<String>,
    start: Option<Start>,
    max_answers: usize,
    max_waiting: usize,
    max_body_bytes: usize,
    jobs: mpsc::Sender<Job>,
    /// Calls that may be under way, their bodies included: one is valued, the others wait.
    places: Semaphore,
    metrics: Arc<Metrics>,
}

pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/rewards", get(describe).post(rewards))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(service)
}

impl Service {
    /// Starts the worker; it ends when the service is dropped.
    pub(super) fn new(sources: AlignSources, keys: ApiKeys, settings: &ServeSettings) -> Result<Self, ServeError> {
        let AlignSources { schema, tokenizer, vocab_size, items, prompts, rewards, written } = sources;
        let start = written.map(|written| written.start(&rewards)).transpose()?;
        let (jobs, queue) = mpsc::channel(settings.max_waiting + 1);
        let metrics = Arc::new(Metrics::new()?);
        let prompts = Arc::new(prompts);
        let names = rewards.names().into_iter().map(str::to_string).collect();
        let grounder = CategoryGrounder::new(&items);
        let worker = Worker {
            prompts: prompts.clone(),
            tokenizer,
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
        let by_user = prompts.iter().enumerate().map(|(place, prompt)| (prompt.user_id.clone(), place)).collect();
        let ServeSettings { max_answers, max_waiting, max_body_bytes, .. } = *settings;
        Ok(Self {
            keys,
            prompts,
            by_user,
            vocab_size,
            mode: schema.mode(),
            names,
            start,
            max_answers,
            max_waiting,
            max_body_bytes,
            jobs,
            places: Semaphore::new(max_waiting + 1),
            metrics,
        })
    }

    async fn call(&self, headers: &HeaderMap, body: Body) -> Result<RewardsResponse, CallError> {
        self.keys.require(headers, Scope::Read)?;
        let busy = |_| CallError::Busy { waiting: self.max_waiting };
        let _place = self.places.try_acquire().map_err(busy)?;
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
        self.jobs.send(Job { answers, reply }).await.map_err(|_| CallError::Ended)?;
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
        let Some(prompt) = self.by_user.get(&user_id).copied() else {
            return Err(CallError::UnknownUser { place, user_id });
        };
        let written = match (tokens, text) {
            (Some(tokens), None) => {
                let vocab = self.vocab_size;
                if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab) {
                    return Err(wrong(format!(
                        "token {id} is none of the checkpoint's {vocab}: is it of another tokenizer?"
                    )));
                }
                Written::Tokens(tokens)
            }
            (None, Some(text)) => Written::Text(text),
            _ => return Err(wrong("give tokens or text, one of them".into())),
        };
        Ok(Answer { prompt, written, mode })
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
            max_body_bytes: self.max_body_bytes,
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

/// Not well where the worker has ended: nothing can be valued any more.
async fn health(State(service): State<Arc<Service>>) -> StatusCode {
    if service.jobs.is_closed() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

async fn metrics(State(service): State<Arc<Service>>) -> Result<Response, CallError> {
    let text = service.metrics.text().map_err(|error| CallError::Rewards(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
