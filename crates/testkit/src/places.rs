//! Where things lie that tests read.

use std::path::{Path, PathBuf};

/// A file of the repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    in_repository("tests/fixtures").join(name)
}

/// The folder of data sets: `TAIJI_DATA_DIR`, else the one beside the repository. It need not be there.
pub fn data_folder() -> PathBuf {
    match std::env::var_os("TAIJI_DATA_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => in_repository("../shared/data"),
    }
}

/// ONNX Runtime's library: `ORT_DYLIB_PATH`, else what `make setup` put into the cache folder.
pub fn onnx_runtime() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("ORT_DYLIB_PATH") {
        return path;
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = cache.expect("XDG_CACHE_HOME or HOME").join("taiji");
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let listed = std::fs::read_dir(folder).into_iter().flatten().flatten();
        listed.map(|entry| entry.path()).collect()
    };
    let named =
        |path: &PathBuf, start: &str| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
    let folders = entries(&cache).into_iter().filter(|path| named(path, "onnxruntime-"));
    let libraries = folders.flat_map(|folder| entries(&folder)).filter(|path| named(path, "libonnxruntime.so."));
    libraries.max().unwrap_or_else(|| panic!("no ONNX Runtime in {}: run make setup", cache.display()))
}

/// The demo bundle with its models; set-up completes it.
pub fn demo_bundle() -> PathBuf {
    let bundle = in_repository("models/demo/1");
    for file in ["manifest.json", "encoder/graph.onnx"] {
        assert!(bundle.join(file).is_file(), "{} is missing: run `make build` first", bundle.join(file).display());
    }
    bundle
}
