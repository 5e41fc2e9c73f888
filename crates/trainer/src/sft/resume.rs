//! Resumable states of a run: `<out>/resume/step-<n>/`, made whole under another name and then renamed.
//!
//! Called by `training`. A killed run finds the newest whole state and continues to the same result.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SftError;
use super::training::LossPoint;
use crate::model::checkpoint::write_atomically;
use crate::model::{AdamW, Decoder, load_checkpoint, save_checkpoint};

const STATE_FILE: &str = "state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// What a run remembers besides weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub(super) struct RunState {
    /// Hash of settings and data.
    pub(super) run_id: String,
    /// Steps done.
    pub(super) step: u64,
    /// Tokens trained on.
    pub(super) tokens: u64,
    /// Seconds spent, earlier attempts included.
    pub(super) seconds: f64,
    /// Loss and steps since the last entry of the curve.
    pub(super) pending_loss: f64,
    pub(super) pending_steps: u64,
    pub(super) curve: Vec<LossPoint>,
}

fn root(out: &Path) -> PathBuf {
    out.join("resume")
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> SftError + '_ {
    |error| SftError::File { path: path.to_owned(), message: error.to_string() }
}

/// Writes a state; older ones are removed once it is whole.
pub(super) fn save(out: &Path, decoder: &Decoder, optimizer: &AdamW, state: &RunState) -> Result<(), SftError> {
    let partial = root(out).join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(failed(&partial))?;
    }
    save_checkpoint(decoder, &partial)?;
    optimizer.save(&partial.join(OPTIMIZER_FILE))?;
    let path = partial.join(STATE_FILE);
    let text =
        serde_json::to_vec(state).map_err(|error| SftError::File { path: path.clone(), message: error.to_string() })?;
    write_atomically(&path, &text)?;
    let whole = root(out).join(format!("step-{}", state.step));
    if whole.exists() {
        fs::remove_dir_all(&whole).map_err(failed(&whole))?;
    }
    fs::rename(&partial, &whole).map_err(failed(&whole))?;
    for (step, path) in states(out)? {
        if step < state.step {
            fs::remove_dir_all(&path).map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// Removes all states: the run is finished.
pub(super) fn clear(out: &Path) -> Result<(), SftError> {
    let folder = root(out);
    match folder.exists() {
        true => fs::remove_dir_all(&folder).map_err(failed(&folder)),
        false => Ok(()),
    }
}

/// The newest whole state, if any; refuses one of another run.
pub(super) fn newest(out: &Path, run_id: &str) -> Result<Option<(PathBuf, RunState)>, SftError> {
    let Some((_, folder)) = states(out)?.into_iter().max() else { return Ok(None) };
    let path = folder.join(STATE_FILE);
    let text = fs::read(&path).map_err(failed(&path))?;
    let state: RunState = serde_json::from_slice(&text).map_err(|error| SftError::File {
        path: path.clone(),
        message: format!("{error}: remove {}", folder.display()),
    })?;
    if state.run_id != run_id {
        return Err(SftError::OtherRun { path: folder });
    }
    Ok(Some((folder, state)))
}

/// Decoder of a state, and its optimizer with the moments restored by `make`'s settings.
pub(super) fn load(folder: &Path, make: impl FnOnce(&Decoder) -> AdamW) -> Result<(Decoder, AdamW), SftError> {
    let decoder = load_checkpoint(folder)?;
    let mut optimizer = make(&decoder);
    optimizer.restore(&folder.join(OPTIMIZER_FILE))?;
    Ok((decoder, optimizer))
}

fn states(out: &Path) -> Result<Vec<(u64, PathBuf)>, SftError> {
    let folder = root(out);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
        let path = entry.map_err(failed(&folder))?.path();
        let step = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("step-"));
        if let Some(step) = step.and_then(|digits| digits.parse().ok()) {
            found.push((step, path));
        }
    }
    Ok(found)
}
