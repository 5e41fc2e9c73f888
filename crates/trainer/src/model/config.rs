//! Shape of the decoder, in the fields of a Hugging Face `config.json` (Qwen2, Qwen3, Llama).

use serde_json::{Map, Value, json};
use taiji_export::{Config, Family, Rope, RopeScaling};

use super::ModelError;
use super::tile::COLUMNS;

/// Shape of a decoder: what `config.json` says of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Which of the known decoders; never [`Family::Bert`].
    pub family: Family,
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
    /// Width of one head.
    pub head_dim: usize,
    /// The projections around attention have biases; Qwen2 has those of query, key and value whatever this says.
    pub attention_bias: bool,
    /// Longest sequence, tokens.
    pub max_position_embeddings: usize,
    /// ε of RMSNorm.
    pub rms_norm_eps: f64,
    /// How positions turn queries and keys.
    pub rope: Rope,
    /// The output layer is the embedding table.
    pub tie_word_embeddings: bool,
    /// Tokens.
    pub vocab_size: usize,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Token that ends generation, where known.
    pub eos_token_id: Option<u32>,
    /// Token that begins a text, where one is used.
    pub bos_token_id: Option<u32>,
}

impl DecoderConfig {
    /// A Qwen2 decoder of this size with the defaults of small models: tied embedding, theta 10,000, ε 1e-6.
    pub fn small(vocab: usize, width: usize, layers: usize, heads: usize, kv_heads: usize, ffn: usize) -> Self {
        Self {
            family: Family::Qwen2,
            hidden_size: width,
            intermediate_size: ffn,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: width / heads.max(1),
            attention_bias: false,
            max_position_embeddings: 1024,
            rms_norm_eps: 1e-6,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
            tie_word_embeddings: true,
            vocab_size: vocab,
            // 1/√d keeps the scale of activations from the first step. On item codes 0.02, as transformers has it, did better
            // (docs/results.md); recipes may say so.
            initializer_range: 1.0 / (width.max(1) as f64).sqrt(),
            eos_token_id: None,
            bos_token_id: None,
        }
    }

    /// With initial weights of this standard deviation; 0 leaves it as it is.
    pub(crate) fn with_initializer_range(self, deviation: f64) -> Self {
        if deviation > 0.0 { Self { initializer_range: deviation, ..self } } else { self }
    }

    /// The shape of a checkpoint that others may have made; what this decoder does not compute is refused by file and key.
    pub(crate) fn of_checkpoint(config: &Config) -> Result<Self, ModelError> {
        let family = config.family()?;
        if family == Family::Bert {
            let message = format!("is '{}'; only decoders are trained", config.architecture());
            return Err(config.setting("architectures", message).into());
        }
        if config.mlp_bias {
            return Err(config
                .setting("mlp_bias", "is set; only a feed-forward part without is trained".into())
                .into());
        }
        // Of several tokens that end a text the first is the model's own.
        let token = |value: &Option<Value>| {
            let first = value.as_ref().and_then(|value| value.as_array().map_or(Some(value), |all| all.first()));
            first.and_then(Value::as_u64).and_then(|token| u32::try_from(token).ok())
        };
        Ok(Self {
            family,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.kv_heads(),
            head_dim: config.head_width(),
            attention_bias: config.attention_bias,
            max_position_embeddings: config.max_position_embeddings,
            rms_norm_eps: config.rms_norm_eps.unwrap_or(1e-6),
            rope: config.rope()?,
            tie_word_embeddings: config.tie_word_embeddings,
            vocab_size: config.vocab_size,
            initializer_range: config.initializer_range.unwrap_or(0.02),
            eos_token_id: token(&config.eos_token_id),
            bos_token_id: token(&config.bos_token_id),
        })
    }

    /// The text of `config.json`, in the layout that older and newer transformers read.
    pub(super) fn to_json(&self) -> Value {
        let (architecture, model_type) = match self.family {
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Qwen2 | Family::Bert => ("Qwen2ForCausalLM", "qwen2"),
        };
        let mut keys = Map::new();
        let mut set = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
        set("architectures", json!([architecture]));
        set("model_type", json!(model_type));
        set("hidden_act", json!("silu"));
        set("hidden_size", json!(self.hidden_size));
        set("intermediate_size", json!(self.intermediate_size));
        set("num_hidden_layers", json!(self.num_hidden_layers));
        set("num_attention_heads", json!(self.num_attention_heads));
        set("num_key_value_heads", json!(self.num_key_value_heads));
        // Where it is absent, Qwen3 takes 128.
        if self.family == Family::Qwen3 || self.head_dim * self.num_attention_heads != self.hidden_size {
            set("head_dim", json!(self.head_dim));
        }
        if self.attention_bias {
            set("attention_bias", json!(true));
        }
        set("max_position_embeddings", json!(self.max_position_embeddings));
        set("rms_norm_eps", json!(self.rms_norm_eps));
        set("rope_theta", json!(self.rope.theta));
        if let Some(scaling) = scaling_json(&self.rope.scaling) {
            set("rope_scaling", scaling);
        }
        set("tie_word_embeddings", json!(self.tie_word_embeddings));
        set("vocab_size", json!(self.vocab_size));
        set("torch_dtype", json!("float32"));
        set("initializer_range", json!(self.initializer_range));
        for (key, token) in [("eos_token_id", self.eos_token_id), ("bos_token_id", self.bos_token_id)] {
            if let Some(token) = token {
                set(key, json!(token));
            }
        }
        Value::Object(keys)
    }

    /// Query, key and value have biases.
    pub(super) fn qkv_bias(&self) -> bool {
        self.family == Family::Qwen2 || self.attention_bias
    }

    /// What attention writes into the residual stream has a bias.
    pub(super) fn output_bias(&self) -> bool {
        self.family != Family::Qwen2 && self.attention_bias
    }

    /// Queries and keys are normalised head by head.
    pub(super) fn head_norms(&self) -> bool {
        self.family == Family::Qwen3
    }

    /// Width of query, key and value side by side.
    pub fn qkv_width(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// Refuses shapes the kernels cannot run.
    pub fn check(&self) -> Result<(), ModelError> {
        let fail = |field, message: String| Err(ModelError::Config { field, message });
        if self.family == Family::Bert {
            return fail("architectures", "must be those of a decoder".into());
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
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(COLUMNS) {
            let message = format!(
                "must give heads of a multiple of {COLUMNS} values, got {}: use hidden_size / heads = 16, 32, 64 …",
                self.head_dim
            );
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

/// The key `rope_scaling`; none where nothing is changed.
fn scaling_json(scaling: &RopeScaling) -> Option<Value> {
    // Numbers of positions are whole, and transformers asks for them so.
    let positions = |count: f64| if count.fract() == 0.0 { json!(count as u64) } else { json!(count) };
    match scaling {
        RopeScaling::Default => None,
        RopeScaling::Linear(factor) => Some(json!({ "rope_type": "linear", "factor": factor })),
        RopeScaling::Llama3(rope) => Some(json!({
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": positions(f64::from(rope.original_max_position_embeddings)),
        })),
        RopeScaling::Yarn(rope) => Some(json!({
            "rope_type": "yarn",
            "factor": rope.factor,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "original_max_position_embeddings": positions(rope.original_positions),
            "attention_factor": rope.attention_factor,
        })),
    }
}
