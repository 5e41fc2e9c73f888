//! f32 tensors by name in a safetensors file, and files that are replaced whole.
//!
//! Callers: checkpoints, optimizer states, adapters.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Serialize;
use thiserror::Error;

/// What can go wrong with such a file.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file does not hold what is asked of it.
    #[error("checkpoint {path}: {message}")]
    Content {
        /// File at fault.
        path: PathBuf,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

impl FileError {
    /// For `map_err` on what `std::fs` returns.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }

    /// A file with wrong content.
    pub fn content(path: &Path, message: impl ToString) -> Self {
        Self::Content { path: path.to_owned(), message: message.to_string() }
    }
}

/// f32 tensors by name, and text metadata.
#[derive(Debug, Default)]
pub struct TensorFile {
    /// (name, shape, values).
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// Texts in the header.
    pub metadata: HashMap<String, String>,
}

impl TensorFile {
    /// Takes a tensor out; `path` is for the message.
    pub fn take(&mut self, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<f32>, FileError> {
        let Some(place) = self.tensors.iter().position(|(found, _, _)| found == name) else {
            return Err(FileError::content(path, format!("has no tensor {name}")));
        };
        let (_, found_shape, values) = self.tensors.swap_remove(place);
        if found_shape != shape {
            let message = format!("{name} has shape {found_shape:?}, {shape:?} is wanted");
            return Err(FileError::content(path, message));
        }
        Ok(values)
    }

    /// Writes safetensors, atomically.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let wrong = |error: safetensors::SafeTensorError| FileError::content(path, error);
        let bytes: Vec<Vec<u8>> = self
            .tensors
            .iter()
            .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        let mut views = Vec::with_capacity(bytes.len());
        for ((name, shape, _), data) in self.tensors.iter().zip(&bytes) {
            views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).map_err(wrong)?));
        }
        let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone());
        let serialised = safetensors::serialize(views, metadata).map_err(wrong)?;
        write_atomically(path, &serialised)
    }

    /// Reads all tensors of a file; only f32 is accepted.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let bytes = std::fs::read(path).map_err(FileError::io(path))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| FileError::content(path, error))?;
        let parsed = SafeTensors::deserialize(&bytes).map_err(|error| FileError::content(path, error))?;
        let mut file = Self { metadata: header.metadata().clone().unwrap_or_default(), ..Self::default() };
        for (name, view) in parsed.tensors() {
            if view.dtype() != Dtype::F32 {
                let message = format!("{name} is {:?}: convert the checkpoint to float32", view.dtype());
                return Err(FileError::content(path, message));
            }
            let (words, _) = view.data().as_chunks::<4>();
            let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            file.tensors.push((name, view.shape().to_vec(), values));
        }
        Ok(file)
    }
}

/// Writes a value as indented JSON, atomically.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| FileError::content(path, error))?;
    write_atomically(path, &text)
}

/// Writes beside the target, flushes to disk, renames: a reader sees the old file or the new one, never half of one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let attempt = || {
        let mut target = std::fs::File::create(&partial)?;
        std::io::Write::write_all(&mut target, bytes)?;
        target.sync_all()?;
        std::fs::rename(&partial, path)
    };
    attempt().map_err(FileError::io(path))
}
