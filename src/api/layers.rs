//! What every request passes: the load shield and the measuring.

use super::{ApiError, ApiState};
use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::Instant;

/// Refuses with 429 when too many requests are under way: an overloaded server answers fast or not at all.
pub async fn shed(State(state): State<Arc<ApiState>>, request: Request, next: Next) -> Response {
    let Ok(_place) = state.places.clone().try_acquire_owned() else {
        state.metrics.http_shed.inc();
        return ApiError::Overloaded { limit: state.limits.max_in_flight }.into_response();
    };
    next.run(request).await
}

/// Counts a request as under way until it is dropped, which a client that hangs up makes happen early.
struct InFlight(IntGauge);

impl InFlight {
    fn new(gauge: IntGauge) -> InFlight {
        gauge.inc();
        InFlight(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts and times requests. The route label is the pattern, never the path, so that labels stay few.
pub async fn measure(State(state): State<Arc<ApiState>>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str).unwrap_or("unmatched");
    let started = Instant::now();
    let in_flight = InFlight::new(state.metrics.http_in_flight.clone());
    let response = next.run(request).await;
    drop(in_flight);
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        state.metrics.store_errors.with_label_values(&["api"]).inc();
    }
    state.metrics.http_duration.with_label_values(&[route]).observe(started.elapsed().as_secs_f64());
    state.metrics.http_requests.with_label_values(&[route, response.status().as_str()]).inc();
    response
}
