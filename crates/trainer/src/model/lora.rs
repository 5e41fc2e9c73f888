//! LoRA: low-rank matrices beside frozen linear layers (arXiv 2106.09685), saved and loaded in the form of Hugging Face's PEFT.
//!
//! In: a decoder, [`LoraSettings`] or a PEFT folder. Out: the decoder with adapters, merged, or `adapter_config.json` +
//! `adapter_model.safetensors`. Called by `sft` and `align`; `linear` computes them.

use std::collections::BTreeSet;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ModelError;
use super::decoder::Decoder;
use super::linear::Adapter;
use super::tape::{tensor, with_values};
use crate::fit::GroupSettings;
use crate::nn::tensor_file::write_json;
use crate::nn::{FileError, TensorFile};

/// Name of PEFT's file of settings.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Name of PEFT's file of matrices.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the name of a layer.
const PREFIX: &str = "base_model.model.";
/// The linear layers of a decoder's layer: PEFT's `all-linear`.
const ALL: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/// Keys of `adapter_config.json` that do not change what is computed, or that are read.
const KNOWN: [&str; 17] = [
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "target_modules",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "auto_mapping",
    "exclude_modules",
    "peft_version",
    "megatron_core",
    "qalora_group_size",
];

/// Which linear layers get adapters, and of what size: recipe key `lora` of the stages `sft` and `align`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSettings {
    /// Rank of the added matrices.
    pub rank: usize,
    /// What is added is scaled by alpha / rank.
    pub alpha: f64,
    /// Layers by PEFT's names: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`.
    pub targets: Vec<String>,
    /// Only in the last layers, so many; 0 = in all. What lies below them costs no tape.
    pub last_layers: usize,
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: ALL.map(str::to_owned).into(), last_layers: 0 }
    }
}

impl LoraSettings {
    /// Refuses what makes no adapter.
    pub fn check(&self) -> Result<(), ModelError> {
        let fail = |message: String| Err(ModelError::Config { field: "lora", message });
        if self.rank == 0 {
            return fail("rank must be positive".into());
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return fail(format!("alpha must be positive, got {}", self.alpha));
        }
        if self.targets.is_empty() {
            return fail(format!("targets names no layer: use {}", ALL.join(", ")));
        }
        match self.targets.iter().find(|target| !ALL.contains(&target.as_str())) {
            Some(target) => fail(format!("targets has {target}: use {}", ALL.join(", "))),
            None => Ok(()),
        }
    }
}

/// A run's own groups of parameters and, where it trains adapters, those that leave everything else as it is.
pub fn with_adapter_groups(own: &[GroupSettings], lora: Option<&LoraSettings>) -> Vec<GroupSettings> {
    let mut groups = own.to_vec();
    if lora.is_some() {
        groups.extend(adapter_groups());
    }
    groups
}

/// Groups of parameters by which adapters are trained and nothing else.
pub(super) fn adapter_groups() -> [GroupSettings; 2] {
    let group = |names: &str, frozen| GroupSettings { names: vec![names.into()], frozen, ..GroupSettings::default() };
    [group("*.lora_*", false), group("*", true)]
}

/// Whether a parameter of this name is an adapter's.
pub(super) fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

impl Decoder {
    /// Puts adapters beside the chosen layers. They change nothing yet: A is drawn evenly from ±1/√in (Kaiming, as PEFT does),
    /// B is 0. Nothing is frozen by this: [`with_adapter_groups`] does it.
    pub fn add_adapters(&mut self, settings: &LoraSettings, seed: u64) -> Result<(), ModelError> {
        settings.check()?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let layers = self.config().num_hidden_layers;
        let first = if settings.last_layers == 0 { 0 } else { layers.saturating_sub(settings.last_layers) };
        let scale = settings.alpha / settings.rank as f64;
        for linear in self.linears_mut() {
            let inputs = linear.weight.dim(1)?;
            let bound = 1.0 / (inputs as f32).sqrt();
            for part in linear.parts.clone() {
                let is_target = settings.targets.iter().any(|target| part.name.ends_with(target.as_str()));
                if !is_target || layer_of(&part.name).is_some_and(|layer| layer < first) {
                    continue;
                }
                let a = (0..settings.rank * inputs).map(|_| (random.random::<f32>() * 2.0 - 1.0) * bound).collect();
                let b = vec![0.0; part.rows.len() * settings.rank];
                linear.adapt(&part, (a, b), settings.rank, scale)?;
            }
        }
        Ok(())
    }

    fn adapters(&self) -> impl Iterator<Item = &Adapter> {
        self.linears().flat_map(|linear| &linear.adapters)
    }

    /// Whether any layer has an adapter.
    pub fn has_adapters(&self) -> bool {
        self.adapters().next().is_some()
    }

