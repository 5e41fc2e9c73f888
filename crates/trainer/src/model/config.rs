//! Shape of the decoder, in the fields and file format of a Hugging Face `config.json` (Qwen2).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taiji_export::{Config, Family, RopeScaling};

use super::ModelError;
use super::tile::COLUMNS;

/// Shape of a Qwen2-type decoder; serialises to and from `config.json` (unknown fields are ignored when reading).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// `["Qwen2ForCausalLM"]`.
    #[serde(default = "architectures")]
    pub architectures: Vec<String>,
    /// `qwen2`.
    #[serde(default = "model_type")]
    pub model_type: String,
    /// Activation of the feed-forward block.
    #[serde(default = "hidden_act")]
    pub hidden_act: String,
    /// Width of the residual stream (d).
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Longest sequence, tokens.
    pub max_position_embeddings: usize,
    /// ε of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The output layer is the embedding table.
    pub tie_word_embeddings: bool,
    /// Tokens.
    pub vocab_size: usize,
    /// `float32`.
    #[serde(default = "torch_dtype")]
    pub torch_dtype: String,
    /// Standard deviation of the initial weights.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
    /// Token that ends generation, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<u32>,
    /// Token that begins a text, where one is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
}

fn architectures() -> Vec<String> {
    vec!["Qwen2ForCausalLM".into()]
}
fn model_type() -> String {
    "qwen2".into()
}
fn hidden_act() -> String {
    "silu".into()
}
fn torch_dtype() -> String {
    "float32".into()
}
fn initializer_range() -> f64 {
    0.02
}

impl DecoderConfig {
    /// A decoder of this size with the defaults of small models: tied embedding, theta 10,000, ε 1e-6.
    pub fn small(vocab: usize, width: usize, layers: usize, heads: usize, kv_heads: usize, ffn: usize) -> Self {
        Self {
            architectures: architectures(),
            model_type: model_type(),
            hidden_act: hidden_act(),
            hidden_size: width,
            intermediate_size: ffn,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            max_position_embeddings: 1024,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
            vocab_size: vocab,
            torch_dtype: torch_dtype(),
            // 1/√d keeps the scale of activations from the first step; 0.02 is meant for d near 2,000.
            initializer_range: 1.0 / (width.max(1) as f64).sqrt(),
            eos_token_id: None,
            bos_token_id: None,
        }
    }

    /// The shape of a checkpoint that others may have made; what this decoder does not compute is refused by file and key.
    pub(super) fn of_checkpoint(config: &Config) -> Result<Self, ModelError> {
        if config.family()? != Family::Qwen2 {
            let message = format!("is '{}'; only Qwen2ForCausalLM is trained", config.architecture());
            return Err(config.setting("architectures", message).into());
        }
        let derived = config.hidden_size / config.num_attention_heads.max(1);
        if config.head_width() != derived {
            let message = format!("is {}; only hidden_size / heads = {derived} is trained", config.head_width());
            return Err(config.setting("head_dim", message).into());
        }
        let rope = config.rope()?;
        if rope.scaling != RopeScaling::Default {
            return Err(config.setting("rope_scaling", "is set; only plain rope is trained".into()).into());
        }
        // Of several tokens that end a text the first is the model's own.
        let token = |value: &Option<Value>| {
            let first = value.as_ref().and_then(|value| value.as_array().map_or(Some(value), |all| all.first()));
            first.and_then(Value::as_u64).and_then(|token| u32::try_from(token).ok())
        };
        let mut shape = Self::small(
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.kv_heads(),
            config.intermediate_size,
        );
        shape.max_position_embeddings = config.max_position_embeddings;
        shape.rms_norm_eps = config.rms_norm_eps.unwrap_or(1e-6);
        shape.rope_theta = rope.theta;
        shape.tie_word_embeddings = config.tie_word_embeddings;
        shape.initializer_range = config.initializer_range.unwrap_or_else(initializer_range);
        shape.eos_token_id = token(&config.eos_token_id);
        shape.bos_token_id = token(&config.bos_token_id);
        Ok(shape)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// Width of query, key and value side by side.
    pub fn qkv_width(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim()
    }

    /// Refuses shapes the kernels cannot run.
    pub fn check(&self) -> Result<(), ModelError> {
        let fail = |field, message: String| Err(ModelError::Config { field, message });
        if self.architectures.first().map(String::as_str) != Some("Qwen2ForCausalLM") {
            return fail("architectures", format!("must be [\"Qwen2ForCausalLM\"], got {:?}", self.architectures));
        }
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vocab_size", self.vocab_size),
        ] {
            if value == 0 {
                return fail(field, "must be positive".into());
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) || !self.head_dim().is_multiple_of(COLUMNS) {
            let message =
                format!("must give heads of a multiple of {COLUMNS} values: use hidden_size / heads = 16, 32, 64 …");
            return fail("hidden_size", message);
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return fail(
                "num_key_value_heads",
                format!("must divide num_attention_heads {}", self.num_attention_heads),
            );
        }
        Ok(())
    }
}
