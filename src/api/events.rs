//! `POST /v1/events`: 202 after the store has the events; errors per event.

use super::body::{parse_batch, read_body, says_ndjson};
use super::{ApiError, ApiState, Scope};
use crate::event::{Event, FieldError};
use crate::telemetry::events::EventsStored;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;

/// Why one entry of a batch was refused.
#[derive(Debug, Serialize)]
pub(super) struct Rejection {
    /// Place in the batch, from 0.
    pub index: usize,
    #[serde(flatten)]
    pub error: FieldError,
}

#[derive(Debug, Serialize)]
struct EventsAnswer {
    accepted: u64,
    duplicates: u64,
    rejected: Vec<Rejection>,
}

/// Stores a batch; good events are accepted whatever the others are.
pub async fn post_events(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    state.keys.require(&headers, Scope::Write)?;
    let bytes = read_body(body, state.limits.max_body_bytes).await?;
    let entries = parse_batch(&bytes, "events", state.limits.max_events, says_ndjson(&headers))?;
    let now_ms = state.store.now_ms().await?;
    let mut events: Vec<Event> = Vec::with_capacity(entries.len());
    let mut rejected = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let decoded = entry
            .map_err(|message| FieldError::new("event", message))
            .and_then(|value| state.decoder.decode(&value, now_ms));
        match decoded {
            Ok(event) => events.push(event),
            Err(error) => rejected.push(Rejection { index, error }),
        }
    }
    let none_good = events.is_empty();
    let started = std::time::Instant::now();
    let counts = if none_good { Default::default() } else { state.ingest.append(events).await? };
    state.metrics.store_duration.with_label_values(&["append"]).observe(started.elapsed().as_secs_f64());
    EventsStored { accepted: counts.accepted, duplicates: counts.duplicates, rejected: rejected.len() as u64 }
        .emit(&state.metrics);
    state.wake.notify_one();
    let status = if none_good { StatusCode::BAD_REQUEST } else { StatusCode::ACCEPTED };
    let answer = EventsAnswer { accepted: counts.accepted, duplicates: counts.duplicates, rejected };
    Ok((status, Json(answer)).into_response())
}
