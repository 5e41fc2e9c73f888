//! Opening what `serve` stands on: the store, which is waited for where it is a server, and the bundle.
//!
//! Callers: `wiring`, and the commands that need a store only.

use super::CommandError;
use crate::backoff::Backoff;
use crate::bundle::{self, Bundle, Engine, LoadOptions};
use crate::config::{AckKind, EngineKind, EngineSettings, ProviderKind, Role, Settings};
use crate::llm::LlmOptions;
use crate::onnx::Provider;
use crate::store::embedded::{EmbeddedOptions, EmbeddedStore};
use crate::store::redis::{Ack, Address, Assurance, RedisOptions, RedisStore, Timeouts};
use crate::store::{FeatureStore, StoreError};
use crate::telemetry::events::StoreAwaited;
use crate::telemetry::{Metrics, Readiness};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Opens the store of the settings, once.
pub(super) async fn open_store(settings: &Settings) -> Result<Arc<dyn FeatureStore>, CommandError> {
    if Address::is_redis(&settings.store.url) {
        return Ok(open_redis(settings, redis_address(settings)?).await.map_err(unavailable)?);
    }
    // The scheme was checked with the settings.
    let folder = settings.store.url.trim_start_matches("embedded:");
    let options = EmbeddedOptions {
        namespace: settings.store.namespace.clone(),
        flush_interval: Duration::from_millis(settings.store.flush_interval_ms),
        ..EmbeddedOptions::default()
    };
    Ok(EmbeddedStore::open(Path::new(folder), options).map_err(unavailable)?)
}

/// Opens the store; a server that is away, loading or full is waited for, unready, and the latch says what for. What waiting
/// cannot cure (a wrong password, another schema, a folder in use) is an error.
pub(super) async fn await_store(
    settings: &Settings,
    metrics: &Metrics,
    readiness: &Readiness,
) -> Result<Arc<dyn FeatureStore>, CommandError> {
    if !Address::is_redis(&settings.store.url) {
        return open_store(settings).await;
    }
    let address = redis_address(settings)?;
    let open = async || open_redis(settings, address.clone()).await;
    Ok(patiently("store", metrics, readiness, StoreError::may_pass, open).await.map_err(unavailable)?)
}

/// Repeats what the store could not do now, with growing pauses, holding the latch with the reason.
pub(super) async fn patiently<T, E: Display>(
    latch: &'static str,
    metrics: &Metrics,
    readiness: &Readiness,
    is_transient: fn(&E) -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut backoff = Backoff::default();
    loop {
        match attempt().await {
            Err(error) if is_transient(&error) => {
                readiness.hold(latch, format!("waiting: {error}"));
                StoreAwaited { error: &error }.emit(metrics);
                tokio::time::sleep(backoff.pause()).await;
            }
            ended => return ended,
        }
    }
}

fn unavailable(error: StoreError) -> CommandError {
    CommandError::Unavailable(format!("store.url: {error}"))
}

async fn open_redis(settings: &Settings, address: Address) -> Result<Arc<RedisStore>, StoreError> {
    RedisStore::open(address, redis_options(settings)).await
}

/// The address of `store.url`, with the authority of `store.ca_file` and the sentinels' login.
pub(super) fn redis_address(settings: &Settings) -> Result<Address, CommandError> {
    let address =
        Address::parse(&settings.store.url).map_err(|message| CommandError::Usage(format!("store.url: {message}")))?;
    let address = address.with_sentinel_login(&settings.store.sentinel_user, &settings.store.sentinel_password);
    if settings.store.ca_file.is_empty() {
        return Ok(address);
    }
    let pem = std::fs::read(&settings.store.ca_file)
        .map_err(|error| CommandError::Unavailable(format!("store.ca_file {}: {error}", settings.store.ca_file)))?;
    Ok(address.with_authority(pem))
}

pub(super) fn redis_options(settings: &Settings) -> RedisOptions {
    let store = &settings.store;
    let timeouts = Timeouts {
        connect: Duration::from_millis(store.connect_timeout_ms),
        response: Duration::from_millis(store.response_timeout_ms),
        retries: store.retries,
    };
    let assurance = Assurance {
        read_deadline: Duration::from_millis(store.read_deadline_ms),
        ack: match store.ack {
            AckKind::Applied => Ack::Applied,
            AckKind::Replicated => Ack::Replicated,
            AckKind::Synced => Ack::Synced,
        },
        ack_replicas: store.ack_replicas,
        ack_timeout: Duration::from_millis(store.ack_timeout_ms),
        allow_eviction: store.allow_eviction,
    };
    let (namespace, cluster) = (store.namespace.clone(), store.cluster.clone());
    RedisOptions { namespace, cluster, shards: store.shards, timeouts, assurance }
}

/// Loads the bundle, with models and user index where this process has the role for them.
pub(super) async fn load_bundle(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Arc<Bundle>, CommandError> {
    let folder = settings.bundle.dir.clone();
    let engine = &settings.engine;
    let options = LoadOptions {
        engine: match engine.kind {
            _ if !settings.server.has(Role::Infer) => Engine::Absent,
            EngineKind::Null => Engine::Canned {
                latency: Duration::from_millis(engine.null_latency_ms),
                hangs_after: (engine.null_hangs_after > 0).then_some(engine.null_hangs_after),
            },
            EngineKind::Onnx => Engine::Onnx,
        },
        onnxruntime: (!engine.onnxruntime.is_empty()).then(|| engine.onnxruntime.clone().into()),
        llm: llm_options(engine, metrics),
        encoder_threads: engine.encoder_threads,
        nprobe: settings.retrieve.nprobe,
        stall: Duration::from_millis(engine.stall_ms),
        max_items: settings.catalogue.max_items,
        chat_template: settings.openai.listen.map(|_| settings.openai.template.clone()),
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
