//! What the exporter reads of a checkpoint's `config.json`, in the layouts of older and newer transformers.
//!
//! In: JSON. Out: typed settings. Called by `checkpoint`, which opens the folder, and by those who write graphs.

use serde::Deserialize;
use serde_json::Value;

use super::ExportError;

/// What the exporter needs of `config.json`; fields of other architectures are ignored.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
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
    pub rms_norm_eps: Option<f32>,
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
    /// BERT: token types.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// BERT: kind of position embedding.
    pub position_embedding_type: Option<String>,
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

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Llama 3.1: low frequencies are slowed down to reach further.
    pub stretch: Option<Llama3Rope>,
}

/// Settings of `rope_type: llama3`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Llama3Rope {
    /// Frequencies below the band are divided by this.
    pub factor: f32,
    /// Waves longer than original positions / this are below the band.
    pub low_freq_factor: f32,
    /// Waves shorter than original positions / this stay as they are.
    pub high_freq_factor: f32,
    /// Positions the model was first trained on.
    pub original_max_position_embeddings: f32,
}

impl Config {
    /// Width of one head.
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Rotary settings from either layout; a scaling that is not known is refused by name.
    pub fn rope(&self) -> Result<Rope, ExportError> {
        let mut stretch = None;
        for settings in [&self.rope_parameters, &self.rope_scaling].into_iter().flatten() {
            match settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str) {
                None | Some("default") => {}
                Some("llama3") => {
                    let read = Llama3Rope::deserialize(settings).map_err(|error| ExportError::Config {
                        message: format!("config.json: rope settings of type llama3: {error}"),
                    })?;
                    stretch = Some(read);
                }
                Some(other) => return Err(ExportError::NotBuilt(format!("rope scaling of type '{other}'"))),
            }
            let turned = settings.get("partial_rotary_factor").and_then(Value::as_f64);
            if turned.is_some_and(|part| part != 1.0) {
                return Err(ExportError::NotBuilt("rotation of a part of the head".to_owned()));
            }
        }
        let newer =
            self.rope_parameters.as_ref().and_then(|settings| settings.get("rope_theta")).and_then(Value::as_f64);
        let theta = newer.or(self.rope_theta).ok_or_else(|| ExportError::Config {
            message: "neither rope_parameters.rope_theta nor rope_theta is given".to_owned(),
        })?;
        Ok(Rope { theta, stretch })
    }
}

fn two() -> usize {
    2
}
