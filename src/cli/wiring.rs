//! Building the parts of `serve` and the tasks between them.

use super::{CommandError, key_watch, opening};
use crate::api::{ApiState, ReaderBudget, Waiting};
use crate::config::{Role, Settings};
use crate::due::{DuePolicy, FastQueue};
use crate::erase::{self, Eraser, HideError, IdleUsers};
use crate::event::EventDecoder;
use crate::http::{ApiKeys, BodyLimits};
use crate::ingest::Ingest;
use crate::ingest::kafka::{KafkaIngest, KafkaParts};
use crate::live::{Follower, Live, View};
use crate::openai::{self, OpenAiState};
use crate::publish::{ChangeFeed, FeaturePublisher, ServedFeed, ServedPublisher};
use crate::refresh::{Arrivals, Listeners, Refresher, Sweep, Worker};
use crate::store::chore::{self, Chore};
use crate::store::{FeatureStore, StoreError};
use crate::telemetry::events::StoreCallFailed;
use crate::telemetry::{Metrics, Readiness};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How often users are looked at of whom nothing comes: a tenth of their time, within these.
const IDLE_LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// Everything `serve` runs.
pub(super) struct Parts {
    pub store: Arc<dyn FeatureStore>,
    pub live: Arc<Live>,
    pub api: Arc<ApiState>,
    /// With the role infer.
    worker: Option<Worker>,
    /// What the feeds bring, as far as it was replayed.
    follower: Follower,
    /// Users whose features changed, where the change feed is on.
    changes: Option<Arc<ChangeFeed>>,
    /// Tells the served topic what was served, where that is on.
    served: Option<Arc<ServedPublisher>>,
    pub metrics: Arc<Metrics>,
    readiness: Readiness,
}

/// Opens the store and loads the bundle, releasing their latches; replays the vector and item feeds. A store that is away
/// is waited for.
pub(super) async fn build(
    settings: &Settings,
    keys: &ApiKeys,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
) -> Result<Parts, CommandError> {
    let store = opening::await_store(settings, metrics, readiness).await?;
    readiness.release("store");
    let live = Live::new(opening::load_bundle(settings, metrics).await?);
    readiness.release("bundle");
    let mut follower = Follower::new(store.clone());
    let replay = async || {
        key_watch::look(store.as_ref(), &live.view(), readiness).await;
        replay(store.as_ref(), &live.view(), &mut follower).await
    };
    let replayed = opening::patiently("index", metrics, readiness, HideError::may_pass, replay).await;
    replayed.map_err(|error| CommandError::Unavailable(error.to_string()))?;
    readiness.release("index");

    let wake = Arc::new(Notify::new());
    let arrivals = Arc::new(Arrivals::default());
    let fast = FastQueue::new(&settings.refresh);
    let policy = DuePolicy::new(&settings.refresh);
    let actions = settings.events.actions.clone();
    let served = served_publisher(settings, metrics)?;
    let ingest = Ingest::new(store.clone(), actions.clone(), policy).with_fast_path(fast.clone());
    // In every role: who erases tells, too.
    let publishes = settings.kafka.is_on() && !settings.kafka.features_topic.is_empty();
    let changes = publishes.then(Arc::<ChangeFeed>::default);
    let api = ApiState {
        store: store.clone(),
        live: live.clone(),
        ingest: Arc::new(ingest),
        decoder: EventDecoder::new(actions, settings.events.field_map.clone()),
        eraser: Arc::new(
            Eraser::new(
                store.clone(),
                metrics.clone(),
                settings.erase.retention_ms,
                Duration::from_millis(settings.erase.interval_ms),
            )
            .telling(changes.clone()),
        ),
        metrics: metrics.clone(),
        limits: settings.server.clone(),
        keys: keys.clone(),
        wake: wake.clone(),
        served: served.as_ref().map(|publisher| publisher.feed()),
        readers: ReaderBudget::new(&settings.refresh),
        waiting: Waiting::new(&settings.server, arrivals.clone(), fast),
    };
    let worker = live.view().models().map(|_| {
        let (refresh, retrieve) = (settings.refresh.clone(), settings.retrieve.clone());
        let refresher = Refresher::new(store.clone(), live.clone(), metrics.clone(), refresh, retrieve);
        Worker::new(Arc::new(refresher), wake, Listeners { arrivals, changes: changes.clone() })
    });
    let (metrics, readiness) = (metrics.clone(), readiness.clone());
    Ok(Parts { store, live, api: Arc::new(api), worker, follower, changes, served, metrics, readiness })
}

