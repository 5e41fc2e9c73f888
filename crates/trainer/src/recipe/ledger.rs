//! What each stage of a recipe was made from last, so that a plan can say why it would run again.

use super::RunError;
use crate::stage::{Fingerprint, StageError, Work, write_json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

/// Stage (with its arm and seed) → what its newest finished folder was made from.
pub struct Ledger {
    path: PathBuf,
    entries: Mutex<BTreeMap<String, Fingerprint>>,
}

impl Ledger {
    /// That of a recipe of this name in a work folder; empty where there is none yet.
    pub fn open(work: &Work, recipe: &str) -> Result<Ledger, RunError> {
        let path = work.root().join("ledger").join(format!("{recipe}.json"));
        let entries = match std::fs::read(&path) {
            // It only explains; one that a later program wrote in another form explains nothing.
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(StageError::io(&path)(error).into()),
        };
        Ok(Ledger { path, entries: Mutex::new(entries) })
    }

    /// What a stage was made from last.
    pub fn last(&self, stage: &str) -> Option<Fingerprint> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(stage).cloned()
    }

    /// A stage was made, or found.
    pub fn note(&self, stage: &str, fingerprint: &Fingerprint) -> Result<(), StageError> {
        let mut entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if entries.get(stage) == Some(fingerprint) {
            return Ok(());
        }
        entries.insert(stage.to_string(), fingerprint.clone());
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(StageError::io(folder))?;
        }
        // Two runs of one recipe may write at once: each replaces the file whole.
        let fresh = self.path.with_extension(format!("{}.new", std::process::id()));
        write_json(&fresh, &*entries)?;
        std::fs::rename(&fresh, &self.path).map_err(StageError::io(&self.path))
    }
}
