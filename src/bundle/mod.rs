//! A bundle: everything one epoch needs, made, checked and loaded together (DESIGN 5.6).
//!
//! In: a folder with `manifest.json`. Out: [`Bundle`], ready to refresh users, or an error that names the file.
//! Callers: `cli` (load, check, fetch, rewrite), `taiji_trainer::recipe` (write the manifests).

mod files;
mod load;
mod manifest;
mod parity;
mod rewrite;
#[cfg(test)]
pub(crate) mod testing;

pub use crate::checksum::sha256_file;
pub use files::all_files;
pub(crate) use files::{are_intact, check_link};

pub use load::{Bundle, Engine, Inference, LoadOptions, generation_dir, load};
pub use manifest::{
    External, FileEntry, GenerationManifest, Licence, Lineage, MANIFEST, Manifest, Models, file_entry, space_id,
};
pub use parity::{PROBE, ParityProbe, ProbeText, TokenProbe};
pub use rewrite::rewrite;

use thiserror::Error;

/// The folder of the numbered generations.
pub(crate) const GENERATIONS: &str = "generations";
/// The encoder's folder in a bundle.
pub const ENCODER_FOLDER: &str = "encoder";
/// The folder of the LLM that writes reasoning and answer.
pub const LLM_FOLDER: &str = "llm/reason";
/// What training can go on from; serving neither reads nor needs it.
const CHECKPOINTS: &str = "checkpoints";
/// The trained checkpoint of the LLM, in f16, in Hugging Face form.
pub const SFT_CHECKPOINT: &str = "checkpoints/sft";
/// The quantiser's file.
pub const CODEBOOK_FILE: &str = "space/pq.safetensors";

/// Why a bundle is refused; the service that holds another one keeps serving it.
#[derive(Debug, Error)]
pub enum BundleError {
    /// A file is absent.
    #[error("bundle {bundle}: {file} is missing; {remedy}")]
    Missing {
        /// The bundle's folder.
        bundle: String,
        /// The file, relative to it.
        file: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A file is not what the manifest says.
    #[error(
        "bundle {bundle}: {file} does not match the manifest: {message}; copy the bundle again, or run `taiji bundle fetch`"
    )]
    Checksum {
        /// The bundle's folder.
        bundle: String,
        /// The file, relative to it.
        file: String,
        /// Size or sha256, wanted and found.
        message: String,
    },
    /// A path of a manifest, or a link in the folder, leads out of it.
    #[error("bundle {bundle}: {file}: {message}; a bundle's files lie in its folder")]
    Outside {
        /// The bundle's folder.
        bundle: String,
        /// As the manifest has it.
        file: String,
        /// Which of the two.
        message: &'static str,
    },
    /// A file would be opened that no manifest lists.
    #[error("bundle {bundle}: {file} is on no list of the manifests: remove it, or copy the bundle again")]
    Unlisted {
        /// The bundle's folder.
        bundle: String,
        /// The file, relative to it.
        file: String,
    },
    /// A file is intact but cannot be used.
    #[error("bundle {bundle}: {message}")]
    Invalid {
        /// The bundle's folder.
        bundle: String,
        /// Which part, and what is wrong.
        message: String,
    },
    /// The model does not answer as it did when the bundle was made.
    #[error("bundle {bundle}: parity gate failed: {message}")]
    Parity {
        /// The bundle's folder.
        bundle: String,
        /// Which probe, stored and measured value.
        message: String,
    },
}
