//! One connection: its requests go to the routes, and it ends when its client keeps it waiting too long, when the port is full,
//! or when the process leaves.

use super::activity::{Activity, CloseReason, Timeouts};
use super::refusal::RefusalBody;
use super::slots::Slot;
use super::stream::Watched;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Response, Version, header};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tower::ServiceExt;

/// Longest head of a request, and most bytes hyper holds of one connection, each way.
const MAX_HEAD_BYTES: usize = 128 << 10;
/// Most bytes of headers of one request of HTTP/2.
const MAX_HEADER_LIST: u32 = 32 << 10;
/// A client of HTTP/2 is asked for a sign of life this often, and has this long to give one.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));

/// Where requests go.
pub trait Routes: Send + Sync {
    /// The answer, whatever is asked.
    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>>;

    /// Whether answers close their connections, so that clients go elsewhere.
    fn is_leaving(&self) -> bool {
        false
    }
}

impl Routes for Router {
    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let answer = self.clone().oneshot(request);
        Box::pin(answer.map(|answer| answer.unwrap_or_else(|never| match never {})))
    }
}

/// What every connection of a port is served with.
pub struct Service {
    /// Where requests go.
    pub routes: Arc<dyn Routes>,
    /// How long a client may keep us waiting.
    pub timeouts: Timeouts,
    /// Writes the bodies of refusals.
    pub refusal: RefusalBody,
    builder: Builder<TokioExecutor>,
}

impl Service {
    /// `streams`: most requests of HTTP/2 at once on one connection.
    pub fn new(routes: Arc<dyn Routes>, timeouts: Timeouts, streams: u32, refusal: RefusalBody) -> Service {
        let mut builder = Builder::new(TokioExecutor::new());
        // Its own header time would count an idle connection's time, too; `activity` tells the two apart.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams)
            .max_header_list_size(MAX_HEADER_LIST)
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1);
        Service { routes, timeouts, refusal, builder }
    }

    /// Serves one connection to its end. Says why, if we ended it.
    pub async fn serve<I>(
        &self,
        io: I,
        slot: &Slot,
        activity: Arc<Activity>,
        stop: watch::Receiver<bool>,
    ) -> Option<CloseReason>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Watched::new(io, activity.clone(), self.refusal));
        let answer = service_fn(|request: Request<Incoming>| {
            let under_way = UnderWay::new(activity.clone(), request.version());
            let answer = self.routes.answer(request.map(Body::new));
            let routes = self.routes.clone();
            async move {
                let mut response = answer.await;
                if routes.is_leaving() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| Held { body, _under_way: under_way }))
            }
        });
        let connection = self.builder.serve_connection(io, answer);
        tokio::pin!(connection);
        let mut leaving = std::pin::pin!(until_stopped(stop));
        let mut is_leaving = false;
        let look = tokio::time::sleep(self.next_look(&activity));
        tokio::pin!(look);
        loop {
            tokio::select! {
                biased;
                // An error is the client's: it went away, or spoke no HTTP.
                _ = connection.as_mut() => return None,
                () = &mut leaving, if !is_leaving => {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = slot.leave.notified() => return Some(CloseReason::Full),
                () = &mut look => match activity.deadline(&self.timeouts) {
                    Some((until, over)) if until <= Instant::now() => return Some(over),
                    _ => look.as_mut().reset(tokio::time::Instant::now() + self.next_look(&activity)),
                },
            }
        }
    }

    /// A state may begin at any time, so that looks are no farther apart than half the shortest time.
    fn next_look(&self, activity: &Activity) -> Duration {
        let often = self.timeouts.header.min(self.timeouts.idle) / 2;
        let until = activity.deadline(&self.timeouts).map(|(until, _)| until.saturating_duration_since(Instant::now()));
        // A timer of tokio may ring up to a millisecond early.
        until.unwrap_or(often).min(often) + Duration::from_millis(1)
    }
}

/// Until the flag turns true, or its sender is gone.
pub async fn until_stopped(mut stop: watch::Receiver<bool>) {
    while !*stop.borrow_and_update() && stop.changed().await.is_ok() {}
}

/// A request is under way until it is dropped.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn new(activity: Arc<Activity>, version: Version) -> UnderWay {
        activity.request_began(version == Version::HTTP_2);
        UnderWay(activity)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}

/// An answer's body; its request is under way until all of it is taken.
struct Held {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
