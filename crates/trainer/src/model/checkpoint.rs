//! Checkpoints in Hugging Face's layout (Qwen2, Qwen3, Llama): `config.json` + `model.safetensors`, every file replaced atomically.
//!
//! Callers: `sft` (saves), `export` (reads the files), other tools. Reading is the exporter's. In memory query/key/value and gate/up are one
//! matrix each; on disk they are apart, as Hugging Face has them.

use std::path::Path;

use candle_core::Tensor;
use taiji_export::{CONFIG_FILE, Checkpoint, WEIGHTS_FILE};

use super::ModelError;
use super::config::DecoderConfig;
use super::decoder::Decoder;
use super::lora::is_adapter;
use super::tape::{tensor, with_values};
use crate::nn::tensor_file::write_json;
use crate::nn::{FileError, Module, Parameter, TensorFile};

/// Writes `config.json` and `model.safetensors` into `folder` (created if missing).
pub fn save_checkpoint(decoder: &Decoder, folder: &Path) -> Result<(), ModelError> {
    if decoder.has_adapters() {
        return Err(ModelError::Config {
            field: "lora",
            message: "adapters stand apart: merge them before saving".into(),
        });
    }
    save_merged(decoder, folder)
}

/// As [`save_checkpoint`], of the model that a decoder and its adapters are together; the decoder itself stays as it is.
pub fn save_merged(decoder: &Decoder, folder: &Path) -> Result<(), ModelError> {
    std::fs::create_dir_all(folder).map_err(FileError::io(folder))?;
    let mut file = TensorFile::default();
    let adapted = |parameter: &Parameter| {
        decoder.linears().find(|linear| !linear.adapters.is_empty() && linear.weight.var().id() == parameter.var.id())
    };
    for parameter in decoder.parameters().into_iter().filter(|parameter| !is_adapter(&parameter.name)) {
        let values = match adapted(&parameter) {
            Some(linear) => linear.merged()?,
            None => with_values(&parameter.var, <[f32]>::to_vec)?,
        };
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
    file.write(&folder.join(WEIGHTS_FILE))?;
    Ok(write_json(&folder.join(CONFIG_FILE), &decoder.config().to_json())?)
}

/// Reads a checkpoint in any form that the exporter reads: f32, f16 or bf16, one file or shards.
pub fn load_checkpoint(folder: &Path) -> Result<Decoder, ModelError> {
    let mut file = Checkpoint::open(folder)?;
    let config = DecoderConfig::of_checkpoint(&file.config)?;
    file.check_decoder(true)?;
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
pub(crate) fn parts(name: &str, config: &DecoderConfig, rows: usize) -> Vec<(String, usize)> {
    let (query, key) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
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
