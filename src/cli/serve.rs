//! `taiji serve`: read configuration, check everything, serve, drain.

use super::wiring::{self, Parts};
use super::{CommandError, ServeArgs, load_settings};
use crate::config::{LogSettings, Settings};
use crate::ingest::kafka::KAFKA_LATCH;
use crate::telemetry::{Metrics, Readiness};
use crate::{admin, api, openai};
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Time for open requests of the operators' port at the end.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

pub(super) fn run(args: ServeArgs) -> Result<(), CommandError> {
    let flags = [
        ("server.listen", &args.listen),
        ("server.admin_listen", &args.admin_listen),
        ("openai.listen", &args.openai_listen),
        ("store.url", &args.store),
        ("bundle.dir", &args.bundle),
        ("engine.kind", &args.engine),
        ("kafka.brokers", &args.kafka),
    ];
    let settings = load_settings(args.config.as_deref(), &flags)?;
    init_log(&settings.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::Internal(format!("runtime: {error}")))?;
    let result = runtime.block_on(serve(settings));
    // Blocking calls left behind (a model run) must not hold the exit up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn init_log(log: &LogSettings) -> Result<(), CommandError> {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.level)
        .map_err(|error| CommandError::Usage(format!("log.level {:?}: {error}", log.level)))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let initialised = if log.format == "json" { builder.json().try_init() } else { builder.try_init() };
    initialised.map_err(|error| CommandError::Internal(format!("log: {error}")))
}

async fn serve(settings: Settings) -> Result<(), CommandError> {
    // Signals first: a Ctrl-C during the load must end the process, too.
    let mut stop_signals = StopSignals::new()?;
    // Ports before models: a port in use is found at once, and /livez answers while the bundle loads.
    let public = bind("server.listen", settings.server.listen).await?;
    let operators = bind("server.admin_listen", settings.server.admin_listen).await?;
    let openai_listener = match settings.openai.listen {
        Some(address) => Some(bind("openai.listen", address).await?),
        None => None,
    };
    let metrics = Arc::new(Metrics::new().map_err(|error| CommandError::Internal(format!("metrics: {error}")))?);
    metrics.preset_labels();
    let readiness = Readiness::default();
    for latch in ["store", "bundle", "index"] {
        readiness.hold(latch, "starting");
    }
    if settings.kafka.is_on() {
        // Held already here, so that the process is at no moment ready without it.
        readiness.hold(KAFKA_LATCH, "starting");
    }
    let admin_state = Arc::new(admin::AdminState::new(readiness.clone(), metrics.clone()));
    let (stop_admin, admin_stopped) = watch::channel(false);
    let admin_task = tokio::spawn(serve_until(operators, admin::router(admin_state.clone()), admin_stopped));

    let parts = tokio::select! {
        parts = wiring::build(&settings, &metrics, &readiness) => parts?,
        _ = stop_signals.wait() => return Ok(()),
    };
    admin_state.attach(parts.store.clone(), parts.bundle.clone());
    let openai_port = match openai_listener {
        Some(listener) => Some((listener, openai::router(wiring::openai_state(&settings, &parts)?))),
        None => None,
    };
    let (stop, stopped) = watch::channel(false);
    let kafka = wiring::kafka_ingest(&settings, &parts, &readiness)?;
    let publisher = wiring::feature_publisher(&settings, &parts)?;
    let mut tasks = parts.spawn_tasks(&settings, kafka, publisher, stopped.clone());
    let app = api::router(parts.api.clone());
    let mut server = tokio::spawn(serve_until(public, app, stopped.clone()));
    let openai_server = openai_port.map(|(listener, app)| tokio::spawn(serve_until(listener, app, stopped)));
    announce(&settings, &parts);

    let failed = tokio::select! {
        signal = stop_signals.wait() => {
            tracing::info!(signal, "draining: finishing requests and refreshes under way");
            None
        }
        ended = &mut server => Some(format!("public server ended: {ended:?}")),
        // A supervisor's restart opens the store anew; going on without the task would serve ever older features.
        Some(ended) = tasks.join_next() => Some(match ended {
            Ok(Err(error)) => error.to_string(),
            other => format!("a background task ended: {other:?}"),
        }),
    };
    readiness.hold("drain", "draining");
    stop.send_replace(true);
    parts.api.waiting.drain();
    let limit = Duration::from_millis(settings.server.drain_timeout_ms);
    let drained = tokio::time::timeout(limit, async {
        if !server.is_finished()
            && let Err(error) = (&mut server).await
        {
            tracing::error!(%error, "public server");
        }
        while tasks.join_next().await.is_some() {}
        if let Some(Err(error)) = futures::future::OptionFuture::from(openai_server).await {
            tracing::error!(%error, "openai server");
        }
    });
    if drained.await.is_err() {
        tracing::warn!(?limit, "drain limit reached; what was left is taken up again at the next start");
        tasks.abort_all();
    }
    let flushed = parts.store.flush().await;
    stop_admin.send_replace(true);
    // An operator's connection that never ends must not hold the process.
    if let Ok(Err(error)) = tokio::time::timeout(ADMIN_DRAIN, admin_task).await {
        tracing::error!(%error, "admin server");
    }
    flushed.map_err(|error| CommandError::Internal(error.to_string()))?;
    match failed {
        Some(message) => Err(CommandError::Internal(message)),
        None => {
            tracing::info!("drained");
            Ok(())
        }
    }
}

async fn bind(setting: &str, address: std::net::SocketAddr) -> Result<TcpListener, CommandError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| CommandError::Unavailable(format!("{setting} {address}: {error}; choose another address")))
}

/// Serves until the flag turns true, then lets open requests finish.
async fn serve_until(listener: TcpListener, app: axum::Router, mut stopped: watch::Receiver<bool>) {
    let stop = async move {
        // An error means the sender is gone, which is a stop, too.
        while !*stopped.borrow_and_update() && stopped.changed().await.is_ok() {}
    };
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "server failed");
    }
}

fn announce(settings: &Settings, parts: &Parts) {
    if parts.api.keys.is_open() {
        tracing::warn!("no key is configured: the public port is open to everyone who reaches it");
    }
    if let Some(openai) = settings.openai.listen {
        tracing::info!(%openai, llm = parts.bundle.llm.model_id(), "the OpenAI-compatible port is on");
    }
    if settings.kafka.is_on() {
        let kafka = &settings.kafka;
        tracing::info!(brokers = kafka.brokers, group = kafka.group, events = kafka.events_topic, "reading from Kafka");
    }
    tracing::info!(
        listen = %settings.server.listen,
        admin = %settings.server.admin_listen,
        bundle = %settings.bundle.dir.display(),
        epoch = parts.bundle.manifest.epoch,
        space = %parts.bundle.manifest.space,
        "serving"
    );
}

/// SIGTERM and Ctrl-C.
struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> Result<StopSignals, CommandError> {
        let listen = |kind| signal(kind).map_err(|error| CommandError::Internal(format!("signal handler: {error}")));
        Ok(StopSignals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
