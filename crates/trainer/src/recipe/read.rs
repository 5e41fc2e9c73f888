//! The recipe's file: names, kinds and parents of stages with settings still unread, the experiment, the arms.

use super::arms::Experiment;
use super::{RecipeError, base, old_form};
use crate::model::DeviceKind;
use crate::stages::KeyError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A recipe as its file says it.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// For messages.
    pub file: String,
    /// Relative paths of settings begin here.
    pub folder: PathBuf,
    /// Name of the bundle and of the plan.
    pub name: String,
    /// Number of the bundle.
    pub epoch: u64,
    /// In the order of the file.
    pub entries: Vec<Entry>,
    /// `[experiment]`.
    pub experiment: Option<Experiment>,
    /// `[arms]`: arm → stage → settings over those of the stage.
    pub arms: BTreeMap<String, BTreeMap<String, toml::Table>>,
}

/// One `[[stage]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name in this recipe.
    pub name: String,
    /// What it does.
    pub kind: String,
    /// Names of its parents.
    pub from: Vec<String>,
    /// Everything else.
    pub settings: toml::Table,
}

/// What the command line gives to a recipe.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Folder of data, for stages of kind `files` without a path.
    pub data: Option<PathBuf>,
    /// Draws the seed of every stage that has one.
    pub seed: Option<u64>,
    /// Seeds of single stages, over all others.
    pub seeds: BTreeMap<String, u64>,
    /// Where language models are trained, over what the recipe says.
    pub device: Option<DeviceKind>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    epoch: u64,
    stage: Vec<toml::Table>,
    experiment: Option<Experiment>,
    #[serde(default)]
    arms: BTreeMap<String, BTreeMap<String, toml::Table>>,
}

impl Recipe {
    /// Reads a file. Settings are checked when the graph is made.
    pub fn read(path: &Path) -> Result<Recipe, RecipeError> {
        let file = path.display().to_string();
        let refuse = |message: String| RecipeError::File { file: file.clone(), message };
        let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        if let Some(new) = old_form::converted(&table).map_err(&refuse)? {
            return Err(RecipeError::OldForm { file, new });
        }
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let read: File = match table.contains_key("base") {
            true => base::resolved(&folder, table)
                .map_err(&refuse)?
                .try_into()
                .map_err(|error| refuse(error.to_string()))?,
            // Errors of the text itself say the line.
            false => toml::from_str(&text).map_err(|error| refuse(error.to_string()))?,
        };
        let mut recipe = Recipe {
            file,
            folder,
            name: read.name,
            epoch: read.epoch,
            entries: Vec::new(),
            experiment: read.experiment,
            arms: read.arms,
        };
        recipe.check_name("name", &recipe.name)?;
        for (place, table) in read.stage.into_iter().enumerate() {
            let entry = recipe.entry(place, table)?;
            if recipe.entries.iter().any(|other| other.name == entry.name) {
                return Err(recipe.stage_error(&entry.name, "two stages have this name"));
            }
            recipe.entries.push(entry);
        }
        recipe.check_arms()?;
        Ok(recipe)
    }

    fn entry(&self, place: usize, mut settings: toml::Table) -> Result<Entry, RecipeError> {
        let number = format!("number {}", place + 1);
        let mut word = |stage: &str, key: &str| match settings.remove(key) {
            Some(toml::Value::String(word)) => Ok(word),
            Some(other) => Err(self.key(stage, key, format!("must be a string, not {}", other.type_str()))),
            None => Err(self.key(stage, key, "is missing")),
        };
        let name = word(&number, "name")?;
        self.check_name("a stage's name", &name)?;
        let kind = word(&name, "kind")?;
        let from = match settings.remove("from") {
            None => Vec::new(),
            Some(value) => self.parents(&name, value)?,
        };
        Ok(Entry { name, kind, from, settings })
    }

    /// The names in a `from`.
    pub(super) fn parents(&self, stage: &str, value: toml::Value) -> Result<Vec<String>, RecipeError> {
        value.try_into().map_err(|_| self.key(stage, "from", "must be a list of stages' names"))
    }

    /// Names become parts of file names.
    pub(super) fn check_name(&self, what: &str, name: &str) -> Result<(), RecipeError> {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
        if !name.is_empty() && name.chars().all(plain) {
            return Ok(());
        }
        let message = format!("{what} {name:?} must be letters, digits, - and _");
        Err(RecipeError::File { file: self.file.clone(), message })
    }

    pub(super) fn stage_error(&self, stage: &str, message: impl Into<String>) -> RecipeError {
        RecipeError::Stage { file: self.file.clone(), stage: stage.to_string(), message: message.into() }
    }

    pub(super) fn key(&self, stage: &str, key: &str, message: impl Into<String>) -> RecipeError {
        let (file, stage, key) = (self.file.clone(), stage.to_string(), key.to_string());
        RecipeError::Key { file, stage, key, message: message.into() }
    }

    pub(super) fn key_error(&self, stage: &str, wrong: KeyError) -> RecipeError {
        match wrong.key {
            Some(key) => self.key(stage, &key, wrong.message),
            None => self.stage_error(stage, wrong.message),
        }
    }
}
