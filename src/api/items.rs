//! `POST /v1/items`: catalogue items over the bundle's; same shapes as events. `DELETE /v1/items/{id}` takes one out, on every
//! replica, also where the bundle holds it, until it is posted again.

use super::ApiState;
use super::events::Rejection;
use crate::catalogue::NO_ROOM;
use crate::event::decode::check_id;
use crate::event::{FieldError, Item};
use crate::http::{ApiError, Scope, parse_batch, read_body, require_json, says_ndjson};
use crate::telemetry::events::ItemsStored;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
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
        match entry.and_then(|entry| Item::of_json(&entry)) {
            Ok(item) => items.push((index, item)),
            Err(error) => rejected.push(Rejection { index, error }),
        }
    }
    let view = state.live.view();
    let catalogue = &view.bundle().catalogue;
    if catalogue.is_limited() && !items.is_empty() {
        catalogue.catch_up(state.store.as_ref()).await?;
        let full = catalogue.without_room(items.iter().map(|(_, item)| item));
        rejected.extend(
            full.iter().map(|place| Rejection { index: items[*place].0, error: FieldError::new("id", NO_ROOM) }),
        );
        rejected.sort_by_key(|rejection| rejection.index);
        items =
            items.into_iter().enumerate().filter(|(place, _)| !full.contains(place)).map(|(_, item)| item).collect();
    }
    let items: Vec<Item> = items.into_iter().map(|(_, item)| item).collect();
    if !items.is_empty() {
        state.store.put_items(&items).await?;
    }
    ItemsStored { accepted: items.len() as u64, rejected: rejected.len() as u64 }.emit(&state.metrics);
    let status = if items.is_empty() { StatusCode::BAD_REQUEST } else { StatusCode::ACCEPTED };
    Ok((status, Json(ItemsAnswer { accepted: items.len(), rejected })).into_response())
}

/// Takes an item out of the catalogue of every replica, within the tail interval. One that nobody knows leaves no mark.
pub async fn delete_item(
    State(state): State<Arc<ApiState>>,
    item: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    state.keys.require(&headers, Scope::Write)?;
    require_json(&headers)?;
    let Path(id) = item.map_err(|error| ApiError::field("item_id", error.body_text()))?;
    check_id("item_id", &id).map_err(|error| ApiError::field("item_id", error.reason))?;
    let view = state.live.view();
    let catalogue = &view.bundle().catalogue;
    // It may have been posted to another replica just now.
    catalogue.catch_up(state.store.as_ref()).await?;
    let known = catalogue.get(&id).is_some();
    if known {
        state.store.put_items(&[Item::deleted(&id)]).await?;
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "deleted": known }))))
}
