//! Folders that appear whole or not at all.
//!
//! In: where a folder is to stand and what fills it. Out: the folder. Called by `gguf` and `recover`.

use std::io;
use std::path::{Path, PathBuf};

/// Fills `out`, which must be new or empty, under another name and renames it when it is whole. `failed` makes the caller's error of
/// the system's; `exists` is the caller's for a folder that holds something.
pub fn fill<T, E>(
    out: &Path,
    failed: impl Fn(&Path, io::Error) -> E,
    exists: impl FnOnce() -> E,
    write: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    if out.exists() && out.read_dir().map_err(|error| failed(out, error))?.next().is_some() {
        return Err(exists());
    }
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let remove = || match std::fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&partial, error)),
        _ => Ok(()),
    };
    // What a killed run left is of no use.
    remove()?;
    let placed = std::fs::create_dir_all(&partial)
        .map_err(|error| failed(&partial, error))
        .and_then(|()| write(&partial))
        .and_then(|written| {
            if out.exists() {
                std::fs::remove_dir(out).map_err(|error| failed(out, error))?;
            }
            std::fs::rename(&partial, out).map_err(|error| failed(out, error))?;
            Ok(written)
        });
    if placed.is_err() {
        remove()?;
    }
    placed
}
