//! Building the parts of `serve` and the tasks between them.

use super::CommandError;
use crate::api::{ApiKeys, ApiState, ServedFeed};
use crate::bundle::{self, Bundle, LLM_FOLDER, LoadOptions};
use crate::config::{EngineKind, EngineSettings, ProviderKind, Settings};
use crate::erase::{self, Eraser};
use crate::event::EventDecoder;
use crate::ingest::Ingest;
use crate::ingest::kafka::features::FeaturePublisher;
use crate::ingest::kafka::served::ServedPublisher;
use crate::ingest::kafka::{KafkaIngest, KafkaParts};
use crate::llm::{LlmOptions, Provider};
use crate::openai::{self, OpenAiState, ServedModel};
use crate::refresh::{ChangeFeed, DuePolicy, Refresher, Worker};
use crate::retrieve::VectorTail;
use crate::store::embedded::{EmbeddedOptions, EmbeddedStore};
use crate::store::redis::{Address, Patience, RedisOptions, RedisStore};
use crate::store::{FeatureStore, StoreError};
use crate::telemetry::events::StoreCallFailed;
use crate::telemetry::{Metrics, Readiness};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

/// Everything `serve` runs.
pub(super) struct Parts {
    pub store: Arc<dyn FeatureStore>,
    pub bundle: Arc<Bundle>,
    pub api: Arc<ApiState>,
    worker: Worker,
    tail: VectorTail,
    /// Users whose features changed, where the change feed is on.
    changes: Option<Arc<ChangeFeed>>,
    /// Tells the served topic what was served, where that is on.
    served: Option<Arc<ServedPublisher>>,
    metrics: Arc<Metrics>,
}

/// Opens the store and loads the bundle, releasing their latches; replays the vector and item feeds.
pub(super) async fn build(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
) -> Result<Parts, CommandError> {
    let store = open_store(settings).await?;
    readiness.release("store");
    let bundle = load_bundle(settings, metrics).await?;
    let space = bundle.manifest.space.clone();
    let engine = if bundle.canned { "null" } else { "onnx" };
    metrics
        .bundle_info
        .with_label_values(&[&bundle.manifest.epoch.to_string(), &space, &bundle.manifest.models.llm, engine])
        .set(1);
    readiness.release("bundle");

    let failed = |error: crate::store::StoreError| CommandError::Unavailable(error.to_string());
    store.note_space(&space).await.map_err(failed)?;
    let mut tail = VectorTail::new(store.clone(), bundle.index.clone(), space.clone());
    let vectors = tail.catch_up().await.map_err(failed)?;
    let hidden = erase::hide_in_index(store.as_ref(), bundle.index.as_ref())
        .await
        .map_err(|error| CommandError::Unavailable(error.to_string()))?;
    let items = bundle.catalogue.catch_up(store.as_ref()).await.map_err(failed)?;
    tracing::info!(vectors, hidden, items, "replayed fresh vectors, erasures and catalogue changes");
    readiness.release("index");

    let wake = Arc::new(Notify::new());
    let policy = DuePolicy::new(&settings.refresh);
    let actions = settings.events.actions.clone();
    let auth = &settings.auth;
    let served = served_publisher(settings, &space, metrics)?;
    let ingest = Arc::new(Ingest::new(store.clone(), space, actions.clone(), policy));
    let api = ApiState {
        store: store.clone(),
        bundle: bundle.clone(),
        ingest,
        decoder: EventDecoder::new(actions, settings.events.field_map.clone()),
        eraser: Arc::new(Eraser::new(
            store.clone(),
            metrics.clone(),
            settings.erase.retention_ms,
            Duration::from_millis(settings.erase.interval_ms),
        )),
        metrics: metrics.clone(),
        limits: settings.server.clone(),
        keys: ApiKeys::new(&auth.read_keys, &auth.write_keys, &auth.admin_keys),
        wake: wake.clone(),
        served: served.as_ref().map(|publisher| publisher.feed()),
        places: Arc::new(Semaphore::new(settings.server.max_in_flight)),
    };
    let refresher = Refresher::new(
        store.clone(),
        bundle.clone(),
        metrics.clone(),
        settings.refresh.clone(),
        settings.retrieve.clone(),
    );
    let publishes = settings.kafka.is_on() && !settings.kafka.features_topic.is_empty();
    let changes = publishes.then(Arc::<ChangeFeed>::default);
    let worker = Worker::new(Arc::new(refresher), wake, changes.clone());
    Ok(Parts { store, bundle, api: Arc::new(api), worker, tail, changes, served, metrics: metrics.clone() })
}

