//! Refreshes on real stores, with a bundle made here and an LLM whose canned answers can be held back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fast;
mod modes;
mod neighbours;
mod replicas;
mod swap;
mod worker;

use super::*;
use crate::bundle::testing::{self, DIM, STALL};
use crate::bundle::{Bundle, Inference};
use crate::config::{self, Settings};
use crate::due::{DuePolicy, FastQueue};
use crate::encode::NullEncoder;
use crate::event::ActionClass;
use crate::live::Live;
use crate::llm::{
    Beam, BeamRequest, GenerateRequest, Generation, LlmEngine, LlmError, NullLlm, Piece, Prompt, QueueDepth, Scored,
};
use crate::proto::Behaviour;
use crate::retrieve::{FaissUserIndex, UserSnapshot};
use crate::store::{
    EmbeddedOptions, EmbeddedStore, FeatureStore, Queue, Record, RecordBody, StoredFeatures, UserBatch, UserMarks,
};
use crate::telemetry::Metrics;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Where every bundle but those of `swap` writes.
const SPACE: &str = "space";
/// Items that every user knows; each is used by enough users to be shown.
const COMMON: usize = 4;
const SOON: Duration = Duration::from_secs(60);

/// Canned answers that come when the gate is open; knows for whom it works, by the attribute `who` of the prompt.
struct GatedLlm {
    gate: watch::Sender<bool>,
    latency: Duration,
    calls: Arc<Mutex<Calls>>,
    /// What it says of itself.
    stalled: Mutex<Option<Duration>>,
    /// It answers every prompt as this one.
    as_if: Mutex<Option<&'static str>>,
}

#[derive(Default)]
struct Calls {
    running: HashMap<String, usize>,
    /// Calls that began while another for the same user was running.
    overlaps: usize,
    /// User and time of each call.
    begun: Vec<(String, Instant)>,
}

/// A call under way; ends when dropped, as a killed worker's does.
struct Running(Arc<Mutex<Calls>>, String);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.lock().running.entry(self.1.clone()).or_default() -= 1;
    }
}

impl GatedLlm {
    fn new(open: bool, latency: Duration) -> Arc<GatedLlm> {
        Arc::new(GatedLlm {
            gate: watch::Sender::new(open),
            latency,
            calls: Arc::default(),
            stalled: Mutex::default(),
            as_if: Mutex::default(),
        })
    }

    fn open(&self) {
        self.gate.send_replace(true);
    }

    fn running(&self) -> usize {
        self.calls.lock().running.values().sum()
    }

    fn begun(&self) -> usize {
        self.calls.lock().begun.len()
    }

    fn begin(&self, prompt: &Prompt) -> Running {
        let Prompt::Text(text) = prompt else { panic!("refreshes send text") };
        let user = text.split("who ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("who").to_string();
        let mut calls = self.calls.lock();
        let running = calls.running.entry(user.clone()).or_default();
        *running += 1;
        calls.overlaps += usize::from(calls.running[&user] > 1);
        calls.begun.push((user.clone(), Instant::now()));
        Running(self.calls.clone(), user)
    }
}

#[async_trait]
impl LlmEngine for GatedLlm {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, LlmError> {
        let _running = self.begin(&request.prompt);
        self.gate.subscribe().wait_for(|open| *open).await.unwrap();
        tokio::time::sleep(self.latency).await;
        let prompt = self.as_if.lock().map_or(request.prompt.clone(), |text| Prompt::Text(text.to_string()));
        NullLlm::default().generate(GenerateRequest { prompt, ..request }).await
    }

    async fn stream(&self, request: GenerateRequest) -> Result<mpsc::UnboundedReceiver<Piece>, LlmError> {
        NullLlm::default().stream(request).await
    }

    async fn beam(&self, request: BeamRequest) -> Result<Vec<Beam>, LlmError> {
        NullLlm::default().beam(request).await
    }

    async fn score(&self, prompt: Vec<u32>, continuation: Vec<u32>) -> Result<Vec<Scored>, LlmError> {
        NullLlm::default().score(prompt, continuation).await
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        NullLlm::default().tokenize(text)
    }

    fn count_tokens(&self, text: &str) -> usize {
        NullLlm::default().count_tokens(text)
    }

