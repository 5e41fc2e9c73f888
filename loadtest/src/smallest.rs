//! The smallest handler that answers a read: axum, one GET of Redis, the bytes as they are. What a read of taiji is held beside.
//!
//! In: a Redis that holds answers. Out: a listening server. It checks no key, decodes nothing, counts nothing: any path `/smallest/KEY`
//! is the value of that key, or 404. A body is read and left, as a client of the real thing sends one.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::serve::ListenerExt;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use std::io::Write;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long Redis may take, as taiji lets it by default; the client's own is half a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum SmallestError {
    /// The store is not reached.
    #[error("redis: {0}; is a server there?")]
    Redis(#[from] redis::RedisError),
    /// The port is taken, or cannot be had.
    #[error("{address}: {cause}; choose another port with --listen")]
    Listen {
        /// Where it was to listen.
        address: String,
        /// What the system says.
        cause: std::io::Error,
    },
}

/// Serves until the process ends; says on standard output where, when it listens.
pub async fn serve(listen: &str, redis_url: &str) -> Result<(), SmallestError> {
    let refused = |cause| SmallestError::Listen { address: listen.to_string(), cause };
    let patient = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let connection = redis::Client::open(redis_url)?.get_multiplexed_async_connection_with_config(&patient).await?;
    let listener = TcpListener::bind(listen).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush()).map_err(refused)?;
    drop(stdout);
    let listener = listener.tap_io(|stream| {
        // Without it an answer may wait for the client's acknowledgement; where it cannot be set, that is seen in the figures.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router(connection)).await.map_err(refused)
}

fn router(connection: MultiplexedConnection) -> Router {
    Router::new().route("/smallest/{key}", any(answer)).with_state(connection)
}

async fn answer(
    State(mut connection): State<MultiplexedConnection>,
    Path(key): Path<String>,
    _body: Bytes,
) -> Response {
    let found: Result<Option<Vec<u8>>, redis::RedisError> =
        redis::cmd("GET").arg(&key).query_async(&mut connection).await;
    match found {
        Ok(Some(bytes)) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}