pub(super) async fn open_store(settings: &Settings) -> Result<Arc<dyn FeatureStore>, CommandError> {
    if Address::is_redis(&settings.store.url) {
        let opened = RedisStore::open(redis_address(settings)?, redis_options(settings)).await;
        return Ok(opened.map_err(|error| CommandError::Unavailable(format!("store.url: {error}")))?);
    }
    // The scheme was checked with the settings.
    let folder = settings.store.url.trim_start_matches("embedded:");
    let options = EmbeddedOptions {
        namespace: settings.store.namespace.clone(),
        flush_interval: Duration::from_millis(settings.store.flush_interval_ms),
        ..EmbeddedOptions::default()
    };
    let store = EmbeddedStore::open(Path::new(folder), options)
        .map_err(|error| CommandError::Unavailable(format!("store.url: {error}")))?;
    Ok(store)
}

/// The address of `store.url`, with the authority of `store.ca_file`.
pub(super) fn redis_address(settings: &Settings) -> Result<Address, CommandError> {
    let address =
        Address::parse(&settings.store.url).map_err(|message| CommandError::Usage(format!("store.url: {message}")))?;
    if settings.store.ca_file.is_empty() {
        return Ok(address);
    }
    let pem = std::fs::read(&settings.store.ca_file)
        .map_err(|error| CommandError::Unavailable(format!("store.ca_file {}: {error}", settings.store.ca_file)))?;
    Ok(address.with_authority(pem))
}

pub(super) fn redis_options(settings: &Settings) -> RedisOptions {
    let store = &settings.store;
    let patience = Patience {
        connect: Duration::from_millis(store.connect_timeout_ms),
        response: Duration::from_millis(store.response_timeout_ms),
        retries: store.retries,
    };
    RedisOptions { namespace: store.namespace.clone(), shards: store.shards, patience }
}

