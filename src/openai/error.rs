//! One error type, one mapping to status codes, OpenAI's body: `{"error": {"message", "type", "param", "code"}}`.
//!
//! In: what went wrong in this room, in the engine or in the shared body and key checks. Out: a response. Callers: all
//! handlers here; `stream` uses [`OpenAiError::body`] for what fails after the head of the answer was sent.

use crate::encode::EncodeError;
use crate::http::ApiError;
use crate::llm::LlmError;
use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use thiserror::Error;

/// What a request can be answered with instead of a result.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum OpenAiError {
    /// `param` is the request's field, empty where there is none.
    #[error("{message}")]
    Invalid { param: String, message: String },
    #[error("model {model:?} is not served here for this call; GET /v1/models lists what is: {served}")]
    UnknownModel { model: String, served: String },
    #[error("no key with the scope admin in the authorization header (Bearer KEY)")]
    Unauthorized,
    #[error("no resource at {0}; known are /v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models, /health")]
    NotFound(String),
    #[error("{0} is not allowed here")]
    MethodNotAllowed(Method),
    #[error("body larger than {limit} bytes (server.max_body_bytes)")]
    TooLarge { limit: usize },
    #[error("{0}")]
    SlowBody(String),
    #[error("{0}")]
    UnsupportedEncoding(String),
    #[error("{0}")]
    TooManyBodies(String),
    #[error("{limit} requests are under way already (openai.max_in_flight); retry later")]
    Busy { limit: usize },
    #[error(
        "the model has no chat template: put chat_template.jinja into its folder in the bundle, or set openai.template \
         (a file, or \"plain\")"
    )]
    NoTemplate,
    #[error("messages: the chat template refuses them: {0}")]
    Template(String),
    #[error(transparent)]
    Llm(#[from] LlmError),
    #[error(transparent)]
    Encoder(#[from] EncodeError),
    #[error("the work ended without an answer: {0}")]
    Lost(String),
    #[error("the models of the active bundle are not loaded here; ask a replica with the role infer")]
    NotLoaded,
}

/// What a client sees of an error besides its message.
struct Mapped {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
}

impl OpenAiError {
    /// A 400 that names the request's field.
    pub fn field(param: &str, message: impl std::fmt::Display) -> OpenAiError {
        OpenAiError::Invalid { param: param.to_string(), message: format!("{param}: {message}") }
    }

    /// A 400 without a field.
    pub fn invalid(message: impl Into<String>) -> OpenAiError {
        OpenAiError::Invalid { param: String::new(), message: message.into() }
    }

    fn mapped(&self) -> Mapped {
        let invalid = |status, code| Mapped { status, kind: "invalid_request_error", code };
        let server = |status, code| Mapped { status, kind: "server_error", code: Some(code) };
        let busy = || Mapped {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: "rate_limit_error",
            code: Some("rate_limit_exceeded"),
        };
        match self {
            OpenAiError::Invalid { .. } | OpenAiError::Llm(LlmError::Invalid(_)) => {
                invalid(StatusCode::BAD_REQUEST, None)
            }
            OpenAiError::NoTemplate | OpenAiError::Template(_) => {
                invalid(StatusCode::BAD_REQUEST, Some("chat_template"))
            }
            OpenAiError::Llm(LlmError::PromptTooLong { .. }) => {
                invalid(StatusCode::BAD_REQUEST, Some("context_length_exceeded"))
            }
            OpenAiError::Unauthorized => {
                Mapped { status: StatusCode::UNAUTHORIZED, kind: "authentication_error", code: Some("invalid_api_key") }
            }
            OpenAiError::UnknownModel { .. } => invalid(StatusCode::NOT_FOUND, Some("model_not_found")),
            OpenAiError::NotFound(_) => invalid(StatusCode::NOT_FOUND, Some("not_found")),
            OpenAiError::MethodNotAllowed(_) => invalid(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed")),
            OpenAiError::TooLarge { .. } => invalid(StatusCode::PAYLOAD_TOO_LARGE, Some("payload_too_large")),
            OpenAiError::SlowBody(_) => invalid(StatusCode::REQUEST_TIMEOUT, Some("timeout")),
            OpenAiError::UnsupportedEncoding(_) => {
                invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, Some("unsupported_encoding"))
            }
            OpenAiError::Busy { .. }
            | OpenAiError::TooManyBodies(_)
            | OpenAiError::Llm(LlmError::Overloaded { .. }) => busy(),
            OpenAiError::Llm(LlmError::Closed) | OpenAiError::NotLoaded => {
                server(StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
            OpenAiError::Llm(LlmError::Deadline { .. }) => server(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
            OpenAiError::Llm(_) | OpenAiError::Encoder(_) | OpenAiError::Lost(_) => {
                server(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed")
            }
        }
    }

    /// OpenAI's error body for a request that no route has seen.
    pub fn refused(code: &str, message: &str) -> Value {
        json!({ "error": { "message": message, "type": "invalid_request_error", "param": null, "code": code } })
    }

    /// OpenAI's error body.
    pub fn body(&self) -> Value {
        let Mapped { kind, code, .. } = self.mapped();
        let param = match self {
            OpenAiError::Invalid { param, .. } if !param.is_empty() => Some(param.as_str()),
            OpenAiError::UnknownModel { .. } => Some("model"),
            OpenAiError::NoTemplate | OpenAiError::Template(_) => Some("messages"),
            _ => None,
        };
        let message = match self {
            OpenAiError::Llm(error @ LlmError::PromptTooLong { .. }) => {
                format!("{error}; shorten the prompt or lower max_tokens")
            }
            other => other.to_string(),
        };
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl From<ApiError> for OpenAiError {
    fn from(error: ApiError) -> OpenAiError {
        match error {
            ApiError::Unauthorized { .. } => OpenAiError::Unauthorized,
            ApiError::TooLarge { limit } => OpenAiError::TooLarge { limit },
            ApiError::Overloaded { limit } => OpenAiError::Busy { limit },
            ApiError::SilentBody { .. } | ApiError::SlowBody { .. } => OpenAiError::SlowBody(error.to_string()),
            ApiError::UnsupportedEncoding { .. } => OpenAiError::UnsupportedEncoding(error.to_string()),
            ApiError::TooManyBodies { .. } => OpenAiError::TooManyBodies(error.to_string()),
            other => OpenAiError::invalid(other.to_string()),
        }
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let status = self.mapped().status;
        let mut response = (status, Json(self.body())).into_response();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Unknown path.
pub async fn not_found(uri: Uri) -> OpenAiError {
    OpenAiError::NotFound(uri.path().to_string())
}

/// Known path, other method.
pub async fn method_not_allowed(method: Method) -> OpenAiError {
    OpenAiError::MethodNotAllowed(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_engine_has_its_status_type_and_code() {
        let too_long = LlmError::PromptTooLong { tokens: 9, limit: 3 };
        let overloaded = LlmError::Overloaded { requests: 1, tokens: 1 };
        for (error, status, kind, code) in [
            (too_long, 400, "invalid_request_error", json!("context_length_exceeded")),
            (LlmError::Invalid("stop: bad".into()), 400, "invalid_request_error", Value::Null),
            (overloaded, 429, "rate_limit_error", json!("rate_limit_exceeded")),
            (LlmError::Deadline { new_tokens: 3 }, 504, "server_error", json!("deadline_exceeded")),
            (LlmError::Closed, 503, "server_error", json!("unavailable")),
            (LlmError::Run("nan".into()), 500, "server_error", json!("engine_failed")),
        ] {
            let message = error.to_string();
            let error = OpenAiError::from(error);
            let body = error.body();
            assert_eq!((&body["error"]["type"], &body["error"]["code"]), (&json!(kind), &code));
            assert!(body["error"]["message"].as_str().expect("message").starts_with(&message));
            let response = error.into_response();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), matches!(status, 429 | 503));
        }
    }

    #[test]
    fn a_field_is_the_param() {
        let body = OpenAiError::field("top_p", "must be a number").body();
        assert_eq!(body["error"]["param"], json!("top_p"));
        assert_eq!(body["error"]["message"], json!("top_p: must be a number"));
        assert_eq!(OpenAiError::invalid("x").body()["error"]["param"], Value::Null);
    }
}
