//! What every request passes: its name, the measuring, the load shield.
//!
//! A stream keeps its place and counts as under way until its body ends or its client goes away.

use super::receive::receive;
use super::{ApiError, ApiKeys, BodyLimits};
use crate::event::decode::check_id;
use crate::telemetry::Metrics;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

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

/// Gives an answer to a request that no route sees its name.
pub fn name_answer(request: &Request, mut response: Response) -> Response {
    let id = RequestId::given(request).unwrap_or_else(RequestId::made);
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

/// What a port lets in, and where it counts that.
pub struct Admission {
    /// Places for requests under way.
    pub places: Arc<Semaphore>,
    /// How many places there are.
    pub limit: usize,
    /// What bodies may cost.
    pub bodies: BodyLimits,
    /// Whose bodies are read.
    pub keys: ApiKeys,
    /// An error in the port's form.
    pub refuse: fn(ApiError) -> Response,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whose failures of the store its 503s are, where they are the store's.
    pub store_errors: Option<&'static str>,
}

impl Admission {
    /// A port of `limit` places.
    pub fn new(
        limit: usize,
        bodies: BodyLimits,
        keys: ApiKeys,
        refuse: fn(ApiError) -> Response,
        metrics: Arc<Metrics>,
    ) -> Admission {
        Admission { places: Arc::new(Semaphore::new(limit)), limit, bodies, keys, refuse, metrics, store_errors: None }
    }
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

/// What every request of a port passes, from outside in: its name, the measuring, its body (`receive`), the load shield.
///
/// One middleware and not one each: axum boxes every layer and clones, for every request, all that lies within it.
pub async fn admit(State(admission): State<Arc<Admission>>, mut request: Request, next: Next) -> Response {
    let id = RequestId::given(&request).unwrap_or_else(RequestId::made);
    request.extensions_mut().insert(id.clone());
    let mut response = measure(&admission, request, next).await;
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

/// Counts a request, and times it up to the head of its answer. The route label is the pattern, never the path, so that
/// labels stay few.
async fn measure(admission: &Admission, request: Request, next: Next) -> Response {
    let metrics = &admission.metrics;
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str).unwrap_or("unmatched");
    let started = Instant::now();
    let in_flight = InFlight::new(metrics.http_in_flight.clone());
    let response = match receive(admission, request).await {
        Ok(request) => shed(admission, request, next).await,
        Err(response) => response,
    };
    metrics.http_duration.with_label_values(&[route]).observe(started.elapsed().as_secs_f64());
    metrics.http_requests.with_label_values(&[route, response.status().as_str()]).inc();
    if response.status() == StatusCode::SERVICE_UNAVAILABLE
        && let Some(part) = admission.store_errors
    {
        metrics.store_errors.with_label_values(&[part]).inc();
    }
    hold(response, in_flight)
}

/// Refuses with 429 when too many requests are under way: an overloaded server answers fast or not at all.
async fn shed(admission: &Admission, request: Request, next: Next) -> Response {
    let Ok(place) = admission.places.clone().try_acquire_owned() else {
        admission.metrics.http_shed.inc();
        return (admission.refuse)(ApiError::Overloaded { limit: admission.limit });
    };
    hold(next.run(request).await, place)
}

/// Lets a stream hold something to the end of its body; other bodies are made already.
fn hold<T: Send + 'static>(response: Response, held: T) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
        return response;
    }
    response.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |bytes| {
            let _held = &held;
            bytes
        }))
    })
}
