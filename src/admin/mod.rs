//! The operators' port: `/livez`, `/readyz`, `/metrics`.
//!
//! In: readiness latches, metrics, the queue's depth. Out: text and JSON. Callers: `cli::serve` serves [`router`] and runs
//! [`follow_store`]. No answer waits for the store.

mod gauges;

pub use gauges::follow_store;

use crate::http::{json_error, name_request};
use crate::live::{Live, View};
use crate::store::FeatureStore;
use crate::telemetry::{Metrics, Readiness, Stall};
use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};

/// What the admin handlers share.
pub struct AdminState {
    /// Latches behind `/readyz`.
    pub readiness: Readiness,
    /// What `/metrics` prints.
    pub metrics: Arc<Metrics>,
    /// Store and what is loaded, once they are there: the port answers before they are.
    served: OnceLock<Served>,
    /// Of what was read from the store.
    age: gauges::Age,
}

/// What is looked at.
struct Served {
    store: Arc<dyn FeatureStore>,
    live: Arc<Live>,
}

impl AdminState {
    /// The state of a process that has not loaded anything yet.
    pub fn new(readiness: Readiness, metrics: Arc<Metrics>) -> AdminState {
        AdminState { readiness, metrics, served: OnceLock::new(), age: gauges::Age::new() }
    }

    /// The store is there, and a bundle is loaded. A second call changes nothing.
    pub fn attach(&self, store: Arc<dyn FeatureStore>, live: Arc<Live>) {
        self.served.get_or_init(|| Served { store, live });
    }

    /// Holds latches for what the parts say of themselves: a store that cannot be asked; a model that makes no step; and, for
    /// good, an LLM engine that caught a panic (a supervisor should replace the process).
    fn look_at_parts(&self) {
        let Some(served) = self.served.get() else { return };
        for (kind, count) in served.store.unreadable().counts() {
            let counter = self.metrics.store_unreadable.with_label_values(&[kind.as_str()]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        let trouble = served.store.trouble();
        self.metrics.store_reachable.set(i64::from(trouble.is_none()));
        match trouble {
            Some(reason) => self.readiness.hold("store", reason),
            None => self.readiness.release("store"),
        }
        let view = served.live.view();
        let Some(models) = view.models() else { return };
        let stalls = models.stalls();
        for part in ["llm", "encoder"] {
            match stalls.iter().find(|stall| stall.part == part) {
                Some(stall) => self.readiness.hold(part, said(stall)),
                None => self.readiness.release(part),
            }
        }
        if !models.llm.healthy() {
            self.readiness.hold("llm", "the llm engine panicked; see the log and replace this process");
        }
    }

    /// A model that has made no step for twice as long as makes the process unready.
    fn hung(&self) -> Option<Stall> {
        let view = self.served.get()?.live.view();
        let models = view.models()?;
        models.stalls().into_iter().find(|stall| stall.time >= models.stall * 2)
    }
}

fn said(stall: &Stall) -> String {
    format!("the {} has had work and made no step for {} s (engine.stall_ms)", stall.part, stall.time.as_secs())
}

/// The admin routes.
pub fn router(state: Arc<AdminState>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(readyz))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(state)
        .layer(middleware::from_fn(name_request))
}

/// The process answers, and no model hangs for good.
async fn livez(State(state): State<Arc<AdminState>>) -> Response {
    match state.hung() {
        None => Json(json!({ "live": true })).into_response(),
        Some(stall) => {
            let body = json!({ "live": false, "reason": format!("{}; replace this process", said(&stall)) });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// 200 when every latch is released, else 503; either way every latch with the reason it is held.
async fn readyz(State(state): State<Arc<AdminState>>) -> Response {
    state.look_at_parts();
    let ready = state.readiness.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let latches: Vec<Value> = state
        .readiness
        .latches()
        .into_iter()
        .map(|(name, held)| json!({ "latch": name, "ready": held.is_none(), "reason": held }))
        .collect();
    let view = state.served.get().map(|served| served.live.view());
    let engine = |view: &Arc<View>| match view.bundle().engine() {
        "null" => "null (canned answers; features carry the fallback flag)",
        engine => engine,
    };
    let body = json!({
        "ready": ready,
        "latches": latches,
        "epoch": view.as_ref().map(|view| view.epoch()),
        "space": view.as_ref().map(|view| view.space()),
        "engine": view.as_ref().map(engine),
    });
    (status, Json(body)).into_response()
}

/// Prometheus text; the store's own numbers are those of the last look at it.
async fn metrics(State(state): State<Arc<AdminState>>) -> Response {
    gauges::refresh_own(&state);
    match state.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => json_error(StatusCode::INTERNAL_SERVER_ERROR, "metrics", &error.to_string(), Value::Null),
    }
}

async fn method_not_allowed(method: Method) -> Response {
    let message = format!("{method} is not allowed here; the operators' port is read with GET");
    json_error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message, Value::Null)
}

async fn not_found() -> Response {
    let message = "known are /livez, /readyz, /metrics";
    json_error(StatusCode::NOT_FOUND, "not_found", message, Value::Null)
}
