//! A file's metadata in the words of `config.json`.
//!
//! In: metadata. Out: settings. A key of the model's own that is not known is refused: it may change the maths.

use std::io::{Read, Seek};

use serde_json::{Map, Value as Json, json};

use super::GgufError;
use super::file::{Gguf, Value};
use super::weights::{HEAD, ROPE_FACTORS};
use crate::rope::{Llama3Rope, Rope, RopeScaling};

/// Model keys that are read, behind the architecture's name.
const READ: [&str; 17] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "expert_count",
    "expert_used_count",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "vocab_size",
];
/// Model keys that do not change what is computed.
const HARMLESS: [&str; 1] = ["rope.scaling.finetuned"];
/// Beginnings of keys that are not the model's own: names and licences, the tokenizer's (read elsewhere), how it was quantised.
const OTHERS: [&str; 3] = ["general.", "tokenizer.", "quantize."];

/// The settings of a decoder.
pub fn of<R: Read + Seek>(gguf: &mut Gguf<R>) -> Result<Map<String, Json>, GgufError> {
    let rope_factors = gguf.rope_factors()?;
    let gguf = &*gguf;
    let name = gguf.text("general.architecture")?.unwrap_or_default();
    let class = match name {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        other => {
            let message = format!("is '{other}'; llama, qwen2 and qwen3 can be converted");
            return Err(gguf.wrong("general.architecture", message));
        }
    };
    check_keys(gguf, name)?;
    let model = ModelKeys { gguf, name };
    let (hidden, heads) = (model.size("embedding_length")?, model.size("attention.head_count")?);
    let head = model.head(hidden, heads)?;
    let vocabulary = match model.size_if_given("vocab_size")? {
        Some(size) => size,
        None => gguf.texts("tokenizer.ggml.tokens")?.len() as u64,
    };
    let has = |tensor: &str| gguf.tensors.contains_key(tensor);
    let epsilon = model.float("attention.layer_norm_rms_epsilon")?;
    let epsilon = epsilon.ok_or_else(|| model.missing("attention.layer_norm_rms_epsilon"))?;
    let theta = model.float("rope.freq_base")?.unwrap_or(10_000.0);
    let mut settings = json!({
        "architectures": [class],
        "model_type": name,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": model.size("feed_forward_length")?,
        "num_hidden_layers": model.size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": model.size_if_given("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head,
        "vocab_size": vocabulary,
        "max_position_embeddings": model.size("context_length")?,
        "rms_norm_eps": epsilon,
        "rope_theta": theta,
        "rope_scaling": model.rope_scaling(theta, head, rope_factors)?,
        "tie_word_embeddings": !has(HEAD),
        "torch_dtype": "float32",
    });
    // Qwen2 always has biases around attention, and says nothing of them.
    let biased: &[(&str, &str)] = match name {
        "llama" => &[("attention", "blk.0.attn_q.bias"), ("mlp", "blk.0.ffn_gate.bias")],
        "qwen3" => &[("attention", "blk.0.attn_q.bias")],
        _ => &[],
    };
    for (part, tensor) in biased {
        settings[format!("{part}_bias")] = json!(has(tensor));
    }
    match settings {
        Json::Object(settings) => Ok(settings),
        _ => Ok(Map::new()),
    }
}

/// Refuses the first key that is not known.
fn check_keys<R: Read + Seek>(gguf: &Gguf<R>, name: &str) -> Result<(), GgufError> {
    if gguf.size("split.count")?.is_some_and(|count| count > 1) {
        return Err(gguf.wrong("split.count", "is above 1: merge the parts into one file first"));
    }
    for key in gguf.metadata.keys() {
        let own = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        let is_known = match own {
            Some(own) => READ.contains(&own) || HARMLESS.contains(&own),
            None => key.starts_with("split.") || OTHERS.iter().any(|beginning| key.starts_with(beginning)),
        };
        if !is_known {
            return Err(gguf.wrong(key, "is a key that is not known here and may change the maths"));
        }
    }
    Ok(())
}

/// Keys behind an architecture's name.
struct ModelKeys<'a, R> {
    gguf: &'a Gguf<R>,
    name: &'a str,
}