/// What the store knows and the bundle does not: fresh vectors, erasures, catalogue changes. May be repeated.
async fn replay(store: &dyn FeatureStore, view: &View, follower: &mut Follower) -> Result<(), HideError> {
    for space in view.spaces().all() {
        store.note_space(space).await?;
    }
    let vectors = follower.vectors(view).await?;
    let hidden = match view.models() {
        Some(models) => erase::hide_in_index(store, models.index.as_ref()).await?,
        None => 0,
    };
    let items = follower.items(view).await?;
    tracing::info!(vectors, hidden, items, "replayed fresh vectors, erasures and catalogue changes");
    Ok(())
}

/// The Kafka ingest where brokers are configured and this process has the role; holds its readiness latch.
pub(super) fn kafka_ingest(
    settings: &Settings,
    parts: &Parts,
    readiness: &Readiness,
) -> Result<Option<KafkaIngest>, CommandError> {
    if !reads_kafka(settings) {
        return Ok(None);
    }
    let api = &parts.api;
    let kafka_parts = KafkaParts {
        store: parts.store.clone(),
        ingest: api.ingest.clone(),
        decoder: api.decoder.clone(),
        live: parts.live.clone(),
        metrics: parts.metrics.clone(),
        readiness: readiness.clone(),
        wake: api.wake.clone(),
        // The rest of the drain comes after it.
        drain_limit: Duration::from_millis(settings.server.drain_timeout_ms.saturating_mul(2) / 3),
    };
    let ingest = KafkaIngest::new(settings.kafka.clone(), kafka_parts);
    ingest.map(Some).map_err(|error| CommandError::Usage(error.to_string()))
}

/// Whether this process takes events from Kafka.
pub(super) fn reads_kafka(settings: &Settings) -> bool {
    settings.kafka.is_on() && settings.server.has(Role::Ingest)
}

/// The change feed's publisher where it is configured.
pub(super) fn feature_publisher(settings: &Settings, parts: &Parts) -> Result<Option<FeaturePublisher>, CommandError> {
    let Some(changes) = parts.changes.clone() else { return Ok(None) };
    let (live, store) = (parts.live.clone(), parts.store.clone());
    let publisher = FeaturePublisher::new(&settings.kafka, live, store, changes, parts.metrics.clone());
    publisher.map(Some).map_err(|error| CommandError::Usage(error.to_string()))
}

