//! What a run keeps of its steps: what makes the rule's state again, figures, samples.
//!
//! In memory while the run goes on; on disk whenever a resumable state is written, and at the end. `replay.toml` is TOML, for it brings
//! every f64 back to the last bit.

use super::{AlignError, StepFigures};
use crate::data::{read_lines, write_jsonl};
use crate::nn::FileError;
use crate::nn::tensor_file::write_atomically;
use crate::weighting::Products;
use serde::{Deserialize, Serialize};
use std::path::Path;

const REPLAY_FILE: &str = "replay.toml";
/// One line a step.
pub const FIGURES_FILE: &str = "steps.jsonl";
/// One line an answer of the prompts that are shown.
pub const SAMPLES_FILE: &str = "samples.jsonl";

/// What a step gave the rule, and how far it drew prompts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Replayed {
    /// Draws so far.
    pub(super) drawn: usize,
    /// `[reward][answer]`
    pub(super) rewards: Vec<Vec<f64>>,
    /// Of each reward's mean over that of the start, on all prompts that were asked.
    pub(super) gains: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) whole: Option<Vec<Vec<f64>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) across: Option<Vec<Vec<f64>>>,
    /// The rule was given nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_void: bool,
}

impl Replayed {
    pub(super) fn products(&self) -> Option<Products> {
        Some(Products { whole: self.whole.clone()?, across: self.across.clone()? })
    }
}

/// An answer for reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SampleLine {
    pub(super) step: u64,
    pub(super) user_id: String,
    pub(super) prompt: String,
    pub(super) completion: String,
    pub(super) rewards: Vec<f64>,
    pub(super) advantage: f64,
}

#[derive(Default, Serialize, Deserialize)]
struct Steps {
    #[serde(default)]
    step: Vec<Replayed>,
}

/// Of the steps so far.
#[derive(Default)]
pub(super) struct Log {
    pub(super) steps: Vec<Replayed>,
    pub(super) figures: Vec<StepFigures>,
    pub(super) samples: Vec<SampleLine>,
}

impl Log {
    /// What was written of the first `steps` steps.
    pub(super) fn read(folder: &Path, steps: u64) -> Result<Self, AlignError> {
        let path = folder.join(REPLAY_FILE);
        let text = std::fs::read_to_string(&path).map_err(FileError::io(&path))?;
        let read: Steps = toml::from_str(&text).map_err(|error| FileError::content(&path, error))?;
        let mut log = Self {
            steps: read.step,
            figures: read_lines(&folder.join(FIGURES_FILE))?.collect::<Result<_, _>>()?,
            samples: read_lines(&folder.join(SAMPLES_FILE))?.collect::<Result<_, _>>()?,
        };
        log.steps.truncate(steps as usize);
        log.figures.retain(|figures| figures.step <= steps);
        log.samples.retain(|sample| sample.step <= steps);
        match log.steps.len() as u64 == steps {
            true => Ok(log),
            false => Err(AlignError::Replay { path: path.display().to_string() }),
        }
    }

    /// Removes what only a run that goes on needs: after its states.
    pub(super) fn clear(folder: &Path) -> Result<(), AlignError> {
        let path = folder.join(REPLAY_FILE);
        match path.exists() {
            true => Ok(std::fs::remove_file(&path).map_err(FileError::io(&path))?),
            false => Ok(()),
        }
    }

    /// Writes all of it.
    pub(super) fn write(&self, folder: &Path) -> Result<(), AlignError> {
        let path = folder.join(REPLAY_FILE);
        let steps = Steps { step: self.steps.clone() };
        let text = toml::to_string(&steps).map_err(|error| FileError::content(&path, error))?;
        write_atomically(&path, text.as_bytes())?;
        write_jsonl(&folder.join(FIGURES_FILE), &self.figures)?;
        write_jsonl(&folder.join(SAMPLES_FILE), &self.samples)?;
        Ok(())
    }
}
