//! Sessions over prepacked weights that are made once, kept on disk and mapped.
//!
//! In: a graph file and a cache folder. Out: a session whose weights stay in the page cache, shared between processes,
//! instead of in each process's own memory. Called by whoever opens sessions; the form on disk belongs to one version of
//! ONNX Runtime and one kind of CPU, so it is made where it is used and never exported.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use sha2::{Digest, Sha256};
use taiji_export::names::ACCURACY_LEVEL;
use thiserror::Error;

use super::GRAPH_FILE;
use super::runtime::{Threads, session_builder};
use crate::checksum::sha256_file;

/// File of the prepacked weights, beside their graph.
const DATA_FILE: &str = "graph.onnx.data";
/// File of the checksums of the two.
const CHECKSUMS_FILE: &str = "checksums.json";

/// Why a prepacked session cannot be had.
#[derive(Debug, Error)]
pub enum PrepackError {
    /// A file could not be read or written.
    #[error("prepacked weights: {}: {source}; see that the cache folder is writable and has room", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// ONNX Runtime does not open the graph.
    #[error("prepacked weights: {}: {message}; if it lies in the cache folder, remove it", path.display())]
    Session {
        /// The graph.
        path: PathBuf,
        /// What the runtime said.
        message: String,
    },
    /// A file is not what was written when the weights were packed.
    #[error(
        "prepacked weights: {}: {message}; remove the folder, it is made anew", path.display()
    )]
    Differs {
        /// File or folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// ONNX Runtime 1.31 saves what it packs for 8-bit products without the scales: every logit would be NaN.
    #[error(
        "prepacked weights: {}: products in 8 bits (accuracy level {level}) cannot be kept on disk; open the graph without \
         a cache folder, or export it with --accuracy-level 1", path.display()
    )]
    EightBitProducts {
        /// The graph.
        path: PathBuf,
        /// What the graph says.
        level: String,
    },
}

/// Opens a graph over prepacked weights below `cache`, which are made first if they are not there. `threads` as in
/// [`super::runtime::open_session`]. Safe with several processes: one makes them, the others wait.
pub fn open_prepacked(
    environment: &Environment,
    graph: &Path,
    threads: Threads,
    cache: &Path,
) -> Result<Session, PrepackError> {
    let folder = cache.join(key(graph)?);
    if !folder.exists() {
        make(environment, graph, threads, cache, &folder)?;
    }
    check(&folder)?;
    let packed = folder.join(GRAPH_FILE);
    let failed = |error: ort::Error| PrepackError::Session { path: packed.clone(), message: error.to_string() };
    // Optimising again would copy weights out of the mapped file.
    session_builder(environment, threads)
        .and_then(|builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::Disable)?))
        .and_then(|mut builder| builder.commit_from_file(&packed))
        .map_err(failed)
}

/// What the form on disk depends on: the graph, which names the hash of its weights, the runtime and the CPU.
fn key(graph: &Path) -> Result<String, PrepackError> {
    let bytes = std::fs::read(graph).map_err(io(graph))?;
    let mut hash = Sha256::new();
    // Folders of an earlier program, which kept no checksums, have other names.
    hash.update("with checksums");
    hash.update(Sha256::digest(&bytes));
    hash.update(ort::info());
    hash.update(cpu());
    Ok(hex::encode(&hash.finalize()[..16]))
}

/// Instruction sets of this machine; kernels and their layouts are chosen by them.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let sets = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    format!("{} {}", std::env::consts::ARCH, sets.unwrap_or_default())
}