/// The publisher of what is served, where it is configured; it needs no ingest.
fn served_publisher(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Option<Arc<ServedPublisher>>, CommandError> {
    let kafka = &settings.kafka;
    if !kafka.is_on() || kafka.served_topic.is_empty() {
        return Ok(None);
    }
    let feed = Arc::new(ServedFeed::new(kafka.served_sample, metrics.clone()));
    let publisher = ServedPublisher::new(kafka, feed, metrics.clone());
    publisher.map(|publisher| Some(Arc::new(publisher))).map_err(|error| CommandError::Usage(error.to_string()))
}

/// What the OpenAI-compatible port shares. The settings were checked: it needs the role infer.
pub(super) fn openai_state(settings: &Settings, parts: &Parts) -> Arc<OpenAiState> {
    Arc::new(OpenAiState {
        live: parts.live.clone(),
        settings: settings.openai.clone(),
        bodies: BodyLimits::new(&settings.server),
        keys: parts.api.keys.clone(),
        metrics: parts.metrics.clone(),
        started: openai::unix_seconds(),
    })
}

impl Parts {
    /// Starts the refresh worker, the feeds' tails, the sweep and Kafka's ingest; each ends when `stopped` turns true, and only then
    /// without an error.
    pub(super) fn spawn_tasks(
        self: &Parts,
        settings: &Settings,
        kafka: Option<KafkaIngest>,
        publisher: Option<FeaturePublisher>,
        stopped: watch::Receiver<bool>,
    ) -> JoinSet<Result<(), StoreError>> {
        let mut tasks = JoinSet::new();
        if let Some(publisher) = publisher {
            let stop = stopped.clone();
            tasks.spawn(async move {
                publisher.run(stop).await;
                Ok(())
            });
        }
        if let Some(served) = self.served.clone() {
            let stop = stopped.clone();
            tasks.spawn(async move {
                served.run(stop).await;
                Ok(())
            });
        }
        if let Some(kafka) = kafka {
            let (runtime, stop) = (Handle::current(), stopped.clone());
            tasks.spawn_blocking(move || {
                kafka.run_blocking(&runtime, stop);
                Ok(())
            });
        }
        if let Some(worker) = self.worker.clone().filter(|_| settings.refresh.enabled) {
            let stop = stopped.clone();
            tasks.spawn(async move { worker.run(stop).await });
            let sweep = Sweep { live: self.live.clone(), metrics: self.metrics.clone() };
            let every = Duration::from_millis(settings.refresh.sweep_interval_ms);
            tasks.spawn(self.chore("sweep", sweep, every, stopped.clone()));
        }
        if settings.store.user_idle_ttl_ms > 0 {
            let ttl_ms = settings.store.user_idle_ttl_ms;
            let every = Duration::from_millis(ttl_ms.unsigned_abs() / 10).clamp(IDLE_LOOKS.0, IDLE_LOOKS.1);
            let idle = IdleUsers { ttl_ms, every, metrics: self.metrics.clone(), stop: stopped.clone() };
            tasks.spawn(self.chore("idle users", idle, every, stopped.clone()));
        }
        let (eraser, stop) = (self.api.eraser.clone(), stopped.clone());
        tasks.spawn(async move {
            eraser.run(stop).await;
            Ok(())
        });
        let (live, readiness) = (self.live.clone(), self.readiness.clone());
        tasks.spawn(key_watch::watch(self.store.clone(), live, readiness, stopped.clone()));
        tasks.spawn(self.follow_feeds(settings.retrieve.tail_interval_ms, stopped));
        tasks
    }

    /// Applies fresh vectors and catalogue changes as they come.
    fn follow_feeds(
        &self,
        interval_ms: u64,
        mut stopped: watch::Receiver<bool>,
    ) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let (mut follower, live, metrics) = (self.follower.clone(), self.live.clone(), self.metrics.clone());
        async move {
            while wait(interval_ms, &mut stopped).await {
                let view = live.view();
                if let Err(error) = follower.vectors(&view).await {
                    StoreCallFailed { operation: "vectors_after", error: &error }.emit(&metrics);
                }
                if let Err(error) = follower.items(&view).await {
                    StoreCallFailed { operation: "items_after", error: &error }.emit(&metrics);
                }
            }
            Ok(())
        }
    }

    /// Does a chore again and again, `every` so often, with all processes together.
    fn chore<C: Chore + 'static>(
        &self,
        operation: &'static str,
        mut chore: C,
        every: Duration,
        mut stopped: watch::Receiver<bool>,
    ) -> impl Future<Output = Result<(), StoreError>> + use<C> {
        let (store, metrics) = (self.store.clone(), self.metrics.clone());
        async move {
            loop {
                if let Err(error) = chore::carry_on(store.as_ref(), &mut chore, every, &stopped).await {
                    StoreCallFailed { operation, error: &error }.emit(&metrics);
                }
                // Another process may be at it, and may die.
                if !wait(every.min(chore::LOOK).as_millis() as u64, &mut stopped).await {
                    return Ok(());
                }
            }
        }
    }
}

/// Waits an interval; false when it was told to stop.
pub(super) async fn wait(interval_ms: u64, stopped: &mut watch::Receiver<bool>) -> bool {
    if *stopped.borrow() {
        return false;
    }
    tokio::select! {
        _ = tokio::time::sleep(Duration::from_millis(interval_ms)) => true,
        changed = stopped.changed() => changed.is_ok() && !*stopped.borrow(),
    }
}
