//! The public port: events and items in, features out.
//!
//! In: HTTP requests. Out: JSON, or what a reader would rather have (`wire`). Reads never wait for a model: they look into the store (DESIGN 3, rule 1); the one
//! exception is asked for by name (`waiting`).
//! Callers: `main` builds one [`ApiState`] and serves a [`Port`]. One file per resource.

mod erase;
mod events;
mod feast;
mod features;
mod history;
mod items;
mod reader_budget;
mod refresh;
mod staleness;
mod waiting;
mod wire;

pub use reader_budget::ReaderBudget;
pub use waiting::Waiting;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use wire::is_request;

use crate::config::ServerSettings;
use crate::erase::Eraser;
use crate::event::EventDecoder;
use crate::http::{self, Admission, ApiError, ApiKeys, BodyLimits, RequestId, Scope};
use crate::ingest::Ingest;
use crate::listen::Routes;
use crate::live::Live;
use crate::publish::ServedFeed;
use crate::store::FeatureStore;
use crate::telemetry::Metrics;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use wire::Encoding;

/// What the handlers share.
pub struct ApiState {
    /// Histories and features.
    pub store: Arc<dyn FeatureStore>,
    /// Space, provenance, shape of the defaults; a request takes one view of it.
    pub live: Arc<Live>,
    /// The way of an event.
    pub ingest: Arc<Ingest>,
    /// JSON → event.
    pub decoder: EventDecoder,
    /// Takes requests for erasures.
    pub eraser: Arc<Eraser>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Limits.
    pub limits: ServerSettings,
    /// Keys; none = open.
    pub keys: ApiKeys,
    /// Rung after events made users due.
    pub wake: Arc<Notify>,
    /// What is served, for the served topic; `None` = off.
    pub served: Option<Arc<ServedFeed>>,
    /// Requests that wait for refreshes.
    pub waiting: Waiting,
    /// How many refreshes readers may ask for.
    pub readers: ReaderBudget,
}

impl ApiState {
    /// What every read with a body does first, the key before all else: how the answer is written, how the body is, the body.
    async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        encodings: &[Encoding],
    ) -> Result<(Encoding, Encoding, Bytes), ApiError> {
        self.keys.require(headers, Scope::Read)?;
        let (answer, question) = (wire::accepted(headers, encodings)?, wire::sent(headers, encodings)?);
        Ok((answer, question, http::read_body(body).await?))
    }
}

/// The public port over a state.
///
/// What rankers ask most is asked for by its path alone and goes straight to its handler: the router matches, clones and boxes for every
/// request, which is as much work as the read itself. All else, and other methods on that path, go through the routes.
pub struct Port {
    state: Arc<ApiState>,
    admission: Arc<Admission>,
    routes: Router,
}

/// The path of a read of many users.
const FEATURES: &str = "/v1/features";

impl Port {
    /// Over that state.
    pub fn new(state: Arc<ApiState>) -> Port {
        let (limits, keys) = (&state.limits, state.keys.clone());
        let (bodies, refuse) = (BodyLimits::new(limits), ApiError::into_response);
        let admission = Admission::new(limits.max_in_flight, bodies, keys, refuse, state.metrics.clone());
        // A 503 of this port is the store's.
        let queue = Duration::from_millis(limits.queue_ms);
        let admission = Arc::new(admission.with_queue(queue).with_store_errors("api"));
        let routes = router(state.clone()).layer(middleware::from_fn_with_state(admission.clone(), http::admit));
        Port { state, admission, routes }
    }
}

impl Routes for Port {
    fn answer(&self, request: Request) -> BoxFuture<'static, Response> {
        if request.method() != Method::POST || request.uri().path() != FEATURES {
            return self.routes.answer(request);
        }
        let (state, admission) = (self.state.clone(), self.admission.clone());
        Box::pin(async move {
            let read = |request, id: RequestId| async move {
                features::read_features(&state, &id, request).await.unwrap_or_else(ApiError::into_response)
            };
            admission.pass(Some(FEATURES), request, read).await
        })
    }
}

fn router(state: Arc<ApiState>) -> Router {
    Router::new()
        .route("/v1/events", post(events::post_events))
        .route("/v1/items", post(items::post_items))
        .route("/v1/items/{id}", delete(items::delete_item))
        .route(FEATURES, post(features::post_features))
        .route("/get-online-features", post(feast::get_online_features))
        .route("/v1/users/{id}/features", get(features::get_user_features))
        .route("/v1/users/{id}", delete(erase::delete_user))
        .route("/v1/users/{id}/refresh", post(refresh::post_refresh))
        .route("/v1/users/{id}/history", get(history::get_history))
        .method_not_allowed_fallback(http::method_not_allowed)
        .fallback(http::not_found)
        .with_state(state)
}
