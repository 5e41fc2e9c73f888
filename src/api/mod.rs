//! The public port: events and items in, features out.
//!
//! In: HTTP requests. Out: JSON. Reads never wait for a model: they look into the store (DESIGN 3, rule 1); the one
//! exception is asked for by name (`waiting`).
//! Callers: `main` builds one [`ApiState`] and serves [`router`]. One file per resource.

mod auth;
mod body;
mod columnar;
mod erase;
mod error;
mod events;
mod feast;
mod features;
mod history;
mod items;
mod layers;
mod refresh;
mod served;
mod staleness;
mod view;
mod waiting;

pub use auth::{ApiKeys, Scope};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use body::parse_batch;
pub(crate) use body::read_body;
pub use error::{ApiError, json_error};
pub use served::ServedFeed;
pub use waiting::Waiting;

use crate::bundle::Bundle;
use crate::config::ServerSettings;
use crate::erase::Eraser;
use crate::event::EventDecoder;
use crate::ingest::Ingest;
use crate::store::FeatureStore;
use crate::telemetry::Metrics;
use axum::Router;
use axum::middleware;
use axum::routing::{delete, get, post};
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore};

/// What the handlers share.
pub struct ApiState {
    /// Histories and features.
    pub store: Arc<dyn FeatureStore>,
    /// Space, provenance, shape of the defaults.
    pub bundle: Arc<Bundle>,
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
    /// Places for requests under way.
    pub places: Arc<Semaphore>,
    /// Requests that wait for refreshes.
    pub waiting: Waiting,
}

/// The public routes over a state.
pub fn router(state: Arc<ApiState>) -> Router {
    let routes = Router::new()
        .route("/v1/events", post(events::post_events))
        .route("/v1/items", post(items::post_items))
        .route("/v1/features", post(features::post_features))
        .route("/get-online-features", post(feast::get_online_features))
        .route("/v1/users/{id}/features", get(features::get_user_features))
        .route("/v1/users/{id}", delete(erase::delete_user))
        .route("/v1/users/{id}/refresh", post(refresh::post_refresh))
        .route("/v1/users/{id}/history", get(history::get_history))
        .method_not_allowed_fallback(error::method_not_allowed)
        .fallback(error::not_found)
        .with_state(state.clone());
    routes
        .layer(middleware::from_fn_with_state(state.clone(), layers::shed))
        .layer(middleware::from_fn_with_state(state, layers::measure))
        .layer(middleware::from_fn(layers::name_request))
}
