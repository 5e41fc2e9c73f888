//! A bundle of format 1 → format 2: the same files, listed where they belong.

use super::manifest::FORMAT_WITHOUT_GENERATIONS;
use super::{BundleError, FileEntry, Manifest, files};
use std::collections::BTreeMap;
use std::path::Path;

/// Gives each generation a manifest of its own and writes the bundle's anew, without them. Files of packages that were not
/// fetched yet may be absent, everything else must be as listed. Returns whether there was anything to do; a run that
/// was interrupted is simply repeated.
pub fn rewrite(bundle: &Path) -> Result<bool, BundleError> {
    let mut manifest = Manifest::read(bundle)?;
    if manifest.format_version != FORMAT_WITHOUT_GENERATIONS {
        return Ok(false);
    }
    let is_fetched = |file: &String, entry: &FileEntry| entry.external.is_none() || bundle.join(file).exists();
    let there = manifest.files.iter().filter(|(file, entry)| is_fetched(file, entry));
    files::verify(bundle, &there.map(|(file, entry)| (file.clone(), entry.clone())).collect())?;

    let mut generations: BTreeMap<u64, BTreeMap<String, FileEntry>> = BTreeMap::new();
    let mut kept = BTreeMap::new();
    for (file, entry) in std::mem::take(&mut manifest.files) {
        match files::in_generation(&file) {
            Some((number, inner)) => {
                generations.entry(number).or_default().insert(inner.to_owned(), entry);
            }
            None => {
                kept.insert(file, entry);
            }
        }
    }
    manifest.files = kept;
    manifest.format_version = Manifest::current_format();
    let failed = |error: std::io::Error| BundleError::Invalid {
        bundle: bundle.display().to_string(),
        message: format!("the manifests cannot be written: {error}"),
    };
    for (number, listed) in generations {
        manifest.generation_manifest(number, listed).write(bundle).map_err(failed)?;
    }
    manifest.write(bundle).map_err(failed)?;
    Ok(true)
}
