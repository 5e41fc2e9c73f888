//! `GET /v1/users/{id}/history` (admin scope): what taiji knows of a user, newest first.

use super::ApiState;
use super::features::path_user;
use crate::http::{ApiError, Scope, require_json};
use crate::proto::Behaviour;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Behaviours, queries and profile; 404 for a user without any event, and after an erasure.
pub async fn get_history(
    State(state): State<Arc<ApiState>>,
    user: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    state.keys.require(&headers, Scope::Admin)?;
    require_json(&headers)?;
    let user = path_user(user)?;
    let found = state.store.histories(std::slice::from_ref(&user)).await?.pop().flatten();
    let history = found
        .filter(|history| history.state.has_events())
        .ok_or_else(|| ApiError::NotFound(format!("user {user:?} has no events")))?;
    let profile: Map<String, Value> = history
        .profile
        .iter()
        .map(|(name, (ts_ms, value))| (name.clone(), json!({ "value": value, "ts_ms": ts_ms })))
        .collect();
    let queries: Vec<Value> =
        history.queries.iter().map(|(ts_ms, query)| json!({ "ts_ms": ts_ms, "query": query })).collect();
    Ok(Json(json!({
        "user_id": user,
        "seq": history.state.seq,
        "engagements": history.engagements.iter().map(behaviour_json).collect::<Vec<_>>(),
        "impressions": history.impressions.iter().map(behaviour_json).collect::<Vec<_>>(),
        "queries": queries,
        "profile": profile,
    })))
}

/// The event's own shape: absent fields are left out.
fn behaviour_json(behaviour: &Behaviour) -> Value {
    let mut object = json!({
        "event_id": behaviour.event_id,
        "item_id": behaviour.item_id,
        "action": behaviour.action,
        "ts_ms": behaviour.ts_ms,
    });
    if let Some(value) = behaviour.value {
        object["value"] = json!(value);
    }
    for (name, text) in [("domain", &behaviour.domain), ("request_id", &behaviour.request_id)] {
        if !text.is_empty() {
            object[name] = json!(text);
        }
    }
    object
}
