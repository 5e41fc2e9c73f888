//! What a request passes before it takes a place: its path, its body. A body that has not come holds no place, so that slow clients
//! wait for themselves alone.
//!
//! In: requests as they come. Out: requests whose body is there, or refusals. Callers: the ports' routers.

use super::{Admission, ApiError, ApiKeys};
use crate::config::ServerSettings;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A refused body is read and thrown away up to this size, so that the client sees the 413 and not a reset.
const DISCARD_LIMIT: u64 = 8 << 20;

/// A body may pause this long.
const SILENCE: Duration = Duration::from_secs(10);

/// What a port's bodies may cost.
#[derive(Debug, Clone)]
pub struct BodyLimits {
    /// Largest body, bytes.
    pub bytes: usize,
    /// From a body's first byte to its last.
    pub time: Duration,
    /// Between two of its bytes.
    pub silence: Duration,
    /// Most bytes of bodies that have not come whole.
    pub pending: usize,
    held: Arc<AtomicUsize>,
}

impl BodyLimits {
    /// Of one port.
    pub fn new(settings: &ServerSettings) -> BodyLimits {
        BodyLimits {
            bytes: settings.max_body_bytes,
            time: Duration::from_millis(settings.body_timeout_ms),
            silence: SILENCE,
            pending: settings.max_pending_body_bytes,
            held: Arc::default(),
        }
    }

    /// Counts a body that has come and waits for a place among those that are pending, as long as what is returned lives.
    pub(super) fn hold(&self, bytes: usize) -> Result<Pending<'_>, ApiError> {
        let mut pending = Pending { limits: self, bytes: 0 };
        pending.add(bytes)?;
        Ok(pending)
    }

    /// For tests of what has a body of at most so many bytes.
    #[cfg(test)]
    pub fn of_size(bytes: usize) -> BodyLimits {
        BodyLimits { bytes, time: SILENCE, silence: SILENCE, pending: 1 << 20, held: Arc::default() }
    }
}

/// The request with its body, and how many bytes that has, or the refusal.
pub(super) async fn receive(
    admission: &Admission,
    has_route: bool,
    request: Request,
) -> Result<(Request, usize), Response> {
    whole(&admission.bodies, &admission.keys, has_route, request).await.map_err(|error| {
        if matches!(error, ApiError::TooManyBodies { .. }) {
            admission.metrics.http_shed.inc();
        }
        (admission.refuse)(error)
    })
}

async fn whole(
    limits: &BodyLimits,
    keys: &ApiKeys,
    has_route: bool,
    request: Request,
) -> Result<(Request, usize), ApiError> {
    check_escapes(request.uri().path())?;
    // No route, no use for a body.
    if request.body().is_end_stream() || !has_route {
        return Ok((request, 0));
    }
    let (parts, body) = request.into_parts();
    // The key comes before the body; the handler looks at its scope.
    keys.require_any(&parts.headers)?;
    check_encoding(&parts.headers)?;
    let bytes = read(limits, &parts.headers, body).await?;
    let length = bytes.len();
    Ok((Request::from_parts(parts, Body::from(bytes)), length))
}

/// A `%` in a path begins an escape.
fn check_escapes(path: &str) -> Result<(), ApiError> {
    let digits = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    match path.split('%').skip(1).all(digits) {
        true => Ok(()),
        false => Err(ApiError::field("path", "a % is followed by two hexadecimal digits; %25 is the sign itself")),
    }
}

/// Bodies come as they are.
fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    match encodings
        .map(|value| value.to_str().unwrap_or("?"))
        .find(|name| !name.trim().eq_ignore_ascii_case("identity"))
    {
        Some(encoding) => Err(ApiError::UnsupportedEncoding { encoding: encoding.to_string() }),
        None => Ok(()),
    }
}

/// Reads a body within the limits.
async fn read(limits: &BodyLimits, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let too_large = || Err(ApiError::TooLarge { limit: limits.bytes });
    let length = body.size_hint().exact();
    // Whoever asks before sending is told at once: to read would say "100 Continue".
    let asks = headers.contains_key(header::EXPECT);
    if length.is_some_and(|length| length > limits.bytes as u64 && (asks || length > DISCARD_LIMIT)) {
        return too_large();
    }
    let until = Instant::now() + limits.time;
    let mut pending = Pending { limits, bytes: 0 };
    let mut stream = body.into_data_stream();
    let (mut kept, mut seen) = (BytesMut::new(), 0);
    loop {
        let silent = Instant::now() + limits.silence;
        let chunk = match timeout_at(until.min(silent), stream.next()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(_) if silent < until => return Err(ApiError::SilentBody { seconds: limits.silence.as_secs() }),
            Err(_) => return Err(ApiError::SlowBody { ms: limits.time.as_millis() }),
        };
        let chunk = chunk.map_err(|error| ApiError::bad_request(format!("body could not be read: {error}")))?;
        seen += chunk.len() as u64;
        if seen > DISCARD_LIMIT.max(limits.bytes as u64) {
            break;
        }
        if seen > limits.bytes as u64 {
            kept = BytesMut::new();
            continue;
        }
        if length == Some(chunk.len() as u64) {
            return Ok(chunk);
        }
        pending.add(chunk.len())?;
        kept.extend_from_slice(&chunk);
    }
    if seen > limits.bytes as u64 { too_large() } else { Ok(kept.freeze()) }
}