/// Makes the folder, once: whole or not at all.
fn make(
    environment: &Environment,
    graph: &Path,
    threads: Threads,
    cache: &Path,
    folder: &Path,
) -> Result<(), PrepackError> {
    std::fs::create_dir_all(cache).map_err(io(cache))?;
    let lock_path = folder.with_extension("lock");
    let lock = File::create(&lock_path).map_err(io(&lock_path))?;
    lock.lock().map_err(io(&lock_path))?;
    if folder.exists() {
        return Ok(());
    }
    check_products(environment, graph)?;
    // What a process that died has left; nobody else writes here while the lock is held.
    let partial = folder.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(io(&partial))?;
    }
    std::fs::create_dir(&partial).map_err(io(&partial))?;
    save(environment, graph, threads, &partial)
        .map_err(|error| PrepackError::Session { path: graph.to_owned(), message: error.to_string() })?;
    let mut checksums = BTreeMap::new();
    for name in [DATA_FILE, GRAPH_FILE] {
        let path = partial.join(name);
        // A graph of small weights only has no data file.
        if path.exists() {
            checksums.insert(name.to_owned(), sha256_file(&path).map_err(io(&path))?);
            File::open(&path).and_then(|file| file.sync_all()).map_err(io(&path))?;
        }
    }
    let path = partial.join(CHECKSUMS_FILE);
    let text = serde_json::to_string_pretty(&checksums).map_err(|error| io(&path)(error.into()))?;
    std::fs::write(&path, text).and_then(|()| File::open(&path)?.sync_all()).map_err(io(&path))?;
    std::fs::rename(&partial, folder).map_err(io(folder))?;
    File::open(cache).and_then(|file| file.sync_all()).map_err(io(cache))?;
    tracing::info!(graph = %graph.display(), folder = %folder.display(), "prepacked weights written");
    Ok(())
}

/// Compares the files with the checksums from when they were written: the runtime would take any weights of the right size.
fn check(folder: &Path) -> Result<(), PrepackError> {
    let differs = |path: &Path, message: String| PrepackError::Differs { path: path.to_owned(), message };
    let listed = folder.join(CHECKSUMS_FILE);
    let text = std::fs::read(&listed).map_err(|error| differs(&listed, error.to_string()))?;
    let checksums: BTreeMap<String, String> =
        serde_json::from_slice(&text).map_err(|error| differs(&listed, error.to_string()))?;
    for name in [GRAPH_FILE, DATA_FILE] {
        let path = folder.join(name);
        let Some(wanted) = checksums.get(name) else {
            if path.exists() || name == GRAPH_FILE {
                return Err(differs(&path, format!("it is not listed in {CHECKSUMS_FILE}")));
            }
            continue;
        };
        let found = sha256_file(&path).map_err(|error| differs(&path, error.to_string()))?;
        if found != *wanted {
            return Err(differs(&path, format!("it has sha256 {found} instead of {wanted}")));
        }
    }
    Ok(())
}

/// Refuses what would come back from disk wrong. Looking costs little: nothing is packed for it.
fn check_products(environment: &Environment, graph: &Path) -> Result<(), PrepackError> {
    let level = session_builder(environment, Threads::from(1))
        .and_then(|builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::Disable)?))
        .and_then(|builder| Ok(builder.with_config_entry("session.disable_prepacking", "1")?))
        .and_then(|mut builder| builder.commit_from_file(graph))
        .and_then(|session| Ok(session.metadata()?.custom(ACCURACY_LEVEL)))
        .map_err(|error| PrepackError::Session { path: graph.to_owned(), message: error.to_string() })?;
    match level {
        Some(level) if level != "0" && level != "1" => {
            Err(PrepackError::EightBitProducts { path: graph.to_owned(), level })
        }
        _ => Ok(()),
    }
}

