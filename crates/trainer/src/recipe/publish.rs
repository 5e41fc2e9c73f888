//! A finished bundle → `<out>/<name>/<epoch>`. At every moment a whole bundle stands there, once there was one.

use crate::stage::{StageError, copy_folder, sync_folder};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use taiji::bundle::{MANIFEST, Manifest};

/// Copies a bundle to its place; an older one there is exchanged for it in one step, then removed.
pub fn publish(bundle: &Path, out: &Path) -> Result<PathBuf, StageError> {
    let manifest = Manifest::read(bundle)?;
    let parent = out.join(&manifest.name);
    let target = parent.join(manifest.epoch.to_string());
    fs::create_dir_all(&parent).map_err(StageError::io(&parent))?;
    // One publishes at a time; the folder itself is the lock.
    let lock =
        File::open(&parent).and_then(|folder| folder.lock().map(|()| folder)).map_err(StageError::io(&parent))?;
    if is_same(bundle, &target) {
        return Ok(target);
    }
    let fresh = parent.join(format!(".{}.new", manifest.epoch));
    remove(&fresh)?;
    copy_folder(bundle, &fresh)?;
    sync_folder(&fresh)?;
    place(&fresh, &target)?;
    remove(&fresh)?;
    drop(lock);
    Ok(target)
}

/// Whether the bundle stands there already, all bytes of it.
fn is_same(bundle: &Path, target: &Path) -> bool {
    let manifest = |folder: &Path| fs::read(folder.join(MANIFEST)).ok();
    let is_whole = |own: Manifest| {
        own.verify(target)?;
        // Nor may a copy without checkpoints pass for the whole.
        Ok(own.listed(target)?.keys().all(|file| target.join(file).exists()))
    };
    manifest(target).is_some_and(|bytes| Some(bytes) == manifest(bundle))
        && Manifest::read(target).and_then(is_whole).unwrap_or(false)
}

/// Moves a folder to a place that is free or taken; afterwards what was there stands at `fresh`.
fn place(fresh: &Path, target: &Path) -> Result<(), StageError> {
    let renamed = |flags| renameat_with(CWD, fresh, CWD, target, flags).map_err(std::io::Error::from);
    match renamed(RenameFlags::EXCHANGE) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            renamed(RenameFlags::NOREPLACE).map_err(StageError::io(target))
        }
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            let message =
                "the file system cannot exchange two folders in one step: move the old bundle away and run again";
            Err(StageError::File { path: target.display().to_string(), message: message.to_string() })
        }
        other => other.map_err(StageError::io(target)),
    }
}

fn remove(folder: &Path) -> Result<(), StageError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StageError::io(folder)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_takes_its_place_whether_that_is_free_or_taken() {
        let root = tempfile::tempdir().unwrap();
        let (fresh, target) = (root.path().join(".1.new"), root.path().join("1"));
        for (text, before) in [("one", None), ("two", Some("one"))] {
            fs::create_dir_all(&fresh).unwrap();
            fs::write(fresh.join("file"), text).unwrap();
            place(&fresh, &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), text);
            assert_eq!(fs::read_to_string(fresh.join("file")).ok().as_deref(), before);
        }
    }

    #[test]
    fn a_reader_never_finds_no_bundle_while_another_one_is_put_there() {
        let root = tempfile::tempdir().unwrap();
        let (fresh, target) = (root.path().join(".1.new"), root.path().join("1"));
        for folder in [&fresh, &target] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("file"), "whole").unwrap();
        }
        let ends = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0;
                while !ends.load(std::sync::atomic::Ordering::Relaxed) || reads == 0 {
                    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "whole");
                    reads += 1;
                }
            });
            for _ in 0..2_000 {
                place(&fresh, &target).unwrap();
            }
            ends.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().unwrap();
        });
    }
}
