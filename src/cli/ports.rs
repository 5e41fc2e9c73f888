//! The ports of `serve`: binding them, the door of the public one, serving until told to stop.
//!
//! Caller: `serve`.

use super::CommandError;
use crate::http::ApiError;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt;

/// Listens at an address; the error names the setting.
pub(super) async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, CommandError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| CommandError::Unavailable(format!("{setting} {address}: {error}; choose another address")))
}

/// Serves until the flag turns true, then lets open requests finish.
pub(super) async fn serve_until(listener: TcpListener, app: Router, mut stopped: watch::Receiver<bool>) {
    let stop = async move {
        // An error means the sender is gone, which is a stop, too.
        while !*stopped.borrow_and_update() && stopped.changed().await.is_ok() {}
    };
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "server failed");
    }
}

/// The public port's door: before the routes are there it answers 503 (a store that is away at the start may take long),
/// and while the process leaves it sends callers elsewhere for their next request.
#[derive(Clone, Default)]
pub(super) struct Door {
    routes: Arc<OnceLock<Router>>,
    leaving: Arc<AtomicBool>,
}

impl Door {
    /// From now on requests go to these routes. A second call changes nothing.
    pub fn open(&self, routes: Router) {
        self.routes.get_or_init(|| routes);
    }

    /// From now on every answer closes its connection.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// What the port serves.
    pub fn router(&self) -> Router {
        let door = self.clone();
        Router::new().fallback(move |request: Request| door.clone().pass(request))
    }

    async fn pass(self, request: Request) -> Response {
        let mut response = match self.routes.get() {
            // A router's error type has no value.
            Some(routes) => routes.clone().oneshot(request).await.into_response(),
            None => ApiError::Starting.into_response(),
        };
        if self.leaving.load(Ordering::Relaxed) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::routing::get;

    async fn ask(door: &Door) -> Response {
        door.router().oneshot(Request::get("/here").body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn the_door_is_closed_then_open_then_sends_callers_away() {
        let door = Door::default();
        let closed = ask(&door).await;
        assert_eq!(closed.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(closed.headers().contains_key(header::RETRY_AFTER));
        door.open(Router::new().route("/here", get(|| async { "found" })));
        let open = ask(&door).await;
        assert_eq!((open.status(), open.headers().get(header::CONNECTION)), (StatusCode::OK, None));
        door.leave();
        let leaving = ask(&door).await;
        assert_eq!(
            (leaving.status(), leaving.headers()[header::CONNECTION].as_bytes()),
            (StatusCode::OK, &b"close"[..])
        );
    }
}
