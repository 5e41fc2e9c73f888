//! What exporter and trainer read of a checkpoint's `config.json`, in the layouts of older and newer transformers.
//!
//! In: the file. Out: typed settings; a key that is not known (`settings`) or a value nobody here computes is an error. Called by
//! `checkpoint`, which opens the folder, and by those who write graphs or build decoders.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ExportError;
use super::settings;

/// Name of the file.
pub const CONFIG_FILE: &str = "config.json";

/// What is needed of `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// The file, for messages.
    #[serde(skip)]
    pub path: PathBuf,
    /// Class names; the first decides the graph.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Width d.
    pub hidden_size: usize,
    /// Width F of the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads H.
    pub num_attention_heads: usize,
    /// Key and value heads K; H where absent.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; d / H where absent.
    pub head_dim: Option<usize>,
    /// Vocabulary V.
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// Decoders: epsilon of the norms.
    pub rms_norm_eps: Option<f64>,
    /// BERT: epsilon of the norms.
    pub layer_norm_eps: Option<f32>,
    /// Activation.
    pub hidden_act: Option<String>,
    /// The output head is the embedding table.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Attention over a window: not built.
    #[serde(default)]
    pub use_sliding_window: bool,
    /// Kind of attention of each layer; only `full_attention` is built.
    #[serde(default)]
    pub layer_types: Option<Vec<String>>,
    /// BERT: token types.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// BERT: kind of position embedding.
    pub position_embedding_type: Option<String>,
    /// Token, or several, that ends a text.
    pub eos_token_id: Option<Value>,
    /// Token that begins a text.
    pub bos_token_id: Option<Value>,
    /// Standard deviation of the first weights.
    pub initializer_range: Option<f64>,
    /// Older layout of the rope settings.
    pub rope_theta: Option<f64>,
    /// Older layout of the rope scaling.
    pub rope_scaling: Option<Value>,
    /// Layout since transformers 5.
    pub rope_parameters: Option<Value>,
    /// Llama and Qwen3: the projections around attention have biases.
    #[serde(default)]
    pub attention_bias: bool,
    /// Llama: the feed-forward part has biases.
    #[serde(default)]
    pub mlp_bias: bool,
}

/// Kinds of model that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Biases on query, key and value.
    Qwen2,
    /// Query and key are normalised by head.
    Qwen3,
    /// Biases only if asked for.
    Llama,
    /// An encoder.
    Bert,
}

impl Config {
    /// Reads a file; refuses keys that are not known.
    pub fn read(path: &Path) -> Result<Self, ExportError> {
        let wrong = |error: serde_json::Error| ExportError::Config { message: format!("{}: {error}", path.display()) };
        let text = std::fs::read(path).map_err(|source| ExportError::io(path, source))?;
        let keys: Map<String, Value> = serde_json::from_slice(&text).map_err(wrong)?;
        Self::of(keys, path)
    }

    /// The settings of a JSON object; `path` is for messages.
    pub fn of(keys: Map<String, Value>, path: &Path) -> Result<Self, ExportError> {
        let wrong = |error: serde_json::Error| ExportError::Config { message: format!("{}: {error}", path.display()) };
        let config: Self = serde_json::from_value(Value::Object(keys.clone())).map_err(wrong)?;
        let config = Self { path: path.to_owned(), ..config };
        config.family()?;
        if let Some((key, message)) = settings::fault(&keys) {
            return Err(config.setting(&key, message));
        }
        if let Some(kind) = config.layer_types.iter().flatten().find(|kind| *kind != "full_attention") {
            return Err(config.setting("layer_types", format!("holds '{kind}'; only full_attention can be computed")));
        }
        Ok(config)
    }

    /// Class name that decides the graph.
    pub fn architecture(&self) -> &str {
        self.architectures.first().map(String::as_str).unwrap_or_default()
    }

    /// Kind of the model.
    pub fn family(&self) -> Result<Family, ExportError> {
        match self.architecture() {
            "Qwen2ForCausalLM" | "Qwen2Model" => Ok(Family::Qwen2),
            "Qwen3ForCausalLM" | "Qwen3Model" => Ok(Family::Qwen3),
            "LlamaForCausalLM" | "LlamaModel" => Ok(Family::Llama),
            "BertModel" => Ok(Family::Bert),
            other => Err(ExportError::Architecture { found: other.to_owned() }),
        }
    }

    /// An error about a key of this file.
    pub fn setting(&self, key: &str, message: String) -> ExportError {
        ExportError::Setting { path: self.path.clone(), key: key.to_owned(), message }
    }

    /// Width of one head.
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
}

fn two() -> usize {
    2
}
