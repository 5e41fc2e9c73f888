//! The ports of `serve`: binding them, their limits, the door of the public one, the operators' one on a thread of its own.
//!
//! Caller: `serve`.

use super::CommandError;
use super::secrets::Secrets;
use crate::config::{PortName, ServerSettings, Settings};
use crate::http::{ApiError, error_body, name_answer};
use crate::listen::{self, Port, PortLimits, Refusal, Routes, SpareFiles, connections_within, raise_open_files};
use crate::openai::OpenAiError;
use crate::telemetry::Metrics;
use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{oneshot, watch};

/// Connections of the operators' port: probes, a scraper or two, a person.
const OPERATORS: usize = 64;

/// Connections that may wait to be accepted, as far as the kernel (`net.core.somaxconn`) allows. Where they are fewer than clients
/// who come at once, each of the others waits a second for its next try.
const BACKLOG: u32 = 4096;

/// Listens at an address; the error names the setting.
pub(super) fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, CommandError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A start right after an end finds connections of before in their last wait.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| CommandError::Unavailable(format!("{setting} {address}: {error}; choose another address")))
}

/// What the public and the OpenAI-compatible port may take each: as many connections as are configured, or as open files allow.
pub(super) fn limits(settings: &Settings) -> PortLimits {
    let server = &settings.server;
    let wanted = server.max_connections;
    let ports = 1 + u64::from(settings.openai.listen.is_some());
    let connections = match raise_open_files() {
        Ok(files) => connections_within(wanted, files, ports),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be read; it may be below server.max_connections");
            wanted
        }
    };
    if connections < wanted {
        tracing::warn!(connections, wanted, "open files allow fewer connections a port than server.max_connections");
    }
    PortLimits { connections, ..times(server) }
}

fn times(server: &ServerSettings) -> PortLimits {
    PortLimits {
        connections: OPERATORS,
        streams: server.max_streams,
        header: Duration::from_millis(server.header_timeout_ms),
        idle: Duration::from_millis(server.idle_timeout_ms),
    }
}

/// The public port.
pub(super) fn public(
    listener: TcpListener,
    door: Arc<Door>,
    limits: PortLimits,
    secrets: &Secrets,
    metrics: &Arc<Metrics>,
) -> Port {
    let (tls, metrics) = (secrets.tls_of(PortName::Public), metrics.clone());
    Port { name: "public", listener, routes: door, limits, tls, refusal: plain_refusal, spare: None, metrics }
}

/// The OpenAI-compatible port.
pub(super) fn openai(
    listener: TcpListener,
    routes: Router,
    limits: PortLimits,
    secrets: &Secrets,
    metrics: &Arc<Metrics>,
) -> Port {
    let refusal = |refusal: &Refusal| OpenAiError::refused(refusal.code, refusal.message).to_string();
    let (tls, metrics) = (secrets.tls_of(PortName::OpenAi), metrics.clone());
    Port { name: "openai", listener, routes: Arc::new(routes), limits, tls, refusal, spare: None, metrics }
}

fn plain_refusal(refusal: &Refusal) -> String {
    error_body(refusal.code, refusal.message, serde_json::Value::Null).to_string()
}

/// The operators' port, served by a thread and a runtime of its own, with files of its own in reserve: whatever clients do to the
/// others, probes are answered.
pub(super) struct Operators {
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<()>,
}

impl Operators {
    /// Serves from now on.
    pub fn serve(
        listener: TcpListener,
        routes: Router,
        server: &ServerSettings,
        secrets: &Secrets,
        metrics: &Arc<Metrics>,
    ) -> Result<Operators, CommandError> {
        let failed = |error: std::io::Error| CommandError::Internal(format!("operators' port: {error}"));
        let listener = listener.into_std().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = {
            let _context = runtime.enter();
            TcpListener::from_std(listener).map_err(failed)?
        };
        let port = Port {
            name: "admin",
            listener,
            routes: Arc::new(routes),
            limits: times(server),
            tls: secrets.tls_of(PortName::Admin),
            refusal: plain_refusal,
            spare: Some(SpareFiles::open()),
            metrics: metrics.clone(),
        };
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        let run = move || {
            runtime.block_on(listen::serve(port, stopped));
            // Nobody listens where the limit was over before.
            let _ = end.send(());
        };
        std::thread::Builder::new().name("operators".to_string()).spawn(run).map_err(failed)?;
        Ok(Operators { stop, ended })
    }

    /// Turns true when the port ends.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Lets open requests finish, for no longer than `limit`.
    pub async fn end(self, limit: Duration) {
        self.stop.send_replace(true);
        // A connection that never ends must not hold the process.
        if let Ok(Err(_)) = tokio::time::timeout(limit, self.ended).await {
            tracing::error!("the operators' port panicked");
        }
    }
}

/// The public port's door: before the routes are there it answers 503 (a store that is away at the start may take long),
/// and while the process leaves it sends callers elsewhere for their next request.
pub(super) struct Door {
    closed: Router,
    routes: OnceLock<Arc<dyn Routes>>,
    leaving: AtomicBool,
}

impl Default for Door {
    fn default() -> Door {
        let answer = |request: Request| async move { name_answer(&request, ApiError::Starting.into_response()) };
        Door { closed: Router::new().fallback(answer), routes: OnceLock::new(), leaving: AtomicBool::new(false) }
    }
}

impl Door {
    /// From now on requests go to these routes. A second call changes nothing.
    pub fn open(&self, routes: Arc<dyn Routes>) {
        self.routes.get_or_init(|| routes);
    }

    /// From now on every answer closes its connection.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }
}

impl Routes for Door {
    fn answer(&self, request: Request) -> BoxFuture<'static, Response> {
        match self.routes.get() {
            Some(routes) => routes.answer(request),
            None => self.closed.answer(request),
        }
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use axum::body::Body;
    use axum::http::{StatusCode, header};
    use axum::routing::get;

    async fn ask(door: &Door) -> Response {
        door.answer(Request::get("/here").body(Body::empty()).unwrap()).await
    }

    #[tokio::test]
    async fn the_door_is_closed_then_open_then_sends_callers_away() {
        let door = Door::default();
        let closed = ask(&door).await;
        assert_eq!(closed.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(closed.headers().contains_key(header::RETRY_AFTER));
        door.open(Arc::new(Router::new().route("/here", get(|| async { "found" }))));
        assert_eq!((ask(&door).await.status(), door.is_leaving()), (StatusCode::OK, false));
        door.leave();
        assert_eq!((ask(&door).await.status(), door.is_leaving()), (StatusCode::OK, true));
    }
}