    /// Adds what the adapters add to the layers' own weights, and removes the adapters.
    pub fn merge_adapters(&mut self) -> Result<(), ModelError> {
        for linear in self.linears_mut().filter(|linear| !linear.adapters.is_empty()) {
            linear.weight.var().set(&tensor(linear.merged()?, linear.weight.dims())?)?;
            linear.adapters.clear();
        }
        Ok(())
    }

    /// Writes the adapters as PEFT does; `base`: folder of the decoder without them, of which the name is noted: where it lies is no part
    /// of the result.
    pub fn save_adapters(&self, base: &Path, folder: &Path) -> Result<(), ModelError> {
        let mut file = TensorFile::default();
        let (mut targets, mut layers) = (BTreeSet::new(), BTreeSet::new());
        let mut shape = None;
        for adapter in self.adapters() {
            let rank = adapter.a.dim(0)?;
            shape = Some((rank, adapter.scale * rank as f64));
            targets.extend(adapter.name.rsplit('.').next());
            layers.extend(layer_of(&adapter.name));
            for (part, weight) in [("lora_A", &adapter.a), ("lora_B", &adapter.b)] {
                let values = with_values(weight.var(), <[f32]>::to_vec)?;
                file.tensors.push((format!("{PREFIX}{}.{part}.weight", adapter.name), weight.dims().to_vec(), values));
            }
        }
        let Some((rank, alpha)) = shape else {
            return Err(ModelError::Config {
                field: "lora",
                message: "no layer has an adapter: nothing to save".into(),
            });
        };
        std::fs::create_dir_all(folder).map_err(FileError::io(folder))?;
        file.metadata.insert("format".into(), "pt".into());
        file.write(&folder.join(ADAPTER_WEIGHTS))?;
        let every_layer = layers.len() == self.config().num_hidden_layers;
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base.file_name().unwrap_or_default().to_string_lossy(),
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": targets,
            "layers_to_transform": if every_layer { Value::Null } else { json!(layers) },
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "inference_mode": true,
        });
        Ok(write_json(&folder.join(ADAPTER_CONFIG), &config)?)
    }

    /// Puts the adapters of a PEFT folder (f32) beside the layers they were made for.
    pub fn load_adapters(&mut self, folder: &Path) -> Result<(), ModelError> {
        let (rank, alpha) = read_config(&folder.join(ADAPTER_CONFIG))?;
        let path = folder.join(ADAPTER_WEIGHTS);
        let mut file = TensorFile::read(&path)?;
        for linear in self.linears_mut() {
            let inputs = linear.weight.dim(1)?;
            for part in linear.parts.clone() {
                let name = |matrix: &str| format!("{PREFIX}{}.{matrix}.weight", part.name);
                let (a, b) = (name("lora_A"), name("lora_B"));
                if !file.tensors.iter().any(|(found, ..)| *found == a || *found == b) {
                    continue;
                }
                let a = file.take(&path, &a, &[rank, inputs])?;
                let b = file.take(&path, &b, &[part.rows.len(), rank])?;
                linear.adapt(&part, (a, b), rank, alpha / rank as f64)?;
            }
        }
        match file.tensors.first() {
            Some((name, ..)) => {
                Err(FileError::content(&path, format!("{name} belongs to no layer of this decoder")).into())
            }
            None => Ok(()),
        }
    }
}

/// `model.layers.3.mlp.up_proj` → 3.
fn layer_of(name: &str) -> Option<usize> {
    name.split('.').nth(2).and_then(|layer| layer.parse().ok())
}

/// Rank and alpha out of an `adapter_config.json`; a setting that changes what is computed is refused by name.
fn read_config(path: &Path) -> Result<(usize, f64), FileError> {
    let text = std::fs::read(path).map_err(FileError::io(path))?;
    let config: Value = serde_json::from_slice(&text).map_err(|error| FileError::content(path, error))?;
    let wrong = |message: String| FileError::content(path, message);
    let Some(config) = config.as_object() else { return Err(wrong("is no object".into())) };
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(wrong("peft_type must be LORA".into()));
    }
    // Starts that change the base's weights are named by a text.
    let starts = [Value::Null, json!(true), json!(false), json!("gaussian")];
    if config.get("init_lora_weights").is_some_and(|start| !starts.contains(start)) {
        return Err(wrong("init_lora_weights: only true, false and \"gaussian\" leave the base as it is".into()));
    }
    if let Some((key, value)) = config.iter().find(|(key, value)| !KNOWN.contains(&key.as_str()) && !is_off(value)) {
        return Err(wrong(format!("{key}: {value} is not computed here: save the adapter without it")));
    }
    let rank = config.get("r").and_then(Value::as_u64).filter(|rank| *rank > 0);
    let alpha = config.get("lora_alpha").and_then(Value::as_f64);
    match (rank, alpha) {
        (Some(rank), Some(alpha)) => Ok((rank as usize, alpha)),
        _ => Err(wrong("r and lora_alpha must be numbers".into())),
    }
}

/// Whether a setting says that something is not used.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_off),
        _ => false,
    }
}