impl<R: Read + Seek> ModelKeys<'_, R> {
    fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn missing(&self, part: &str) -> GgufError {
        self.gguf.wrong(&self.key(part), "is missing")
    }

    fn size_if_given(&self, part: &str) -> Result<Option<u64>, GgufError> {
        self.gguf.size(&self.key(part))
    }

    fn size(&self, part: &str) -> Result<u64, GgufError> {
        self.size_if_given(part)?.filter(|size| *size > 0).ok_or_else(|| self.missing(part))
    }

    fn float(&self, part: &str) -> Result<Option<f64>, GgufError> {
        match self.gguf.metadata.get(&self.key(part)) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value)),
            Some(_) => Err(self.gguf.wrong(&self.key(part), "is not a finite float")),
        }
    }

    /// Width of a head: what all keys about it agree on.
    fn head(&self, hidden: u64, heads: u64) -> Result<u64, GgufError> {
        let head = self.size_if_given("attention.key_length")?.unwrap_or(hidden / heads);
        for part in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = self.size_if_given(part)?.filter(|other| *other != head) {
                let message = format!("is {other}, a head has {head}; only equal widths can be computed");
                return Err(self.gguf.wrong(&self.key(part), message));
            }
        }
        if self.size_if_given("expert_count")?.is_some_and(|count| count > 0) {
            return Err(self.gguf.wrong(&self.key("expert_count"), "is above 0; experts cannot be computed"));
        }
        Ok(head)
    }

    /// `rope_scaling`, from keys or from the factors that Llama 3.1 keeps as a tensor.
    fn rope_scaling(&self, theta: f64, head: u64, factors: Option<Vec<f32>>) -> Result<Json, GgufError> {
        let kind = self.gguf.text(&self.key("rope.scaling.type"))?.unwrap_or("none");
        let factor = || -> Result<f64, GgufError> {
            self.float("rope.scaling.factor")?.ok_or_else(|| self.missing("rope.scaling.factor"))
        };
        match kind {
            "none" => factors.map_or(Ok(Json::Null), |factors| self.llama3(theta, head, &factors)),
            _ if factors.is_some() => {
                Err(self.gguf.wrong(&format!("tensor {ROPE_FACTORS}"), "scales a rope that is scaled already"))
            }
            "linear" => Ok(json!({"rope_type": "linear", "factor": factor()?})),
            "yarn" => {
                let original = self.size("rope.scaling.original_context_length")?;
                let settings = json!({
                    "rope_type": "yarn", "factor": factor()?, "original_max_position_embeddings": original
                });
                Ok(settings)
            }
            other => {
                let message = format!("is '{other}'; none, linear and yarn can be converted");
                Err(self.gguf.wrong(&self.key("rope.scaling.type"), message))
            }
        }
    }

    /// The settings that Llama 3.1 and 3.2 have, if the tensor's factors are theirs.
    fn llama3(&self, theta: f64, head: u64, factors: &[f32]) -> Result<Json, GgufError> {
        const FIRST_POSITIONS: f32 = 8192.0;
        let field = format!("tensor {ROPE_FACTORS}");
        let factor = factors.iter().copied().fold(1.0, f32::max);
        let settings = Llama3Rope {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: FIRST_POSITIONS,
        };
        let plain = Rope { theta, scaling: RopeScaling::Default }.frequencies(head as usize);
        let is_theirs = factors.len() == plain.len()
            && plain
                .iter()
                .zip(factors)
                .all(|(&frequency, &divisor)| (settings.stretched(frequency) * divisor / frequency - 1.0).abs() < 1e-3);
        match is_theirs {
            true => Ok(json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": FIRST_POSITIONS as u64
            })),
            false => Err(self.gguf.wrong(&field, "holds factors other than Llama 3.1's, which config.json cannot say")),
        }
    }
}

impl<R: Read + Seek> Gguf<R> {
    /// The tensor of rotary factors, if there is one.
    fn rope_factors(&mut self) -> Result<Option<Vec<f32>>, GgufError> {
        match self.tensors.get(ROPE_FACTORS).map(|place| place.shape.clone()) {
            None => Ok(None),
            Some(shape) if shape.len() == 1 && shape[0] <= 4096 => self.read(ROPE_FACTORS, &shape).map(Some),
            Some(shape) => Err(self.wrong(&format!("tensor {ROPE_FACTORS}"), format!("has shape {shape:?}"))),
        }
    }
}
