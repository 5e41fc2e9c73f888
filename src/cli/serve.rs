//! `taiji serve`: read configuration, check everything, serve, drain.

use super::ports::{self, Door, Operators, bind};
use super::secrets::Secrets;
use super::wiring::{self, Parts};
use super::{CommandError, ServeArgs, load_settings, presence};
use crate::config::{LogSettings, Role, Settings};
use crate::ingest::kafka::KAFKA_LATCH;
use crate::telemetry::{Metrics, Readiness};
use crate::{admin, api, listen, log_id, openai};
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Released when the public port answers from the store.
const PORT_LATCH: &str = "port";
/// What a supervisor sends; a person sends SIGINT.
const TERMINATE: &str = "SIGTERM";
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
        ("server.roles", &args.roles),
    ];
    let settings = load_settings(args.config.as_deref(), &flags)?;
    init_log(&settings.log)?;
    let id_key = &settings.telemetry.id_key;
    if id_key.is_empty() {
        tracing::info!("telemetry.id_key is not set: users' hashes in this log are of a key made at this start");
    } else {
        log_id::set_key(id_key);
    }
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
    let mut secrets = Secrets::open(&settings)?;
    // Ports before models: a port in use is found at once, and /livez answers while the bundle loads.
    let public = match settings.server.has(Role::Api) {
        true => Some(bind("server.listen", settings.server.listen)?),
        false => None,
    };
    let operators = bind("server.admin_listen", settings.server.admin_listen)?;
    let openai_listener = match settings.openai.listen {
        Some(address) => Some(bind("openai.listen", address)?),
        None => None,
    };
    let metrics = Arc::new(Metrics::new().map_err(|error| CommandError::Internal(format!("metrics: {error}")))?);
    metrics.preset_labels();
    let readiness = Readiness::default();
    hold_latches(&settings, &readiness);
    let admin_state = Arc::new(admin::AdminState::new(readiness.clone(), metrics.clone()));
    let limits = ports::limits(&settings);
    let routes = admin::router(admin_state.clone());
    let operators = Operators::serve(operators, routes, &settings.server, &secrets, &metrics)?;
    // From now on, whatever else the start waits for: a key that was withdrawn is withdrawn.
    tokio::spawn(secrets.follow(metrics.clone(), operators.stopped()));
    let door = Arc::new(Door::default());
    let (close_ports, ports_closed) = watch::channel(false);
    let mut servers = JoinSet::new();
    if let Some(listener) = public {
        let port = ports::public(listener, door.clone(), limits, &secrets, &metrics);
        servers.spawn(listen::serve(port, ports_closed.clone()));
    }

    let parts = tokio::select! {
        parts = wiring::build(&settings, &secrets.keys, &metrics, &readiness) => parts?,
        _ = stop_signals.wait() => return Ok(()),
    };
    admin_state.attach(parts.store.clone(), parts.live.clone());
    tokio::spawn(admin::follow_store(admin_state, operators.stopped()));
    if let Some(listener) = openai_listener {
        let routes = openai::router(wiring::openai_state(&settings, &parts));
        servers.spawn(listen::serve(ports::openai(listener, routes, limits, &secrets, &metrics), ports_closed));
    }
    let (stop, stopped) = watch::channel(false);
    let kafka = wiring::kafka_ingest(&settings, &parts, &readiness)?;
    let publisher = wiring::feature_publisher(&settings, &parts)?;
    let mut tasks = parts.spawn_tasks(&settings, kafka, publisher, stopped.clone());
    tasks.spawn(presence::keep_telling(&parts, &settings, &readiness, stopped));
    door.open(Arc::new(api::Port::new(parts.api.clone())));
    readiness.release(PORT_LATCH);
    announce(&settings, &parts);

    let (failed, delay) = tokio::select! {
        signal = stop_signals.wait() => {
            tracing::info!(signal, "draining: finishing requests and refreshes under way");
            (None, if signal == TERMINATE { settings.server.drain_delay_ms } else { 0 })
        }
        Some(ended) = servers.join_next() => (Some(format!("a server ended: {ended:?}")), 0),
        // A supervisor's restart opens the store anew; going on without the task would serve ever older features.
        Some(ended) = tasks.join_next() => (Some(match ended {
            Ok(Err(error)) => error.to_string(),
            other => format!("a background task ended: {other:?}"),
        }), 0),
    };
    readiness.hold("drain", "draining");
    door.leave();
    stop.send_replace(true);
    parts.api.waiting.drain();
    let limit = Duration::from_millis(settings.server.drain_timeout_ms);
    let drained = tokio::time::timeout(limit, async {
        tokio::select! {
            _ = tokio::time::sleep(Duration::from_millis(delay)) => {}
            // Asked twice, it goes at once.
            _ = stop_signals.wait() => {}
        }
        close_ports.send_replace(true);
        while let Some(ended) = servers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "server");
            }
        }
        while tasks.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::warn!(?limit, "drain limit reached; what was left is taken up again at the next start");
        tasks.abort_all();
    }
    let flushed = parts.store.flush().await;
    operators.end(ADMIN_DRAIN).await;
    flushed.map_err(|error| CommandError::Internal(error.to_string()))?;
    match failed {
        Some(message) => Err(CommandError::Internal(message)),
        None => {
            tracing::info!("drained");
            Ok(())
        }
    }
}

/// Held from the first moment, so that the process is at none ready without them.
fn hold_latches(settings: &Settings, readiness: &Readiness) {
    for latch in ["store", "bundle", "index"] {
        readiness.hold(latch, "starting");
    }
    if settings.server.has(Role::Api) {
        readiness.hold(PORT_LATCH, "starting");
    }
    if wiring::reads_kafka(settings) {
        readiness.hold(KAFKA_LATCH, "starting");
    }
}

fn announce(settings: &Settings, parts: &Parts) {
    let server = &settings.server;
    if server.has(Role::Api) && parts.api.keys.is_open() {
        tracing::warn!("no key is configured: the public port is open to everyone who reaches it");
    }
    if let Some(openai) = settings.openai.listen {
        tracing::info!(%openai, "the OpenAI-compatible port is on");
    }
    if wiring::reads_kafka(settings) {
        let kafka = &settings.kafka;
        tracing::info!(brokers = kafka.brokers, group = kafka.group, events = kafka.events_topic, "reading from Kafka");
    }
    let view = parts.live.view();
    tracing::info!(
        roles = ?server.roles,
        listen = server.has(Role::Api).then(|| server.listen.to_string()),
        admin = %server.admin_listen,
        bundle = %settings.bundle.dir.display(),
        epoch = view.epoch(),
        space = %view.space(),
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
            _ = self.terminate.recv() => TERMINATE,
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
