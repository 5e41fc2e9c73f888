//! Rewards over HTTP, for a policy that is trained elsewhere: a 7 B model on somebody's cluster, by TRL or verl.
//!
//! In: `POST /v1/rewards`, answers with whom they are about, as tokens or text. Out: what each is worth by every reward of the recipe's stage
//! `align`, whether its format is right, which item it names, and what the policy of the start is worth there. Beside it
//! `GET /v1/rewards` (names, limits), `GET /metrics`, `GET /healthz`. Caller: `bin/taiji-trainer`. Clients: `clients/python/taiji_rl`.
//!
//! ```text
//! request ─► api (key, body, user, tokens → text) ─► queue ─► worker (one thread: all that wait, together) ─► RewardSet ─► answer
//! ```
//!
//! A reward that does not apply is `null`, which trainers leave out of their mean; one that is no number is 500 and names it, never a
//! silent poison of a batch.

mod api;
mod metrics;
#[cfg(test)]
mod tests;
mod wire;
mod worker;

pub use wire::{Described, RewardsRequest, RewardsResponse};

use crate::recipe::Ready;
use crate::stage::StageError;
use crate::stages::{AlignSources, open_align};
use axum::Router;
use std::net::SocketAddr;
use std::sync::Arc;
use taiji::http::ApiKeys;
use thiserror::Error;
use tokio::net::TcpListener;

/// How it is served.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// Address and port.
    pub listen: SocketAddr,
    /// Bearer keys, one of which a call needs; none = no key.
    pub keys: Vec<String>,
    /// Most answers of one request, and of one round of the worker.
    pub max_answers: usize,
    /// Most requests waiting; more are refused.
    pub max_waiting: usize,
    /// Largest body, bytes.
    pub max_body_bytes: usize,
    /// Threads of the encoder.
    pub threads: Option<usize>,
}

/// Why rewards are not served.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ServeError {
    #[error("--{0} must be positive")]
    Setting(&'static str),
    #[error("{listen}: {source}")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error("the reward service: {0}")]
    Serve(std::io::Error),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Stage(Box<StageError>),
}

impl From<StageError> for ServeError {
    fn from(error: StageError) -> ServeError {
        ServeError::Stage(Box::new(error))
    }
}

/// Opens what the stage is made from and serves it until `stop` ends; requests under way are answered. `listening` hears the address.
pub async fn serve(
    ready: &Ready,
    settings: &ServeSettings,
    listening: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let (_, sources) = open_align(&ready.settings, &ready.inputs, settings.threads)?;
    let app = router(sources, settings)?;
    let failed = |source| ServeError::Listen { listen: settings.listen, source };
    let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
    listening(listener.local_addr().map_err(failed)?);
    axum::serve(listener, app).with_graceful_shutdown(stop).await.map_err(ServeError::Serve)
}

/// The routes over opened sources.
pub(crate) fn router(sources: AlignSources, settings: &ServeSettings) -> Result<Router, ServeError> {
    for (name, value) in [
        ("max-answers", settings.max_answers),
        ("max-waiting", settings.max_waiting),
        ("max-body-bytes", settings.max_body_bytes),
    ] {
        if value == 0 {
            return Err(ServeError::Setting(name));
        }
    }
    let keys = ApiKeys::new(&settings.keys, &[], &[]);
    Ok(api::router(Arc::new(api::Service::new(sources, keys, settings)?)))
}
