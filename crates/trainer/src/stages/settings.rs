//! Reading the settings of a stage out of its table.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;

/// What a stage may need to know beside its settings.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Relative paths begin here: the recipe's folder.
    pub folder: PathBuf,
    /// `--data`.
    pub data: Option<PathBuf>,
    /// Of the bundle.
    pub name: String,
    /// Of the bundle.
    pub epoch: u64,
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyError {
    /// `None`: the message names it.
    pub key: Option<String>,
    /// What would be right.
    pub message: String,
}

impl KeyError {
    /// At a key.
    pub fn new(key: &str, message: impl Into<String>) -> KeyError {
        KeyError { key: Some(key.to_string()), message: message.into() }
    }

    /// Of a check that names the key itself.
    pub fn other(error: impl std::fmt::Display) -> KeyError {
        KeyError { key: None, message: error.to_string() }
    }
}

/// The settings as their type says; unknown keys are refused by the type.
pub fn read<T: DeserializeOwned>(table: toml::Table) -> Result<T, KeyError> {
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
        let path = error.path().to_string();
        // toml's messages end with a line break.
        let message = error.inner().to_string().trim_end().to_string();
        KeyError { key: (path != ".").then_some(path), message }
    })
}

/// Takes one key out of a table, for settings that go to two places.
pub fn take<T: DeserializeOwned>(table: &mut toml::Table, key: &str) -> Result<Option<T>, KeyError> {
    let Some(value) = table.remove(key) else { return Ok(None) };
    value.try_into().map(Some).map_err(|error| KeyError::new(key, error.to_string().trim_end()))
}

/// Refuses what is no share.
pub fn check_share(key: &str, share: f64) -> Result<(), KeyError> {
    match (0.0..=1.0).contains(&share) {
        true => Ok(()),
        false => Err(KeyError::new(key, format!("must be from 0 to 1, got {share}"))),
    }
}

/// The form that goes into the hash.
pub fn value(settings: &impl Serialize) -> Result<Value, KeyError> {
    serde_json::to_value(settings).map_err(KeyError::other)
}
