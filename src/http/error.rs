//! One error type, one mapping to status codes, one body: `{"error": {"code", "message", "details"}}`.

use crate::store::StoreError;
use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use thiserror::Error;

/// What a request can be answered with instead of a result.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ApiError {
    #[error("{message}")]
    BadRequest { message: String, details: Value },
    #[error("no key with the scope {scope} in the authorization header")]
    Unauthorized { scope: &'static str },
    #[error("{0}")]
    NotFound(String),
    #[error("{method} is not allowed here")]
    MethodNotAllowed { method: Method },
    #[error("served are {served}, not {accept}")]
    NotAcceptable { accept: String, served: String },
    #[error("a body may be {taken}, not {sent}")]
    UnsupportedMediaType { sent: String, taken: String },
    #[error("the answer cannot be encoded: {0}")]
    Unencodable(String),
    #[error("body larger than {limit} bytes; send fewer events per call")]
    TooLarge { limit: usize },
    #[error("the body paused for more than {seconds} s")]
    SilentBody { seconds: u64 },
    #[error("the body took longer than {ms} ms (server.body_timeout_ms)")]
    SlowBody { ms: u128 },
    #[error("bodies are taken as they are, not with content-encoding {encoding:?}")]
    UnsupportedEncoding { encoding: String },
    #[error(
        "bodies that have not come whole, or wait for a place, hold {limit} bytes already (server.max_pending_body_bytes); retry later"
    )]
    TooManyBodies { limit: usize },
    #[error("{limit} requests are under way already; retry later")]
    Overloaded { limit: usize },
    #[error("the service is starting: its store or bundle is not there yet; retry later")]
    Starting,
    #[error("the budget of refreshes asked for by readers is used up; retry after {retry_after_ms} ms")]
    OverBudget { retry_after_ms: u64, details: Value },
    #[error("{limit} requests wait for refreshes already; retry later, or do not wait")]
    TooManyWaiting { limit: usize },
    #[error("{0}; put the record right; where it is a user's, DELETE /v1/users/{{id}} clears it")]
    Unreadable(StoreError),
    #[error("the store failed; nothing of this call was acknowledged: {0}")]
    Store(StoreError),
}

impl ApiError {
    /// A 400 without details.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::BadRequest { message: message.into(), details: Value::Null }
    }

    /// A 400 that names the request's field.
    pub fn field(field: &str, message: impl Into<String>) -> ApiError {
        ApiError::BadRequest { message: format!("{field}: {}", message.into()), details: json!({ "field": field }) }
    }

    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            ApiError::BadRequest { .. } => (StatusCode::BAD_REQUEST, "bad_request"),
            ApiError::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, "unauthorized"),
            ApiError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            ApiError::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            ApiError::NotAcceptable { .. } => (StatusCode::NOT_ACCEPTABLE, "not_acceptable"),
            ApiError::UnsupportedMediaType { .. } => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            ApiError::Unencodable(_) => (StatusCode::INTERNAL_SERVER_ERROR, "unencodable"),
            ApiError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            ApiError::SilentBody { .. } | ApiError::SlowBody { .. } => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            ApiError::UnsupportedEncoding { .. } => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding"),
            ApiError::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
            ApiError::OverBudget { .. } => (StatusCode::TOO_MANY_REQUESTS, "refresh_budget"),
            ApiError::Overloaded { .. } | ApiError::TooManyBodies { .. } | ApiError::TooManyWaiting { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "overloaded")
            }
            ApiError::Store(StoreError::NotDurable { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "not_durable"),
            ApiError::Store(StoreError::Full { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "store_full"),
            ApiError::Store(StoreError::Denied { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "store_denied"),
            ApiError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
            ApiError::Unreadable(_) => (StatusCode::INTERNAL_SERVER_ERROR, "corrupt_record"),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        if error.is_unreadable() { ApiError::Unreadable(error) } else { ApiError::Store(error) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let message = self.to_string();
        let (details, after_ms) = match self {
            ApiError::BadRequest { details, .. } => (details, 1000),
            ApiError::OverBudget { retry_after_ms, details } => (details, retry_after_ms),
            _ => (Value::Null, 1000),
        };
        let mut response = json_error(status, code, &message, details);
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after_ms.div_ceil(1000)));
        }
        response
    }
}

/// An answer with the error body.
pub fn json_error(status: StatusCode, code: &str, message: &str, details: Value) -> Response {
    (status, Json(error_body(code, message, details))).into_response()
}

/// The error body.
pub fn error_body(code: &str, message: &str, details: Value) -> Value {
    json!({ "error": { "code": code, "message": message, "details": details } })
}

/// Unknown path.
pub async fn not_found(uri: Uri) -> ApiError {
    ApiError::NotFound(format!("no resource at {}", uri.path()))
}

/// Known path, other method.
pub async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::MethodNotAllowed { method }
}
