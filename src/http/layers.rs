//! What every request passes: its name, the measuring, the load shield.
//!
//! A stream keeps its place and counts as under way until its body ends or its client goes away.

use super::places::{Place, Places};
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
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The header that names a request, in the request and in its answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Most requests that wait for a place: as many as a port has connections by default. Each refusal costs a good part of an answer.
const WAITING: usize = 8192;

/// The name of a request: the caller's, or one made here. It joins events (`request_id`) and served features.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// 1 to 128 visible characters.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Of that request, from here on.
    fn of(request: &Request) -> RequestId {
        RequestId::given(request).unwrap_or_else(RequestId::made)
    }

    /// The caller's, if an event could carry it.
    fn given(request: &Request) -> Option<RequestId> {
        let value = request.headers().get(&REQUEST_ID)?;
        check_id("x-request-id", value.to_str().ok()?).ok()?;
        Some(RequestId(value.clone()))
    }

    fn made() -> RequestId {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";
        let mut text = [0; 32];
        for (two, byte) in text.chunks_exact_mut(2).zip(rand::random::<[u8; 16]>()) {
            two.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        // Digits are a header's value; were they not, the request would go without a name.
        RequestId(HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("")))
    }
}

/// Gives every request a name and returns it in the answer.
pub async fn name_request(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

/// Gives an answer to a request that no route sees its name.
pub fn name_answer(request: &Request, mut response: Response) -> Response {
    let id = RequestId::of(request);
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

/// What a port lets in, and where it counts that.
pub struct Admission {
    places: Places,
    /// How many places there are.
    limit: usize,
    /// How long a request waits for one.
    queue: Duration,
    /// What bodies may cost.
    pub(super) bodies: BodyLimits,
    /// Whose bodies are read.
    pub(super) keys: ApiKeys,
    /// An error in the port's form.
    pub(super) refuse: fn(ApiError) -> Response,
    /// Counters.
    pub(super) metrics: Arc<Metrics>,
    /// Whose failures of the store its 503s are, where they are the store's.
    store_errors: Option<&'static str>,
}

impl Admission {
    /// A port of `limit` places, for which nobody waits.
    pub fn new(
        limit: usize,
        bodies: BodyLimits,
        keys: ApiKeys,
        refuse: fn(ApiError) -> Response,
        metrics: Arc<Metrics>,
    ) -> Admission {
        Admission {
            places: Places::new(limit, WAITING),
            limit,
            queue: Duration::ZERO,
            bodies,
            keys,
            refuse,
            metrics,
            store_errors: None,
        }
    }

    /// The same, where a request waits so long for a place.
    pub fn with_queue(self, queue: Duration) -> Admission {
        Admission { queue, ..self }
    }

    /// The same, of a port whose 503s are the store's: this part's.
    pub fn with_store_errors(self, part: &'static str) -> Admission {
        Admission { store_errors: Some(part), ..self }
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

/// What every request of a port passes as a middleware; see [`Admission::pass`].
///
/// One middleware and not one each: axum boxes every layer and clones, for every request, all that lies within it.
pub async fn admit(State(admission): State<Arc<Admission>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let go_on = |mut request: Request, id: RequestId| {
        request.extensions_mut().insert(id);
        next.run(request)
    };
    admission.pass(route.as_ref().map(MatchedPath::as_str), request, go_on).await
}

impl Admission {
    /// What every request of a port passes, from outside in: its name, the measuring, its body (`receive`), the load shield. Then it is
    /// answered. `route` is the pattern that it matches, if any, and never the path, so that labels stay few.
    pub async fn pass<F: Future<Output = Response>>(
        &self,
        route: Option<&str>,
        request: Request,
        answer: impl FnOnce(Request, RequestId) -> F,
    ) -> Response {
        let id = RequestId::of(&request);
        let metrics = &self.metrics;
        let started = Instant::now();
        let in_flight = InFlight::new(metrics.http_in_flight.clone());
        let (mut response, place) = match receive(self, route.is_some(), request).await {
            Ok((request, bytes)) => self.shed(bytes, || answer(request, id.clone())).await,
            Err(response) => (response, None),
        };
        response.headers_mut().insert(REQUEST_ID, id.0);
        // Up to the head of the answer.
        let route = route.unwrap_or("unmatched");
        metrics.http_duration.with_label_values(&[route]).observe(started.elapsed().as_secs_f64());
        metrics.http_requests.with_label_values(&[route, response.status().as_str()]).inc();
        if response.status() == StatusCode::SERVICE_UNAVAILABLE
            && let Some(part) = self.store_errors
        {
            metrics.store_errors.with_label_values(&[part]).inc();
        }
        hold(response, (in_flight, place))
    }

    /// Refuses with 429 when too many requests are under way and no place gets free in time; else the answer, and the place.
    ///
    /// The wait is what keeps an overloaded process at work: who is refused at once comes back at once, and refusals are then all
    /// that there is time for. Under a load that stays it is long beside an answer's time, so that few are refused a second, and mostly
    /// those are who came long ago (`places`).
    async fn shed<F: Future<Output = Response>>(
        &self,
        bytes: usize,
        answer: impl FnOnce() -> F,
    ) -> (Response, Option<Place>) {
        match self.place(bytes).await {
            Ok(place) => (answer().await, Some(place)),
            Err(error) => {
                self.metrics.http_shed.inc();
                ((self.refuse)(error), None)
            }
        }
    }

    /// A place for a request with a body of so many bytes.
    async fn place(&self, bytes: usize) -> Result<Place, ApiError> {
        if let Some(place) = self.places.now() {
            return Ok(place);
        }
        let none = || ApiError::Overloaded { limit: self.limit };
        if self.queue.is_zero() {
            return Err(none());
        }
        let _held = self.bodies.hold(bytes)?;
        let waiting = self.places.wait().ok_or_else(none)?;
        // Whoever gives places away lives as long as this port.
        timeout(self.queue, waiting).await.map_err(|_| none())?.map_err(|_| none())
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use axum::response::IntoResponse;
    use axum::routing::get;
    use tokio::sync::Notify;
    use tower::ServiceExt;

    /// One place; who has it goes on when told to.
    struct Port {
        router: Router,
        metrics: Arc<Metrics>,
        go_on: Arc<Notify>,
    }

    impl Port {
        fn new(queue: Duration) -> Port {
            let (metrics, go_on) = (Arc::new(Metrics::new().unwrap()), Arc::new(Notify::new()));
            let (bodies, keys) = (BodyLimits::of_size(100), ApiKeys::default());
            let admission = Admission::new(1, bodies, keys, ApiError::into_response, metrics.clone());
            let admission = Arc::new(admission.with_queue(queue));
            let told = go_on.clone();
            let handler = move || async move { told.notified().await };
            let router = Router::new().route("/", get(handler)).layer(from_fn_with_state(admission, admit));
            Port { router, metrics, go_on }
        }

        /// Asks, and returns when so many are under way.
        async fn ask(&self, under_way: i64) -> tokio::task::JoinHandle<StatusCode> {
            let request = self.router.clone().oneshot(Request::get("/").body(Body::empty()).unwrap());
            let asked = tokio::spawn(async move { request.await.unwrap().status() });
            while self.metrics.http_in_flight.get() < under_way && !asked.is_finished() {
                tokio::task::yield_now().await;
            }
            asked
        }
    }

    #[tokio::test]
    async fn who_finds_no_place_waits_for_one() {
        let port = Port::new(Duration::from_secs(30));
        let (first, second) = (port.ask(1).await, port.ask(2).await);
        port.go_on.notify_one();
        assert_eq!(first.await.unwrap(), StatusCode::OK);
        port.go_on.notify_one();
        assert_eq!(second.await.unwrap(), StatusCode::OK);
        assert_eq!(port.metrics.http_shed.get(), 0);
    }

    #[tokio::test]
    async fn a_wait_ends_with_a_refusal_and_without_a_queue_that_comes_at_once() {
        for queue in [Duration::from_millis(30), Duration::ZERO] {
            let port = Port::new(queue);
            let first = port.ask(1).await;
            let began = Instant::now();
            assert_eq!(port.ask(2).await.await.unwrap(), StatusCode::TOO_MANY_REQUESTS);
            assert!((queue..Duration::from_secs(20)).contains(&began.elapsed()) && port.metrics.http_shed.get() == 1);
            port.go_on.notify_one();
            assert_eq!(first.await.unwrap(), StatusCode::OK);
        }
    }
}
