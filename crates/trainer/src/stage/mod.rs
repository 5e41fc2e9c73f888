//! One step of a recipe, and the folder it fills.
//!
//! In: a [`Stage`] with its settings, the folders of its parents ([`Inputs`]), the work folder. Out: a finished folder named by the
//! hash of everything that decides its content. Callers: `recipe` (graph, plan, run); `stages` implements the trait.
//!
//! ```text
//! kind, version, settings, hashes of parents, bytes of input files ─► hash ─► <work>/<kind>-<hash>/
//! ```

mod artefact;
mod error;
mod fingerprint;
mod folder;

pub use artefact::{Artefact, Input, Inputs};
pub use error::StageError;
pub use fingerprint::{FileSums, Fingerprint, check_files, hash_of};
pub use folder::{
    STAGE_FILE, State, Work, copy_file, copy_files, copy_folder, read_json, seconds, sync_folder, write_json,
};

use std::path::{Path, PathBuf};

/// A kind of step with its settings.
pub trait Stage: Send + Sync {
    /// As a recipe spells it.
    fn kind(&self) -> &'static str;

    /// Rises whenever the same inputs and settings make other bytes; part of the hash.
    fn version(&self) -> u32;

    /// The settings that decide the result, defaults filled in; part of the hash. Threads and the like are not among them.
    fn settings(&self) -> serde_json::Value;

    /// What it is made from; at most one parent of each type. None where a recipe begins.
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    /// What it makes.
    fn output(&self) -> Artefact;

    /// Files outside the work folder that it reads, by the names they go into the hash with.
    fn files(&self) -> Result<Vec<(String, PathBuf)>, StageError> {
        Ok(Vec::new())
    }

    /// Whether it can go on in a folder that an interrupted run left; others find an empty one.
    fn resumes(&self) -> bool {
        false
    }

    /// Fills the folder. `threads`: at most so many, where the recipe does not decide alone. The result depends on neither.
    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError>;
}
