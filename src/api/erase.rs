//! `DELETE /v1/users/{id}` (admin scope): erases a user; 202 once reads show nothing of them.
//!
//! Admin, because it cannot be taken back and every producer of events has a write key. Sent again, it erases again: what
//! came in between goes, too. A user nobody knows is noted as well, as their events may be on their way.

use super::ApiState;
use super::features::path_user;
use crate::http::{ApiError, Scope, require_json};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// Notes the erasure and hides the user; what others are shown of them is cleared in the background.
pub async fn delete_user(
    State(state): State<Arc<ApiState>>,
    user: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    state.keys.require(&headers, Scope::Admin)?;
    require_json(&headers)?;
    let user = path_user(user)?;
    let referrers = state.eraser.erase(&user).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "erased": true, "referrers": referrers }))))
}
