//! Finds and initialises ONNX Runtime, once per process, and opens sessions on it.
//!
//! In: an optional path of the shared library. Out: the process's environment, or an error that names every place that
//! was looked at. Callers: `llm::onnx` and `encode::bert`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use parking_lot::Mutex;
use taiji_export::names::MAX_POSITIONS;
use thiserror::Error;

/// Version of ONNX Runtime this build is made for; older ones are refused.
pub const ORT_VERSION: &str = "1.31.1";

/// ONNX Runtime allows one environment per process; the first caller decides which library it is.
static ENVIRONMENT: Mutex<Option<Loaded>> = Mutex::new(None);

/// File beside ONNX Runtime in which its GPU build has what computes on CUDA.
const CUDA_LIBRARY: &str = "libonnxruntime_providers_cuda.so";

struct Loaded {
    environment: Environment,
    library: PathBuf,
    /// Whether [`CUDA_LIBRARY`] is registered.
    copies_to_cuda: bool,
}

/// Why ONNX Runtime is not available.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// No library at any of these places.
    #[error(
        "ONNX Runtime {ORT_VERSION} not found: looked at {}; run 'taiji runtime fetch' (or 'make build')",
        list(looked)
    )]
    NotFound {
        /// Every place looked at.
        looked: Vec<PathBuf>,
    },
    /// An older library.
    #[error("ONNX Runtime at {} is version {found}, {ORT_VERSION} is wanted: run 'taiji runtime fetch' (or 'make build')", path.display())]
    Version {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// A file that is no usable library, or an environment that does not start.
    #[error("ONNX Runtime at {} does not load: {message}; run 'taiji runtime fetch' (or 'make build')", path.display())]
    Broken {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        message: String,
    },
}

/// The process's ONNX Runtime. `explicit` (configuration) wins over `ORT_DYLIB_PATH`, that over the folder of the
/// executable, that over the cache that `make build` fills. After the first success the path is ignored.
pub fn environment(explicit: Option<&Path>) -> Result<Environment, RuntimeError> {
    let mut slot = ENVIRONMENT.lock();
    if let Some(loaded) = slot.as_ref() {
        return Ok(loaded.environment.clone());
    }
    let looked = Places::of_this_process(explicit).candidates();
    let Some(path) = looked.iter().find(|path| path.is_file()) else {
        return Err(RuntimeError::NotFound { looked });
    };
    let builder = ort::init_from(path).map_err(|error| refused(path, error))?;
    let environment = builder
        .with_name("taiji")
        .with_telemetry(false)
        .build()
        .map_err(|error| RuntimeError::Broken { path: path.clone(), message: error.to_string() })?;
    environment.set_log_level(log_level());
    tracing::info!(path = %path.display(), "ONNX Runtime loaded");
    *slot = Some(Loaded { environment: environment.clone(), library: path.clone(), copies_to_cuda: false });
    Ok(environment)
}

/// What the runtime says of itself. It makes the text of every message that its level allows, several for each node of a graph, before anybody
/// is asked whether it is wanted: at `ort`'s own level, the lowest, that is a part of a small model's step. So it warns, and tells the rest
/// only where `ort` is traced.
fn log_level() -> LogLevel {
    match tracing::enabled!(target: "ort::logging", tracing::Level::TRACE) {
        true => LogLevel::Verbose,
        false => LogLevel::Warning,
    }
}

/// Lets the environment itself copy between host and GPU, as a key-value pool needs it: a session has what copies for its own runs only.
fn register_cuda() -> Result<(), String> {
    let mut slot = ENVIRONMENT.lock();
    let Some(loaded) = slot.as_mut() else { return Err("ONNX Runtime is not loaded".to_owned()) };
    if loaded.copies_to_cuda {
        return Ok(());
    }
    let folder = loaded.library.canonicalize().unwrap_or_else(|_| loaded.library.clone());
    let library = folder.with_file_name(CUDA_LIBRARY);
    loaded.environment.register_ep_library("taiji.cuda", &library).map_err(|error| error.to_string())?;
    loaded.copies_to_cuda = true;
    Ok(())
}

