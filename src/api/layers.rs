//! What every request passes: its name, the measuring, the load shield.

use super::{ApiError, ApiState};
use crate::event::decode::check_id;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::Instant;

/// The header that names a request, in the request and in its answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The name of a request: the caller's, or one made here. It joins events (`request_id`) and served features.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// 1 to 128 visible characters.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// The caller's, if an event could carry it.
    fn given(request: &Request) -> Option<RequestId> {
        let value = request.headers().get(&REQUEST_ID)?;
        check_id("x-request-id", value.to_str().ok()?).ok()?;
        Some(RequestId(value.clone()))
    }

    fn made() -> RequestId {
        // A hexadecimal number is a header's value; were it not, the request would go without a name.
        let value = HeaderValue::from_str(&format!("{:032x}", rand::random::<u128>()));
        RequestId(value.unwrap_or_else(|_| HeaderValue::from_static("")))
    }
}

/// Gives every request a name and returns it in the answer.
pub async fn name_request(mut request: Request, next: Next) -> Response {
    let id = RequestId::given(&request).unwrap_or_else(RequestId::made);
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

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
