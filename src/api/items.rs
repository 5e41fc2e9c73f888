//! `POST /v1/items`: catalogue items over the bundle's; same shapes as events.

use super::ApiState;
use super::events::Rejection;
use crate::event::{FieldError, Item};
use crate::http::{ApiError, Scope, parse_batch, read_body, says_ndjson};
use crate::telemetry::events::ItemsStored;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

#[derive(Debug, Serialize)]
struct ItemsAnswer {
    accepted: usize,
    rejected: Vec<Rejection>,
}

/// Stores items; they reach prompts and grounding within the tail interval (5 s at most, DESIGN 5.1).
pub async fn post_items(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    state.keys.require(&headers, Scope::Write)?;
    let bytes = read_body(body).await?;
    let mut items = Vec::new();
    let mut rejected = Vec::new();
    for (index, entry) in
        parse_batch(&bytes, "items", state.limits.max_events, says_ndjson(&headers))?.into_iter().enumerate()
    {
        match entry.and_then(decode) {
            Ok(item) => items.push(item),
            Err(error) => rejected.push(Rejection { index, error }),
        }
    }
    if !items.is_empty() {
        state.store.put_items(&items).await?;
    }
    ItemsStored { accepted: items.len() as u64, rejected: rejected.len() as u64 }.emit(&state.metrics);
    let status = if items.is_empty() { StatusCode::BAD_REQUEST } else { StatusCode::ACCEPTED };
    Ok((status, Json(ItemsAnswer { accepted: items.len(), rejected })).into_response())
}

fn decode(value: Value) -> Result<Item, FieldError> {
    let item: Item = serde_path_to_error::deserialize(&value).map_err(|error| {
        let path = error.path().to_string();
        FieldError::new(if path == "." { "item".to_string() } else { path }, error.into_inner().to_string())
    })?;
    item.validate()?;
    Ok(item)
}