/// Where a session computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// This machine's processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Number of the device.
        device: i32,
        /// Most bytes of the session's arena (weights and activations); 0 = no limit.
        memory_limit: usize,
        /// Decode steps are captured once per batch size and replayed (CUDA graphs).
        graphs: bool,
    },
}

impl Provider {
    /// Whether decode steps are captured as CUDA graphs.
    pub fn captures_graphs(self) -> bool {
        matches!(self, Provider::Cuda { graphs: true, .. })
    }
}

/// Threads of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// Number; 0 counts as 1.
    pub count: usize,
    /// Whether they spin between operators, and for some milliseconds after a call: faster, and other work of the machine
    /// gets less meanwhile. Idle, they sleep.
    pub spin: bool,
}

impl From<usize> for Threads {
    /// Threads that sleep between operators.
    fn from(count: usize) -> Self {
        Self { count, spin: false }
    }
}

/// Opens a graph on the processor.
pub fn open_session(
    environment: &Environment,
    graph: &Path,
    threads: impl Into<Threads>,
) -> Result<Session, ort::Error> {
    session_builder(environment, threads.into())?.commit_from_file(graph)
}

/// The same where the provider says. CUDA that is asked for and not there is an error, never a silent CPU.
pub fn open_session_on(
    environment: &Environment,
    graph: &Path,
    threads: Threads,
    provider: Provider,
) -> Result<Session, String> {
    let plain = |error: ort::Error| error.to_string();
    let Provider::Cuda { device, memory_limit, graphs } = provider else {
        return open_session(environment, graph, threads).map_err(plain);
    };
    let mut cuda = ort::ep::CUDA::default().with_device_id(device).with_cuda_graph(graphs);
    if memory_limit > 0 {
        cuda = cuda.with_memory_limit(memory_limit);
    }
    let missing = |error: String| {
        format!(
            "engine.provider is cuda, but CUDA device {device} does not open: {error}; install the GPU build of ONNX \
             Runtime {ORT_VERSION} with its CUDA libraries and name it in engine.onnxruntime, or set engine.provider = \"cpu\""
        )
    };
    register_cuda().map_err(missing)?;
    let builder = session_builder(environment, threads).map_err(plain)?;
    let mut builder = builder
        .with_execution_providers([cuda.build().error_on_failure()])
        .map_err(|error| missing(ort::Error::<()>::from(error).to_string()))?;
    builder.commit_from_file(graph).map_err(|error| missing(error.to_string()))
}

/// Threads as [`open_session`] has them.
pub(super) fn session_builder(environment: &Environment, threads: Threads) -> Result<SessionBuilder, ort::Error> {
    let plain = ort::Error::<()>::from;
    let builder = Session::builder(environment)?;
    let builder = builder.with_intra_threads(threads.count.max(1)).map_err(plain)?;
    let builder = builder.with_inter_threads(1).map_err(plain)?;
    // Work is handed out in pieces that grow smaller: no thread waits long for another that was held up. 4 is the runtime's own advice.
    let builder = builder.with_dynamic_block_base(4).map_err(plain)?;
    builder.with_intra_op_spinning(threads.spin).map_err(plain)
}

/// Refuses a key-value pool that this machine's free memory (or the container's limit) does not hold, before it is made.
pub fn check_memory(needed: usize, rows: usize, slots: usize) -> Result<(), String> {
    let Some(free) = free_memory() else { return Ok(()) };
    if needed <= free {
        return Ok(());
    }
    let mebibytes = |bytes: usize| bytes.div_ceil(1 << 20);
    Err(format!(
        "the key-value pool needs {} MiB ({rows} rows of {slots} tokens), {} MiB are free: lower engine.max_rows to {} or \
         the bundle's token limits",
        mebibytes(needed),
        free >> 20,
        (rows * free / needed.max(1)).max(1),
    ))
}

/// Free bytes: what the kernel says is available, or what is left of the control group's limit where that is less.
fn free_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()? * 1024;
    let group =
        |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<usize>().ok();
    match (group("memory.max"), group("memory.current")) {
        (Some(limit), Some(current)) => Some(available.min(limit.saturating_sub(current))),
        _ => Some(available),
    }
}

