//! What goes over the wire, and what a call can be answered with instead.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use taiji::http::{ApiError, json_error};
use taiji::prompt::PromptMode;
use thiserror::Error;

/// `POST /v1/rewards`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardsRequest {
    /// In any order; those to one prompt need not stand together.
    pub answers: Vec<AnswerIn>,
    /// How the prompts ended, and so what an answer must look like. Default: the recipe's.
    #[serde(default)]
    pub mode: Option<PromptMode>,
}

/// One answer: its tokens, or its text with all tags.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerIn {
    /// Whom the prompt was about.
    pub user_id: String,
    /// As drawn, of the recipe's checkpoint's tokenizer: nothing of it is lost, as special tokens are where a trainer decodes.
    #[serde(default)]
    pub tokens: Option<Vec<u32>>,
    /// As text.
    #[serde(default)]
    pub text: Option<String>,
}

/// What the answers are worth; every list has one entry an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RewardsResponse {
    /// Of the rewards, in the recipe's order.
    pub names: Vec<String>,
    /// By name; `null` where one does not apply.
    pub rewards: BTreeMap<String, Vec<Option<f64>>>,
    /// Whether it has the exact format.
    pub format: Vec<bool>,
    /// Id of the item that it names; `null` where it names none.
    pub items: Vec<Option<String>>,
    /// By name: mean over what the policy of the start answered to the same prompt, where the recipe has its roll-outs; 0 where the reward
    /// applies to none of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<BTreeMap<String, Vec<f64>>>,
}

/// `GET /v1/rewards`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Described {
    /// Of the rewards.
    pub names: Vec<String>,
    /// The recipe's.
    pub mode: PromptMode,
    /// Users that may be asked about.
    pub users: usize,
    /// Most answers of a request.
    pub max_answers: usize,
    /// Largest body of a request.
    pub max_body_bytes: usize,
    /// By name: deviation in the groups of the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_deviations: Option<BTreeMap<String, f64>>,
}

/// What a call is answered with instead of rewards.
#[derive(Debug, Error)]
pub(super) enum CallError {
    /// Key, JSON or fields.
    #[error("{0}")]
    Request(#[from] ApiError),
    #[error("answers is empty: send one or more")]
    Empty,
    #[error("{found} answers, at most {most} a call: split them")]
    TooMany { found: usize, most: usize },
    #[error("body larger than {limit} bytes: send fewer answers a call")]
    TooLarge { limit: usize },
    #[error("the body took longer than {seconds} s")]
    SlowBody { seconds: u64 },
    #[error("answers[{place}]: {message}")]
    Answer { place: usize, message: String },
    #[error(
        "answers[{place}]: user {user_id} has no prompt in the recipe's data: ask about the users of `taiji-trainer data export`"
    )]
    UnknownUser { place: usize, user_id: String },
    #[error("{waiting} requests wait already; retry later")]
    Busy { waiting: usize },
    /// A reward that is no number, an encoder that fails.
    #[error("{0}")]
    Rewards(String),
    #[error("the worker has ended; its message is in the log")]
    Ended,
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        let message = self.to_string();
        let (status, code) = match self {
            CallError::Request(error) => return error.into_response(),
            CallError::Empty | CallError::TooMany { .. } | CallError::Answer { .. } => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            CallError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            CallError::SlowBody { .. } => (StatusCode::REQUEST_TIMEOUT, "slow_body"),
            CallError::UnknownUser { .. } => (StatusCode::NOT_FOUND, "unknown_user"),
            CallError::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            CallError::Rewards(_) => (StatusCode::INTERNAL_SERVER_ERROR, "reward_failed"),
            CallError::Ended => (StatusCode::SERVICE_UNAVAILABLE, "ended"),
        };
        let mut response = json_error(status, code, &message, Value::Null);
        if status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
