//! `GET /v1/models`, `GET /v1/models/{id}`: the bundle's LLM and its encoder. `GET /health`: whether the engine is well.

use super::{OpenAiError, OpenAiState};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// All models.
pub async fn list_models(
    State(state): State<Arc<OpenAiState>>,
    headers: HeaderMap,
) -> Result<Json<Value>, OpenAiError> {
    state.require_key(&headers)?;
    Ok(Json(json!({ "object": "list", "data": models(&state)? })))
}

/// One model.
pub async fn get_model(
    State(state): State<Arc<OpenAiState>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, OpenAiError> {
    state.require_key(&headers)?;
    let mut known = models(&state)?;
    match known.iter().position(|model| model["id"] == id.as_str()) {
        Some(place) => Ok(Json(known.swap_remove(place))),
        None => {
            let served: Vec<&str> = known.iter().filter_map(|model| model["id"].as_str()).collect();
            Err(OpenAiError::UnknownModel { model: id, served: served.join(", ") })
        }
    }
}

/// For load tools that wait for a server; needs no key.
pub async fn health(State(state): State<Arc<OpenAiState>>) -> Response {
    match state.serving().is_ok_and(|serving| serving.llm.healthy()) {
        true => Json(json!({ "status": "ok" })).into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "failed" }))).into_response(),
    }
}

/// LLM first; with canned answers both have one name and are one entry.
fn models(state: &OpenAiState) -> Result<Vec<Value>, OpenAiError> {
    let serving = state.serving()?;
    let mut ids = vec![serving.llm.model_id(), serving.encoder.model_id()];
    ids.dedup();
    let entry = |id: &&str| json!({ "id": id, "object": "model", "created": state.started, "owned_by": "taiji" });
    Ok(ids.iter().map(entry).collect())
}
