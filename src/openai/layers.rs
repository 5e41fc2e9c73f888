//! What every request of this port passes: the load shield and the measuring.
//!
//! A stream keeps its place and counts as under way until its body ends or its client goes away.

use super::{OpenAiError, OpenAiState};
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// Held while a request is worked on.
struct UnderWay {
    gauge: IntGauge,
    _place: OwnedSemaphorePermit,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Refuses with 429 when too many requests are under way; counts and times the others up to the head of their answer.
pub async fn admit(State(state): State<Arc<OpenAiState>>, request: Request, next: Next) -> Response {
    let Ok(place) = state.places.clone().try_acquire_owned() else {
        state.metrics.http_shed.inc();
        return OpenAiError::Busy { limit: state.settings.max_in_flight }.into_response();
    };
    let gauge = state.metrics.http_in_flight.clone();
    gauge.inc();
    let under_way = UnderWay { gauge, _place: place };
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str).unwrap_or("unmatched");
    let started = Instant::now();
    let response = next.run(request).await;
    state.metrics.http_duration.with_label_values(&[route]).observe(started.elapsed().as_secs_f64());
    state.metrics.http_requests.with_label_values(&[route, response.status().as_str()]).inc();
    hold(response, under_way)
}

/// Lets a stream hold its place to the end of its body; other bodies are made already.
fn hold(response: Response, under_way: UnderWay) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
        return response;
    }
    response.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |bytes| {
            let _held = &under_way;
            bytes
        }))
    })
}
