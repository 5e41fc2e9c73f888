//! `POST /v1/users/{id}/refresh` (write scope): puts a user at the head of the due queue.
//!
//! Class 0: before everybody else, and whatever the token budget says; the readers' budget holds it instead, and over that the answer
//! is 429. An unchanged prompt still makes it a skip. Without
//! `wait_ms` the answer is 202 before it is done; with it, 200 and the user's row (so the key needs the read scope, too),
//! or 202 when the time is over or the process ends: the user stays queued.

use super::ApiState;
use super::features::{DEFAULT_GROUPS, Read, path_user};
use super::waiting::{Awaited, Waited, queue, refresh_and_wait};
use super::wire::{self, Encoding};
use crate::due::CLASS_SYNC;
use crate::http::{ApiError, RequestId, Scope, parse_json, read_body, require_json};
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

/// The body; none at all is the same as an empty one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshOptions {
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// Marks the user due in class 0; 404 for a user without events. `seq` is what the refresh will have read at least.
pub async fn post_refresh(
    State(state): State<Arc<ApiState>>,
    user: Result<Path<String>, PathRejection>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let key = state.keys.require(&headers, Scope::Write)?;
    require_json(&headers)?;
    let user = path_user(user)?;
    let body = read_body(body).await?;
    let options: RefreshOptions = if body.is_empty() { RefreshOptions::default() } else { parse_json(&body)? };
    let limit = state.waiting.limit("wait_ms", options.wait_ms)?;
    if limit.is_some() {
        state.keys.require(&headers, Scope::Read)?;
    }
    let view = state.live.view();
    let found = state.store.states(view.spaces().all(), std::slice::from_ref(&user)).await?.pop().flatten();
    let before = found
        .filter(|marks| marks.state.has_events())
        .ok_or_else(|| ApiError::NotFound(format!("user {user:?} has no events")))?;
    let awaited = Awaited { user: user.clone(), before, without_features: before.refreshed_seq.is_none() };
    if state.readers.take(key, 1, Instant::now()) == 0 {
        state.metrics.reader_refreshes.with_label_values(&["over"]).inc();
        return Err(state.readers.refusal(key, Instant::now()));
    }
    state.metrics.reader_refreshes.with_label_values(&["granted"]).inc();
    let waited = match limit {
        Some(limit) => refresh_and_wait(&state, &view, vec![awaited], limit).await,
        None => queue(&state, &[awaited], CLASS_SYNC, None).await.map(|()| Waited::Late),
    };
    match waited.inspect_err(|_| state.readers.give_back(key, 1))? {
        Waited::Fresh => {
            let (users, groups) = (vec![user], DEFAULT_GROUPS.to_vec());
            let read = Read { state: &state, request_id: &request_id, users, groups };
            let views = read.views(&view).await?;
            wire::row(Encoding::Json, &view, &views)
        }
        Waited::Late | Waited::Draining => {
            Ok((StatusCode::ACCEPTED, Json(json!({ "queued": true, "seq": before.state.seq }))).into_response())
        }
    }
}