async fn load_bundle(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Arc<Bundle>, CommandError> {
    let folder = settings.bundle.dir.clone();
    let engine = &settings.engine;
    let options = LoadOptions {
        canned: engine.kind == EngineKind::Null,
        onnxruntime: (!engine.onnxruntime.is_empty()).then(|| engine.onnxruntime.clone().into()),
        llm: llm_options(engine, metrics),
        encoder_threads: engine.encoder_threads,
        nprobe: settings.retrieve.nprobe,
    };
    let loaded = tokio::task::spawn_blocking(move || bundle::load(&folder, &options))
        .await
        .map_err(|error| CommandError::Internal(format!("bundle load: {error}")))?;
    loaded.map(Arc::new).map_err(|error| CommandError::Unavailable(error.to_string()))
}

fn llm_options(engine: &EngineSettings, metrics: &Arc<Metrics>) -> LlmOptions {
    let provider = match engine.provider {
        ProviderKind::Cpu => Provider::Cpu,
        ProviderKind::Cuda => Provider::Cuda {
            device: engine.device,
            memory_limit: engine.device_memory_bytes,
            graphs: engine.cuda_graphs,
        },
    };
    LlmOptions {
        threads: engine.llm_threads,
        spin: engine.llm_spin,
        max_rows: engine.max_rows,
        queue_limit: engine.queue_limit,
        queue_tokens: engine.queue_tokens,
        max_tokens: engine.max_batch_tokens,
        prefill_chunk: engine.prefill_chunk,
        provider,
        prepack_dir: (!engine.prepack_dir.is_empty()).then(|| engine.prepack_dir.clone().into()),
        metrics: Some(metrics.clone()),
        ..LlmOptions::default()
    }
}

/// The Kafka ingest where brokers are configured; holds its readiness latch.
pub(super) fn kafka_ingest(
    settings: &Settings,
    parts: &Parts,
    readiness: &Readiness,
) -> Result<Option<KafkaIngest>, CommandError> {
    if !settings.kafka.is_on() {
        return Ok(None);
    }
    let api = &parts.api;
    let kafka_parts = KafkaParts {
        store: parts.store.clone(),
        ingest: api.ingest.clone(),
        decoder: api.decoder.clone(),
        catalogue: parts.bundle.catalogue.clone(),
        metrics: parts.metrics.clone(),
        readiness: readiness.clone(),
        wake: api.wake.clone(),
        // The rest of the drain comes after it.
        drain_limit: Duration::from_millis(settings.server.drain_timeout_ms.saturating_mul(2) / 3),
    };
    let ingest = KafkaIngest::new(settings.kafka.clone(), kafka_parts);
    ingest.map(Some).map_err(|error| CommandError::Usage(error.to_string()))
}

/// The change feed's publisher where it is configured.
pub(super) fn feature_publisher(settings: &Settings, parts: &Parts) -> Result<Option<FeaturePublisher>, CommandError> {
    let Some(changes) = parts.changes.clone() else { return Ok(None) };
    let space = parts.bundle.manifest.space.clone();
    let publisher = FeaturePublisher::new(&settings.kafka, space, parts.store.clone(), changes, parts.metrics.clone());
    publisher.map(Some).map_err(|error| CommandError::Usage(error.to_string()))
}

/// The publisher of what is served, where it is configured; it needs no ingest.
fn served_publisher(
    settings: &Settings,
    space: &str,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<ServedPublisher>>, CommandError> {
    let kafka = &settings.kafka;
    if !kafka.is_on() || kafka.served_topic.is_empty() {
        return Ok(None);
    }
    let feed = Arc::new(ServedFeed::new(space.to_string(), kafka.served_sample, metrics.clone()));
    let publisher = ServedPublisher::new(kafka, feed, metrics.clone());
    publisher.map(|publisher| Some(Arc::new(publisher))).map_err(|error| CommandError::Usage(error.to_string()))
}

/// What the OpenAI-compatible port shares; reads the chat template.
pub(super) fn openai_state(settings: &Settings, parts: &Parts) -> Result<Arc<OpenAiState>, CommandError> {
    let bundle = &parts.bundle;
    let folder = settings.bundle.dir.join(LLM_FOLDER);
    let model = ServedModel::load(&folder, &settings.openai.template)
        .map_err(|error| CommandError::Unavailable(format!("openai: {error}")))?;
    Ok(Arc::new(OpenAiState {
        llm: bundle.llm.clone(),
        encoder: bundle.encoder.clone(),
        model,
        settings: settings.openai.clone(),
        max_body_bytes: settings.server.max_body_bytes,
        keys: parts.api.keys.clone(),
        metrics: parts.metrics.clone(),
        places: Arc::new(Semaphore::new(settings.openai.max_in_flight)),
        started: openai::unix_seconds(),
    }))
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
        if settings.refresh.enabled {
            let worker = self.worker.clone();
            let stop = stopped.clone();
            tasks.spawn(async move { worker.run(stop).await });
            tasks.spawn(self.sweep(settings.refresh.sweep_interval_ms, stopped.clone()));
        }
        let (eraser, stop) = (self.api.eraser.clone(), stopped.clone());
        tasks.spawn(async move {
            eraser.run(stop).await;
            Ok(())
        });
        tasks.spawn(self.follow_feeds(settings.retrieve.tail_interval_ms, stopped));
        tasks
    }

    /// Applies fresh vectors and catalogue changes as they come.
    fn follow_feeds(
        &self,
        interval_ms: u64,
        mut stopped: watch::Receiver<bool>,
    ) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let (mut tail, bundle) = (self.tail.clone(), self.bundle.clone());
        let (store, metrics) = (self.store.clone(), self.metrics.clone());
        async move {
            while wait(interval_ms, &mut stopped).await {
                if let Err(error) = tail.catch_up().await {
                    StoreCallFailed { operation: "vectors_after", error: &error }.emit(&metrics);
                }
                if let Err(error) = bundle.catalogue.catch_up(store.as_ref()).await {
                    StoreCallFailed { operation: "items_after", error: &error }.emit(&metrics);
                }
            }
            Ok(())
        }
    }

    /// Finds users whose features are behind and who stand in no queue, at start and then at intervals.
    fn sweep(
        &self,
        interval_ms: u64,
        mut stopped: watch::Receiver<bool>,
    ) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let (store, metrics) = (self.store.clone(), self.metrics.clone());
        let space = self.bundle.manifest.space.clone();
        async move {
            loop {
                match store.sweep(&space).await {
                    Ok(0) => {}
                    Ok(found) => {
                        metrics.queue_swept.inc_by(found as u64);
                        tracing::info!(found, "sweep marked forgotten users due");
                    }
                    Err(error) => StoreCallFailed { operation: "sweep", error: &error }.emit(&metrics),
                }
                if !wait(interval_ms, &mut stopped).await {
                    return Ok(());
                }
            }
        }
    }
}

/// Waits an interval; false when it was told to stop.
async fn wait(interval_ms: u64, stopped: &mut watch::Receiver<bool>) -> bool {
    if *stopped.borrow() {
        return false;
    }
    tokio::select! {
        _ = tokio::time::sleep(Duration::from_millis(interval_ms)) => true,
        changed = stopped.changed() => changed.is_ok() && !*stopped.borrow(),
    }
}