/// One body's share of what is pending; given back when it has come and has a place, or was given up.
pub(super) struct Pending<'l> {
    limits: &'l BodyLimits,
    bytes: usize,
}

impl Pending<'_> {
    fn add(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        let before = self.limits.held.fetch_add(bytes, Ordering::Relaxed);
        match before + bytes > self.limits.pending {
            true => Err(ApiError::TooManyBodies { limit: self.limits.pending }),
            false => Ok(()),
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.limits.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The body of a request that has passed [`receive`].
pub async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let bytes = axum::body::to_bytes(body, usize::MAX).await;
    bytes.map_err(|error| ApiError::bad_request(format!("body could not be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(time_ms: u64) -> BodyLimits {
        let (time, silence) = (Duration::from_millis(time_ms), Duration::from_secs(2));
        BodyLimits { bytes: 1 << 20, time, silence, pending: 3 << 20, held: Arc::default() }
    }

    async fn read_within(limits: &BodyLimits, body: Body, expects: bool) -> Result<Bytes, ApiError> {
        let mut headers = HeaderMap::new();
        if expects {
            headers.insert(header::EXPECT, header::HeaderValue::from_static("100-continue"));
        }
        read(limits, &headers, body).await
    }

    /// A body that never ends.
    fn endless(first: usize) -> Body {
        let chunk = Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; first]));
        Body::from_stream(futures::stream::iter([chunk]).chain(futures::stream::pending()))
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_read_away_and_refused() {
        let limits = limits(60_000);
        let body = Body::from(vec![b'x'; 2 << 20]);
        assert!(matches!(read_within(&limits, body, false).await, Err(ApiError::TooLarge { .. })));
        assert_eq!(read_within(&limits, Body::from("abc"), false).await.expect("fits"), "abc");
    }

    #[tokio::test]
    async fn audit_05_a_body_has_one_time_for_all_of_it_and_holds_no_more_than_its_share() {
        let limits = limits(500);
        let slow = Body::from_stream(futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        }));
        assert!(matches!(read_within(&limits, slow, false).await, Err(ApiError::SlowBody { ms: 500 })));
        let patient = BodyLimits { time: Duration::from_secs(60), ..limits.clone() };
        assert!(matches!(read_within(&patient, endless(1), false).await, Err(ApiError::SilentBody { seconds: 2 })));
        let held = BodyLimits { pending: 100, ..patient };
        let other = held.clone();
        let waiting = tokio::spawn(async move { read_within(&other, endless(80), false).await });
        tokio::task::yield_now().await;
        assert!(matches!(read_within(&held, endless(30), false).await, Err(ApiError::TooManyBodies { limit: 100 })));
        assert_eq!(held.held.load(Ordering::Relaxed), 80);
        assert!(matches!(waiting.await.expect("task"), Err(ApiError::SilentBody { .. })));
        assert_eq!(held.held.load(Ordering::Relaxed), 0, "given back");
    }

    #[tokio::test]
    async fn audit_05_who_asks_before_sending_is_refused_unread() {
        let limits = limits(60_000);
        let polled = Arc::new(AtomicUsize::new(0));
        let seen = polled.clone();
        let body = Body::from_stream(futures::stream::poll_fn(move |_| {
            seen.fetch_add(1, Ordering::Relaxed);
            std::task::Poll::Ready(None::<Result<Bytes, std::io::Error>>)
        }));
        // A stream says no length; one that does is a body in memory.
        assert!(read_within(&limits, body, true).await.is_ok());
        assert_eq!(polled.load(Ordering::Relaxed), 1);
        let large = Body::from(vec![b'x'; 2 << 20]);
        assert!(matches!(read_within(&limits, large, true).await, Err(ApiError::TooLarge { .. })));
        let huge = Body::from(vec![b'x'; 9 << 20]);
        assert!(matches!(read_within(&limits, huge, false).await, Err(ApiError::TooLarge { .. })));
    }

    #[test]
    fn audit_05_a_bad_escape_and_a_packed_body_are_refused_by_name() {
        for path in ["/v1/users/%/features", "/%zz", "/a%2", "/%", "/é%é"] {
            assert!(check_escapes(path).is_err(), "{path}");
        }
        for path in ["/v1/users/%25/features", "/", "/a%2Fb%C3%A9"] {
            assert!(check_escapes(path).is_ok(), "{path}");
        }
        let headers = |name: &'static str| -> HeaderMap {
            [(header::CONTENT_ENCODING, header::HeaderValue::from_static(name))].into_iter().collect()
        };
        assert!(check_encoding(&headers("Identity")).is_ok() && check_encoding(&HeaderMap::new()).is_ok());
        assert!(matches!(check_encoding(&headers("gzip")), Err(ApiError::UnsupportedEncoding { .. })));
    }
}