/// Most positions of a row, as the exporter noted it in the graph.
pub fn max_positions(session: &Session) -> Result<usize, String> {
    let noted = session.metadata().ok().and_then(|metadata| metadata.custom(MAX_POSITIONS));
    noted
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("the graph does not say {MAX_POSITIONS}: export it again with 'taiji-trainer export'"))
}

/// Where the library may be.
#[derive(Debug, Default)]
struct Places {
    explicit: Option<PathBuf>,
    variable: Option<OsString>,
    executable_folder: Option<PathBuf>,
    cache_folder: Option<PathBuf>,
}

impl Places {
    fn of_this_process(explicit: Option<&Path>) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let home_cache = || set("HOME").map(|home| PathBuf::from(home).join(".cache"));
        Self {
            explicit: explicit.map(Path::to_owned),
            variable: set("ORT_DYLIB_PATH"),
            executable_folder: std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)),
            cache_folder: set("XDG_CACHE_HOME").map(PathBuf::from).or_else(home_cache),
        }
    }

    /// Paths to try, in order. What the operator named is the only candidate: another library must not slip in.
    fn candidates(self) -> Vec<PathBuf> {
        if let Some(path) = self.explicit {
            return vec![path];
        }
        if let Some(path) = self.variable {
            return vec![PathBuf::from(path)];
        }
        let versioned = versioned();
        let mut paths = Vec::new();
        if let Some(folder) = self.executable_folder {
            paths.push(folder.join(&versioned));
            paths.push(folder.join("libonnxruntime.so"));
        }
        if let Some(folder) = self.cache_folder {
            paths.push(cached_below(&folder));
        }
        paths
    }
}

fn versioned() -> String {
    format!("libonnxruntime.so.{ORT_VERSION}")
}

fn cached_below(folder: &Path) -> PathBuf {
    folder.join("taiji").join(format!("onnxruntime-{ORT_VERSION}")).join(versioned())
}

/// Where `taiji runtime fetch` puts the library; `None` where no cache folder is known.
pub fn cached_library() -> Option<PathBuf> {
    Places::of_this_process(None).cache_folder.as_deref().map(cached_below)
}

fn refused(path: &Path, error: ort::LoadDynamicError) -> RuntimeError {
    match error {
        ort::LoadDynamicError::BadVersion { version_str, path } => RuntimeError::Version { path, found: version_str },
        other => RuntimeError::Broken { path: path.to_owned(), message: other.to_string() },
    }
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_named_library_is_the_only_candidate() {
        let places = || Places {
            explicit: None,
            variable: Some("/named/by/variable.so".into()),
            executable_folder: Some("/exe".into()),
            cache_folder: Some("/cache".into()),
        };
        let explicit = Places { explicit: Some("/named.so".into()), ..places() };
        assert_eq!(explicit.candidates(), [PathBuf::from("/named.so")]);
        assert_eq!(places().candidates(), [PathBuf::from("/named/by/variable.so")]);
        let rest = Places { variable: None, ..places() }.candidates();
        assert_eq!(rest[0], PathBuf::from("/exe/libonnxruntime.so.1.31.1"));
        assert_eq!(rest[2], PathBuf::from("/cache/taiji/onnxruntime-1.31.1/libonnxruntime.so.1.31.1"));
    }

    #[test]
    fn errors_name_places_and_versions() {
        let missing = RuntimeError::NotFound { looked: vec!["/a".into(), "/b".into()] }.to_string();
        assert!(missing.contains("/a, /b") && missing.contains("make build"), "{missing}");
        let old = ort::LoadDynamicError::BadVersion { version_str: "1.20.0".to_owned(), path: "/old.so".into() };
        let message = refused(Path::new("/old.so"), old).to_string();
        assert!(message.contains("1.20.0") && message.contains(ORT_VERSION), "{message}");
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        std::fs::write(&path, "not a library").unwrap();
        // Straight to the loader: the process's environment may be taken by another test already.
        match ort::init_from(&path) {
            Err(error) => assert!(matches!(refused(&path, error), RuntimeError::Broken { .. })),
            Ok(_) => assert!(ENVIRONMENT.lock().is_some(), "only a library that is loaded already may answer"),
        }
    }
}
