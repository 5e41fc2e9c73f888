//! The files of a bundle: which there are, and whether they are those that the manifests list.
//!
//! The folder itself may be a link; inside, nothing may lead out of it.

use super::{BundleError, CHECKPOINTS, FileEntry, GENERATIONS};
use crate::checksum::sha256_file;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Refuses a path of a manifest that is not plainly below its folder.
pub(super) fn check_relative(bundle: &Path, path: &str) -> Result<(), BundleError> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']);
    if path.split('/').all(plain) {
        return Ok(());
    }
    Err(outside(bundle, path, "the manifest names a path that leaves the folder"))
}

/// Refuses a file or folder of the bundle that is, or lies behind, a link out of it. Nothing there is fine, too.
pub(crate) fn check_link(bundle: &Path, file: &str) -> Result<(), BundleError> {
    let leads_out = || outside(bundle, file, "a link leads out of the folder");
    let Ok(root) = bundle.canonicalize() else { return Ok(()) };
    let mut path = root.clone();
    // Part by part: a link out is found even where what lies behind it is not there.
    for part in file.split('/') {
        path.push(part);
        let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
        if metadata.is_symlink() {
            path = path.canonicalize().map_err(|_| leads_out())?;
        }
        if !path.starts_with(&root) {
            return Err(leads_out());
        }
    }
    Ok(())
}

fn outside(bundle: &Path, file: &str, message: &'static str) -> BundleError {
    BundleError::Outside { bundle: bundle.display().to_string(), file: file.to_owned(), message }
}

/// Compares files with their entries; names the first that is missing, differs, or lies outside of the folder.
pub(super) fn verify(bundle: &Path, listed: &BTreeMap<String, FileEntry>) -> Result<(), BundleError> {
    listed.iter().try_for_each(|(file, entry)| verify_file(bundle, file, entry))
}

fn verify_file(bundle: &Path, file: &str, entry: &FileEntry) -> Result<(), BundleError> {
    let name = bundle.display().to_string();
    check_link(bundle, file)?;
    let path = bundle.join(file);
    let Ok(metadata) = path.metadata() else {
        let remedy = match entry.external {
            Some(_) => "it is made from a package: run `taiji bundle fetch`, for the demo `make build`",
            None => "the bundle is incomplete: copy it again",
        };
        return Err(BundleError::Missing { bundle: name, file: file.to_owned(), remedy });
    };
    let differs = |message: String| BundleError::Checksum { bundle: name.clone(), file: file.to_owned(), message };
    if !metadata.is_file() {
        return Err(differs("it is no regular file".into()));
    }
    if metadata.len() != entry.bytes {
        return Err(differs(format!("{} bytes instead of {}", metadata.len(), entry.bytes)));
    }
    let found = sha256_file(&path).map_err(|error| differs(error.to_string()))?;
    if found != entry.sha256 {
        return Err(differs(format!("sha256 {found} instead of {}", entry.sha256)));
    }
    Ok(())
}

/// Whether every one of these files is there as its entry says.
pub(crate) fn are_intact<'a>(
    bundle: &Path,
    mut listed: impl Iterator<Item = (&'a String, &'a FileEntry)>,
) -> Result<bool, BundleError> {
    let damaged = listed.find_map(|(file, entry)| verify_file(bundle, file, entry).err());
    match damaged {
        None => Ok(true),
        Some(BundleError::Missing { .. } | BundleError::Checksum { .. }) => Ok(false),
        Some(refused) => Err(refused),
    }
}

/// Refuses a file that would be opened and is on no list: one of `files`, or any in `folders` (a graph may name further
/// files beside it) but hidden ones.
pub(super) fn refuse_unlisted(
    bundle: &Path,
    listed: &BTreeMap<String, FileEntry>,
    files: &[String],
    folders: &[&str],
) -> Result<(), BundleError> {
    let there = files.iter().filter(|file| bundle.join(file).exists()).cloned();
    let mut opened: Vec<String> = there.collect();
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(bundle.join(folder)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_file() && !name.starts_with('.') {
                opened.push(format!("{folder}/{name}"));
            }
        }
    }
    opened.sort();
    match opened.into_iter().find(|file| !listed.contains_key(file)) {
        Some(file) => Err(BundleError::Unlisted { bundle: bundle.display().to_string(), file }),
        None => Ok(()),
    }
}

/// Paths of all files below a folder, relative, `/`-separated, sorted, but for hidden ones and those in hidden folders.
pub fn all_files(folder: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        for entry in std::fs::read_dir(folder.join(&below))? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            let relative = below.join(name);
            match entry.path().is_dir() {
                true => folders.push(relative),
                false => files.push(relative.to_string_lossy().replace('\\', "/")),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file is for training alone.
pub(super) fn is_checkpoint(file: &str) -> bool {
    file.strip_prefix(CHECKPOINTS).is_some_and(|rest| rest.starts_with('/'))
}

/// Number of the generation and path inside it, of a file in `generations/<n>`.
pub(super) fn in_generation(file: &str) -> Option<(u64, &str)> {
    let (number, inner) = file.strip_prefix(GENERATIONS)?.strip_prefix('/')?.split_once('/')?;
    Some((number.parse().ok()?, inner))
}
