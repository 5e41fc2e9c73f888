//! `POST /v1/users/{id}/refresh` (write scope): puts a user at the head of the due queue; 202 before it is done.
//!
//! Class 0: before everybody else, and whatever the token budget says. An unchanged prompt still makes it a skip. There is
//! no waiting for the result yet: a `wait_ms` is refused by name.

use super::body::{read_body, require_json};
use super::features::path_user;
use super::{ApiError, ApiState, Scope};
use crate::refresh::CLASS_SYNC;
use crate::store::DueEntry;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// Marks the user due in class 0; 404 for a user without events. `seq` is what the refresh will have read at least.
pub async fn post_refresh(
    State(state): State<Arc<ApiState>>,
    user: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    state.keys.require(&headers, Scope::Write)?;
    require_json(&headers)?;
    let user = path_user(user)?;
    let options = read_body(body, state.limits.max_body_bytes).await?;
    if !options.is_empty() {
        check_options(&options)?;
    }
    let found = state.store.histories(std::slice::from_ref(&user)).await?.pop().flatten();
    let history = found.filter(|history| history.state.has_events());
    let seq = history.ok_or_else(|| ApiError::NotFound(format!("user {user:?} has no events")))?.state.seq;
    let due_ms = state.store.now_ms().await?;
    let entry = DueEntry { user, class: CLASS_SYNC, due_ms };
    state.store.mark_due(&state.bundle.manifest.space, &[entry]).await?;
    state.wake.notify_one();
    Ok((StatusCode::ACCEPTED, Json(json!({ "queued": true, "seq": seq }))))
}

/// An empty object, or none.
fn check_options(body: &[u8]) -> Result<(), ApiError> {
    let options: serde_json::Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("body: {error}")))?;
    match options.keys().next().map(String::as_str) {
        None => Ok(()),
        Some("wait_ms") => {
            Err(ApiError::field("wait_ms", "is not built yet; leave it out and read the features later"))
        }
        Some(other) => Err(ApiError::field(other, "unknown field")),
    }
}