/// Lets ONNX Runtime optimise and prepack, and write what came of it.
fn save(environment: &Environment, graph: &Path, threads: Threads, folder: &Path) -> Result<(), ort::Error> {
    let mut builder = session_builder(environment, threads)?.with_optimized_model_path(folder.join(GRAPH_FILE))?;
    for (name, value) in [
        ("session.optimized_model_external_initializers_file_name", DATA_FILE),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ] {
        builder = builder.with_config_entry(name, value)?;
    }
    builder.commit_from_file(graph).map(drop)
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> PrepackError {
    let path = path.to_owned();
    move |source| PrepackError::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use ort::session::SessionInputValue;
    use ort::value::Tensor;
    use tempfile::TempDir;

    use super::*;
    use crate::llm::graph::GraphDims;
    use crate::onnx::runtime;
    use taiji_export::{ExportOptions, Flavour, Precision, export};

    fn exported(name: &str, precision: Precision) -> TempDir {
        let checkpoint = testkit::fixture(name);
        let out = tempfile::tempdir().unwrap();
        let flavours = vec![Flavour::Gqa, Flavour::Tree];
        let options = ExportOptions { precision, flavours, accuracy_level: 1, ..ExportOptions::default() };
        export(&checkpoint, out.path(), &options).unwrap();
        out
    }

    fn environment() -> Environment {
        runtime::environment(None).unwrap()
    }

    fn prepacked(graph: &Path, cache: &TempDir) -> Session {
        open_prepacked(&environment(), graph, 1.into(), cache.path()).unwrap()
    }

    /// Logits of a prompt of 9 tokens at every position.
    fn logits(mut session: Session) -> Vec<f32> {
        let dims = GraphDims::of(&session).unwrap();
        let scalar: [i64; 0] = [];
        let named = |name: &str, value: SessionInputValue<'static>| (name.to_owned(), value);
        let mut inputs = vec![
            named("input_ids", Tensor::from_array(([1, 9], (3..12_i64).collect::<Vec<_>>())).unwrap().into()),
            named("seqlens_k", Tensor::from_array(([1], vec![8_i32])).unwrap().into()),
            named("total_sequence_length", Tensor::from_array((scalar, vec![9_i32])).unwrap().into()),
            named("logits_indices", Tensor::from_array(([9], (0..9_i64).collect::<Vec<_>>())).unwrap().into()),
        ];
        let shape = [1, dims.kv_heads, 16, dims.head];
        for layer in 0..dims.layers {
            for part in ["key", "value"] {
                let past = vec![7.0_f32; shape.iter().product()];
                let name = taiji_export::names::past(layer, part);
                inputs.push((name, Tensor::from_array((shape, past)).unwrap().into()));
            }
        }
        let outputs = session.run(inputs).unwrap();
        outputs["logits"].try_extract_tensor::<f32>().unwrap().1.to_vec()
    }

    /// Names of what lies in a cache.
    fn listed(cache: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(cache).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_logits_are_those_of_the_plain_session_bit_for_bit() {
        for (name, precision) in [
            ("qwen2", Precision::F32),
            ("qwen3-tied", Precision::F32),
            ("qwen2", Precision::Int4),
            ("qwen2-tied", Precision::Int4),
            ("qwen3-tied", Precision::Int8),
        ] {
            let (model, cache) = (exported(name, precision), tempfile::tempdir().unwrap());
            let graph = model.path().join(GRAPH_FILE);
            let wanted = logits(runtime::open_session(&environment(), &graph, 1).unwrap());
            for open in ["first", "second"] {
                let session = prepacked(&graph, &cache);
                assert_eq!(runtime::max_positions(&session).unwrap(), 256, "{name} {open}");
                assert!(logits(session) == wanted, "{name} {precision:?} {open}: other logits");
            }
        }
    }

    #[test]
    fn the_second_open_writes_nothing_and_each_graph_has_its_own() {
        let (model, cache) = (exported("qwen2", Precision::F32), tempfile::tempdir().unwrap());
        let graph = model.path().join(GRAPH_FILE);
        drop(prepacked(&graph, &cache));
        let folder = cache.path().join(key(&graph).unwrap());
        let written = || {
            let times =
                [GRAPH_FILE, DATA_FILE].map(|name| std::fs::metadata(folder.join(name)).unwrap().modified().unwrap());
            (times, std::fs::metadata(&folder).unwrap().modified().unwrap())
        };
        let before = written();
        drop(prepacked(&graph, &cache));
        assert_eq!(written(), before);
        assert_eq!(listed(cache.path()).len(), 2, "the folder and its lock");

        drop(prepacked(&model.path().join("graph.tree.onnx"), &cache));
        assert_eq!(listed(cache.path()).len(), 4);
        assert_eq!(written(), before);
    }

    #[test]
    fn what_a_dead_process_left_is_not_used() {
        let (model, cache) = (exported("qwen2", Precision::F32), tempfile::tempdir().unwrap());
        let graph = model.path().join(GRAPH_FILE);
        let folder = cache.path().join(key(&graph).unwrap());
        let partial = folder.with_extension("partial");
        std::fs::create_dir_all(&partial).unwrap();
        std::fs::write(partial.join(GRAPH_FILE), "half a graph").unwrap();
        std::fs::write(partial.join("rest"), "of another version").unwrap();
        let wanted = logits(runtime::open_session(&environment(), &graph, 1).unwrap());
        assert_eq!(logits(prepacked(&graph, &cache)), wanted);
        assert!(!partial.exists());
        assert_eq!(listed(&folder), [CHECKSUMS_FILE, GRAPH_FILE, DATA_FILE]);
    }

    #[test]
    fn audit_17_prepacked_weights_that_differ_are_refused_by_name() {
        let (model, cache) = (exported("qwen2", Precision::F32), tempfile::tempdir().unwrap());
        let graph = model.path().join(GRAPH_FILE);
        drop(prepacked(&graph, &cache));
        let folder = cache.path().join(key(&graph).unwrap());
        let refused = || open_prepacked(&environment(), &graph, 1.into(), cache.path()).err().unwrap().to_string();
        for name in [DATA_FILE, GRAPH_FILE, CHECKSUMS_FILE] {
            let path = folder.join(name);
            let whole = std::fs::read(&path).unwrap();
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 1;
            for other in [Some(flipped), None] {
                match other {
                    Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                    None => std::fs::remove_file(&path).unwrap(),
                }
                let message = refused();
                assert!(message.contains(&folder.display().to_string()), "{message}");
                assert!(name == CHECKSUMS_FILE || message.contains(name), "{message}");
            }
            std::fs::write(&path, whole).unwrap();
        }
        drop(prepacked(&graph, &cache));
    }

    #[test]
    fn many_at_once_make_one() {
        let (model, cache) = (exported("qwen2-tied", Precision::F32), tempfile::tempdir().unwrap());
        let graph = model.path().join(GRAPH_FILE);
        let wanted = logits(runtime::open_session(&environment(), &graph, 1).unwrap());
        std::thread::scope(|scope| {
            let opened: Vec<_> = (0..4).map(|_| scope.spawn(|| logits(prepacked(&graph, &cache)))).collect();
            for found in opened {
                assert_eq!(found.join().unwrap(), wanted);
            }
        });
        assert_eq!(listed(cache.path()).len(), 2);
    }

    #[test]
    fn products_in_8_bits_are_refused() {
        let checkpoint = testkit::fixture("qwen2");
        let (model, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = ExportOptions { precision: Precision::Int4, ..ExportOptions::default() };
        export(&checkpoint, model.path(), &options).unwrap();
        let graph = model.path().join(GRAPH_FILE);
        let refused = open_prepacked(&environment(), &graph, 1.into(), cache.path()).err().unwrap();
        assert!(matches!(refused, PrepackError::EightBitProducts { .. }), "{refused}");
        assert!(refused.to_string().contains("accuracy level 4"), "{refused}");
        assert!(!cache.path().join(key(&graph).unwrap()).exists());
    }

    #[test]
    fn errors_name_the_file() {
        let cache = tempfile::tempdir().unwrap();
        let open = |graph: &Path, cache: &Path| {
            open_prepacked(&environment(), graph, 1.into(), cache).err().unwrap().to_string()
        };
        let missing = cache.path().join("no.onnx");
        assert!(open(&missing, cache.path()).contains("no.onnx"));
        std::fs::write(&missing, "not a graph").unwrap();
        assert!(open(&missing, cache.path()).contains("no.onnx"));
        // A file where the folder should be.
        assert!(open(&missing, &missing).contains("writable"));
    }
}
