//! `POST /v1/events`: 202 after the store has the events; errors per event. A CloudEvent in binary mode (`ce-…` headers) is one
//! event, its data the body.

use super::ApiState;
use crate::event::cloudevent::{self, Envelope};
use crate::event::json::parse_strictly;
use crate::event::{Event, FieldError};
use crate::http::{ApiError, Scope, parse_batch, read_body, says_ndjson};
use crate::ingest::Appended;
use crate::store::StoreError;
use crate::telemetry::events::EventsStored;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
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
    let bytes = read_body(body).await?;
    let (entries, envelope) = match binary_envelope(&headers)? {
        Some(envelope) => (vec![parse_strictly(&bytes, "event")], Some(envelope)),
        None => (parse_batch(&bytes, "events", state.limits.max_events, says_ndjson(&headers))?, None),
    };
    let (view, now_ms) = (state.live.view(), state.store.now_ms().await?);
    let mut events: Vec<Event> = Vec::with_capacity(entries.len());
    let (mut indices, mut rejected) = (Vec::with_capacity(entries.len()), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        let decoded = entry.and_then(|value| match &envelope {
            Some(envelope) => state.decoder.decode_data(&value, envelope, now_ms),
            None => state.decoder.decode(&value, now_ms),
        });
        match decoded {
            Ok(event) => {
                events.push(event);
                indices.push(index);
            }
            Err(error) => rejected.push(Rejection { index, error }),
        }
    }
    let started = std::time::Instant::now();
    let Appended { counts, refused } =
        if events.is_empty() { Appended::default() } else { state.ingest.append(view.spaces(), events).await? };
    let none_good = refused.len() == indices.len();
    rejected
        .extend(refused.into_iter().map(|(place, error)| Rejection { index: indices[place], error: unkept(&error) }));
    rejected.sort_by_key(|rejection| rejection.index);
    state.metrics.store_duration.with_label_values(&["append"]).observe(started.elapsed().as_secs_f64());
    EventsStored { accepted: counts.accepted, duplicates: counts.duplicates, rejected: rejected.len() as u64 }
        .emit(&state.metrics);
    if counts.due_now > 0 {
        state.wake.notify_one();
    }
    let status = if none_good { StatusCode::BAD_REQUEST } else { StatusCode::ACCEPTED };
    let answer = EventsAnswer { accepted: counts.accepted, duplicates: counts.duplicates, rejected };
    Ok((status, Json(answer)).into_response())
}

/// What the store keeps of the event's user cannot be read, so that nothing can be added.
fn unkept(error: &StoreError) -> FieldError {
    FieldError::new("user_id", format!("cannot be stored: {error}; DELETE /v1/users/{{id}} clears what is kept"))
}

/// The envelope of a CloudEvent in binary mode. One in structured mode says so in its content type; then headers are nothing.
fn binary_envelope(headers: &HeaderMap) -> Result<Option<Envelope>, ApiError> {
    let text = |name: &str| headers.get(name).map(|value| percent_decoded(value.as_bytes()));
    let content_type = text(header::CONTENT_TYPE.as_str()).unwrap_or_default().to_ascii_lowercase();
    if content_type.starts_with("application/cloudevents") {
        return Ok(None);
    }
    cloudevent::of_headers(|name| text(&["ce-", name].concat()))
        .map_err(|error| ApiError::field(&format!("ce-{}", error.field), error.reason))
}

/// Text of a header as the HTTP binding of CloudEvents writes it: UTF-8, percent-encoded where it is not printable ASCII.
fn percent_decoded(value: &[u8]) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::with_capacity(value.len());
    let mut at = 0;
    while let Some(byte) = value.get(at) {
        match (byte, digit(value.get(at + 1)), digit(value.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn attributes_are_percent_decoded() {
        for (value, text) in [("/a%20b", "/a b"), ("%e2%82%AC", "€"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("", "")]
        {
            assert_eq!(percent_decoded(value.as_bytes()), text);
        }
    }

    #[test]
    fn a_binary_envelope_must_be_whole_and_a_structured_one_is_in_the_body() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.parse().expect("name"), HeaderValue::from_static(value))).collect()
        };
        let whole = [("ce-specversion", "1.0"), ("ce-id", "7"), ("ce-source", "/shop"), ("ce-type", "click")];
        assert!(binary_envelope(&headers(&whole)).expect("valid").is_some());
        assert!(binary_envelope(&headers(&whole[1..])).expect("none").is_none());
        let structured = [&whole[..1], &[("content-type", "application/cloudevents+json; charset=utf-8")]].concat();
        assert!(binary_envelope(&headers(&structured)).expect("none").is_none());
        let refused = binary_envelope(&headers(&whole[..2])).expect_err("no source").to_string();
        assert!(refused.starts_with("ce-source: is missing"), "{refused}");
    }
}
