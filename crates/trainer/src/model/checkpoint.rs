//! Checkpoints in Hugging Face's Qwen2 layout: `config.json` + `model.safetensors`, every file replaced atomically.
//!
//! Callers: `sft` (save, resume), `export` (reads the files), other tools. Reading is the exporter's. In memory query/key/value and gate/up are one
//! matrix each; on disk they are apart, as Hugging Face has them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use taiji_export::{CONFIG_FILE, Checkpoint, WEIGHTS_FILE};

use super::ModelError;
use super::config::DecoderConfig;
use super::decoder::Decoder;
use super::tape::{tensor, with_values};

/// f32 tensors by name, and text metadata.
#[derive(Debug, Default)]
pub(crate) struct TensorFile {
    /// (name, shape, values).
    pub(crate) tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    pub(crate) metadata: HashMap<String, String>,
}

impl TensorFile {
    /// Takes a tensor out; `path` is for the message.
    pub(crate) fn take(&mut self, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let wrong = |message: String| ModelError::Checkpoint { path: path.to_owned(), message };
        let Some(place) = self.tensors.iter().position(|(found, _, _)| found == name) else {
            return Err(wrong(format!("has no tensor {name}")));
        };
        let (_, found_shape, values) = self.tensors.swap_remove(place);
        if found_shape != shape {
            return Err(wrong(format!("{name} has shape {found_shape:?}, the config asks for {shape:?}")));
        }
        Ok(values)
    }
}

/// Writes `config.json` and `model.safetensors` into `folder` (created if missing).
pub fn save_checkpoint(decoder: &Decoder, folder: &Path) -> Result<(), ModelError> {
    std::fs::create_dir_all(folder).map_err(|source| ModelError::Io { path: folder.to_owned(), source })?;
    let mut file = TensorFile::default();
    for parameter in decoder.parameters() {
        let values = with_values(&parameter.var, <[f32]>::to_vec)?;
        let width = parameter.var.dims().get(1).copied();
        let mut rest = values.as_slice();
        for (name, rows) in parts(&parameter.name, decoder.config(), parameter.var.dims()[0]) {
            let (part, tail) = rest.split_at(rows * width.unwrap_or(1));
            let shape = [rows].into_iter().chain(width).collect();
            file.tensors.push((name, shape, part.to_vec()));
            rest = tail;
        }
    }
    file.metadata.insert("format".into(), "pt".into());
    write_tensors(&folder.join(WEIGHTS_FILE), &file)?;
    let path = folder.join(CONFIG_FILE);
    let text = serde_json::to_vec_pretty(decoder.config())
        .map_err(|error| ModelError::Checkpoint { path: path.clone(), message: error.to_string() })?;
    write_atomically(&path, &text)
}

/// Reads a checkpoint in any form that the exporter reads: f32, f16 or bf16, one file or shards.
pub fn load_checkpoint(folder: &Path) -> Result<Decoder, ModelError> {
    let mut file = Checkpoint::open(folder)?;
    file.check_decoder(true)?;
    let config = DecoderConfig::of_checkpoint(&file.config)?;
    let mut source = |name: &str, shape: &[usize]| -> Result<Tensor, ModelError> {
        let mut values = Vec::with_capacity(shape.iter().product());
        for (part, rows) in parts(name, &config, shape[0]) {
            let part_shape: Vec<usize> = [rows].into_iter().chain(shape.get(1).copied()).collect();
            values.extend(file.read(&part, &part_shape)?.values);
        }
        Ok(tensor(values, shape)?)
    };
    Decoder::build(&config, &mut source)
}

/// The tensors on disk that make one tensor in memory: names and rows.
fn parts(name: &str, config: &DecoderConfig, rows: usize) -> Vec<(String, usize)> {
    let (query, key) = (config.num_attention_heads * config.head_dim(), config.num_key_value_heads * config.head_dim());
    let split: &[(&str, usize)] = match name {
        _ if name.contains("qkv_proj") => &[("q_proj", query), ("k_proj", key), ("v_proj", key)],
        _ if name.contains("gate_up_proj") => {
            &[("gate_proj", config.intermediate_size), ("up_proj", config.intermediate_size)]
        }
        _ => return vec![(name.to_owned(), rows)],
    };
    let joined = if name.contains("qkv_proj") { "qkv_proj" } else { "gate_up_proj" };
    split.iter().map(|(part, rows)| (name.replace(joined, part), *rows)).collect()
}

/// Writes f32 tensors as safetensors, atomically.
pub(crate) fn write_tensors(path: &Path, file: &TensorFile) -> Result<(), ModelError> {
    let wrong = |error: safetensors::SafeTensorError| ModelError::Checkpoint {
        path: path.to_owned(),
        message: error.to_string(),
    };
    let bytes: Vec<Vec<u8>> = file
        .tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let mut views = Vec::with_capacity(bytes.len());
    for ((name, shape, _), data) in file.tensors.iter().zip(&bytes) {
        views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).map_err(wrong)?));
    }
    let metadata = (!file.metadata.is_empty()).then(|| file.metadata.clone());
    let serialised = safetensors::serialize(views, metadata).map_err(wrong)?;
    write_atomically(path, &serialised)
}

/// Reads all tensors of a safetensors file; only f32 is accepted.
pub(crate) fn read_tensors(path: &Path) -> Result<TensorFile, ModelError> {
    let wrong = |message: String| ModelError::Checkpoint { path: path.to_owned(), message };
    let bytes = std::fs::read(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
    let parsed = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut file = TensorFile { metadata: header.metadata().clone().unwrap_or_default(), ..TensorFile::default() };
    for (name, view) in parsed.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(wrong(format!("{name} is {:?}: convert the checkpoint to float32", view.dtype())));
        }
        let (words, _) = view.data().as_chunks::<4>();
        let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        file.tensors.push((name, view.shape().to_vec(), values));
    }
    Ok(file)
}

/// Writes beside the target, flushes to disk, renames: a reader sees the old file or the new one, never half of one.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let attempt = || {
        let mut target = std::fs::File::create(&partial)?;
        std::io::Write::write_all(&mut target, bytes)?;
        target.sync_all()?;
        std::fs::rename(&partial, path)
    };
    attempt().map_err(|source| ModelError::Io { path: path.to_owned(), source })
}