    fn prompt_limit(&self, max_new_tokens: usize) -> usize {
        NullLlm::default().prompt_limit(max_new_tokens)
    }

    fn model_id(&self) -> &str {
        "gated"
    }

    fn queue_depth(&self) -> QueueDepth {
        NullLlm::default().queue_depth()
    }

    fn stalled(&self) -> Option<Duration> {
        *self.stalled.lock()
    }

    fn healthy(&self) -> bool {
        true
    }
}

/// A bundle in memory: this LLM, the canned encoder.
fn bundle(llm: Arc<GatedLlm>) -> Arc<Bundle> {
    bundle_with(llm, FaissUserIndex::empty(DIM).unwrap(), UserSnapshot::default())
}

/// The same over an index and the histories of its main part.
fn bundle_with(llm: Arc<GatedLlm>, index: FaissUserIndex, snapshot: UserSnapshot) -> Arc<Bundle> {
    let models = Inference { index: Arc::new(index), snapshot, ..testing::models(llm) };
    testing::bundle(1, SPACE, Some(models))
}

/// Every user with news is due at once.
fn eager() -> Settings {
    let mut settings = config::load(None, std::iter::empty(), &[]).unwrap();
    let refresh = &mut settings.refresh;
    (refresh.weight_threshold, refresh.min_interval_ms, refresh.max_interval_ms) = (0.0, 0, 0);
    refresh.poll_ms = 10;
    settings
}

fn refresher(store: Arc<dyn FeatureStore>, bundle: Arc<Bundle>, settings: &Settings) -> Arc<Refresher> {
    let metrics = Arc::new(Metrics::new().unwrap());
    let live = Live::new(bundle);
    Arc::new(Refresher::new(store, live, metrics, settings.refresh.clone(), settings.retrieve.clone()))
}

fn embedded(folder: &Path) -> Arc<dyn FeatureStore> {
    EmbeddedStore::open(folder, EmbeddedOptions { cache_bytes: 4 << 20, ..EmbeddedOptions::default() }).unwrap()
}

/// A user's events: who they are, and then engagements with the common items and with those of the numbers given.
fn events(user: &str, items: &[usize]) -> UserBatch {
    let who = [("who".to_string(), user.into())].into();
    let mut records =
        vec![Record { ts_ms: 1, event_id: "who".into(), former_id: None, weight: 1.0, body: RecordBody::Profile(who) }];
    records.extend((0..COMMON).chain(items.iter().copied()).map(|item| engagement(item, 10 + item as i64)));
    UserBatch { user: user.into(), records }
}

fn engagement(item: usize, ts_ms: i64) -> Record {
    let behaviour = Behaviour { item_id: format!("i{item}"), action: "click".into(), ..Behaviour::default() };
    let body = RecordBody::Behaviour { class: ActionClass::Engagement, behaviour };
    Record { ts_ms, event_id: format!("e{item}"), former_id: None, weight: 1.0, body }
}

/// Appends and marks due, as the ingest does.
async fn take_in(store: &dyn FeatureStore, space: &str, settings: &Settings, batches: &[UserBatch]) {
    let policy = DuePolicy::new(&settings.refresh);
    let outcomes = store.append(&[space.to_string()], batches).await.unwrap();
    let now_ms = store.now_ms().await.unwrap();
    let due = batches.iter().zip(&outcomes).filter_map(|(batch, outcome)| {
        let (class, due_ms) = policy.due(outcome, false, now_ms)?;
        Some(crate::store::DueEntry { user: batch.user.clone(), class, due_ms })
    });
    store.mark_due(Queue::Due, &due.collect::<Vec<_>>()).await.unwrap();
    let users: Vec<String> = batches.iter().map(|batch| batch.user.clone()).collect();
    FastQueue::new(&settings.refresh).mark(store, &users, now_ms).await.unwrap();
}

async fn marks(store: &dyn FeatureStore, space: &str, user: &str) -> UserMarks {
    store.states(&[space.to_string()], &[user.to_string()]).await.unwrap().remove(0).unwrap_or_default()
}

async fn stored(store: &dyn FeatureStore, space: &str, user: &str) -> StoredFeatures {
    store.features(space, &[user.to_string()]).await.unwrap().remove(0).unwrap_or_default()
}

/// Looks again and again until there is something to see.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "waited {SOON:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
