//! Resumable states of a run: `<folder>/resume/step-<n>/`, made whole under another name and then renamed.
//!
//! Called by `run`. A killed run finds the newest whole state and continues to the same result.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FitError;
use super::average::Average;
use super::curve::CurvePoint;
use super::optimizer::AdamW;
use crate::nn::FileError;
use crate::nn::tensor_file::write_atomically;

// TOML, because it brings every f64 back to the last bit; serde_json does not by default.
const STATE_FILE: &str = "state.toml";
const WEIGHTS_FILE: &str = "weights.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const AVERAGE_FILE: &str = "average.safetensors";
const BEST_FILE: &str = "best.safetensors";

/// What a run remembers besides values of tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub(super) struct RunState {
    /// Hash of settings and data.
    pub(super) run_id: String,
    /// Steps done, skipped ones included.
    pub(super) step: u64,
    /// Steps skipped.
    pub(super) skipped: u64,
    /// Tokens trained on.
    pub(super) tokens: u64,
    /// Seconds spent, earlier attempts included.
    pub(super) seconds: f64,
    /// Loss and steps taken since the last entry of the curve.
    pub(super) pending_loss: f64,
    pub(super) pending_steps: u64,
    /// Lowest validation loss and its step.
    #[serde(default)]
    pub(super) best_loss: Option<f64>,
    #[serde(default)]
    pub(super) best_step: Option<u64>,
    /// Validations since the best one.
    pub(super) validations_since_best: u64,
    /// Patience is at an end.
    pub(super) stopped: bool,
    #[serde(default)]
    pub(super) curve: Vec<CurvePoint>,
}

/// What a run holds in memory and a state holds in files.
pub(super) struct Held<'a> {
    pub(super) optimizer: &'a mut AdamW,
    pub(super) average: &'a mut Option<Average>,
    /// Weights of the best validation.
    pub(super) best: &'a mut Option<Vec<Vec<f32>>>,
}

fn root(folder: &Path) -> PathBuf {
    folder.join("resume")
}

fn remove(folder: &Path) -> Result<(), FitError> {
    match folder.exists() {
        true => Ok(fs::remove_dir_all(folder).map_err(FileError::io(folder))?),
        false => Ok(()),
    }
}

/// Writes a state; older ones are removed once it is whole.
pub(super) fn save(folder: &Path, held: &Held<'_>, state: &RunState) -> Result<(), FitError> {
    let partial = root(folder).join("partial");
    remove(&partial)?;
    fs::create_dir_all(&partial).map_err(FileError::io(&partial))?;
    let set = held.optimizer.set();
    set.file_of(set.values()?).write(&partial.join(WEIGHTS_FILE))?;
    held.optimizer.save(&partial.join(OPTIMIZER_FILE))?;
    if let Some(average) = &*held.average {
        average.save(set, &partial.join(AVERAGE_FILE))?;
    }
    if let Some(best) = &*held.best {
        set.file_of(best.clone()).write(&partial.join(BEST_FILE))?;
    }
    let path = partial.join(STATE_FILE);
    let text = toml::to_string(state).map_err(|error| FileError::content(&path, error))?;
    write_atomically(&path, text.as_bytes())?;
    let whole = root(folder).join(format!("step-{}", state.step));
    remove(&whole)?;
    fs::rename(&partial, &whole).map_err(FileError::io(&whole))?;
    for (step, path) in states(folder)? {
        if step < state.step {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes all states: for after a run, once what came of it is written.
pub fn clear(folder: &Path) -> Result<(), FitError> {
    remove(&root(folder))
}

/// Goes back to the newest whole state, if there is one; refuses one of another run.
pub(super) fn restore(folder: &Path, run_id: &str, held: &mut Held<'_>) -> Result<Option<RunState>, FitError> {
    let Some((_, newest)) = states(folder)?.into_iter().max() else { return Ok(None) };
    let path = newest.join(STATE_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        // A state of an older form.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(FitError::OtherRun { path: newest }),
        Err(error) => return Err(FileError::io(&path)(error).into()),
    };
    let state: RunState = toml::from_str(&text)
        .map_err(|error| FileError::content(&path, format!("{error}: remove {}", newest.display())))?;
    if state.run_id != run_id {
        return Err(FitError::OtherRun { path: newest });
    }
    held.optimizer.restore(&newest.join(OPTIMIZER_FILE))?;
    let set = held.optimizer.set();
    set.set_values(&set.values_of(&newest.join(WEIGHTS_FILE))?)?;
    if let Some(average) = held.average {
        average.restore(set, &newest.join(AVERAGE_FILE))?;
    }
    if newest.join(BEST_FILE).exists() {
        *held.best = Some(set.values_of(&newest.join(BEST_FILE))?);
    }
    Ok(Some(state))
}

fn states(folder: &Path) -> Result<Vec<(u64, PathBuf)>, FitError> {
    let folder = root(folder);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(FileError::io(&folder))? {
        let path = entry.map_err(FileError::io(&folder))?.path();
        let step = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("step-"));
        if let Some(step) = step.and_then(|digits| digits.parse().ok()) {
            found.push((step, path));
        }
    }
    Ok(found)
}
