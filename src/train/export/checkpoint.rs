//! Reads a Hugging Face shaped checkpoint folder: `config.json` and `model.safetensors`.
//!
//! In: the folder. Out: a typed configuration and weights as f32, one tensor in memory at a time. Called by `decoder`
//! and `bert`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;
use serde_json::Value;

use super::ExportError;

/// A safetensors header longer than this is damage, not a header (bytes).
const HEADER_LIMIT: u64 = 100 << 20;

/// An opened checkpoint.
pub struct Checkpoint {
    /// Folder.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: Config,
    weights: File,
    weights_path: PathBuf,
    tensors: BTreeMap<String, TensorInfo>,
    data_start: u64,
}

/// A weight as f32, row-major.
pub struct Weight {
    /// Shape.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Vec<f32>,
}

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

    /// Base of the rotary frequencies from either layout; scaled rope is refused.
    pub fn theta(&self) -> Result<f64, ExportError> {
        for settings in [&self.rope_parameters, &self.rope_scaling].into_iter().flatten() {
            let kind = settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str);
            if let Some(kind) = kind
                && kind != "default"
            {
                return Err(ExportError::NotBuilt(format!("rope scaling of type '{kind}'")));
            }
        }
        let newer =
            self.rope_parameters.as_ref().and_then(|settings| settings.get("rope_theta")).and_then(Value::as_f64);
        newer.or(self.rope_theta).ok_or_else(|| ExportError::Config {
            message: "neither rope_parameters.rope_theta nor rope_theta is given".to_owned(),
        })
    }
}

impl Checkpoint {
    /// Opens a folder and checks that the weight file is whole.
    pub fn open(folder: &Path) -> Result<Self, ExportError> {
        let config_path = folder.join("config.json");
        let text = std::fs::read(&config_path).map_err(|source| ExportError::io(&config_path, source))?;
        let config: Config = serde_json::from_slice(&text)
            .map_err(|error| ExportError::Config { message: format!("{}: {error}", config_path.display()) })?;

        let weights_path = folder.join("model.safetensors");
        if !weights_path.exists() && folder.join("model.safetensors.index.json").exists() {
            return Err(ExportError::NotBuilt("sharded checkpoints".to_owned()));
        }
        let mut weights = File::open(&weights_path).map_err(|source| ExportError::io(&weights_path, source))?;
        let (tensors, data_start) = read_header(&mut weights, &weights_path)?;
        Ok(Self { folder: folder.to_owned(), config, weights, weights_path, tensors, data_start })
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads one tensor and checks its shape; f16 and bf16 become f32.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Weight, ExportError> {
        let info = self.tensors.get(name).ok_or_else(|| ExportError::Weight {
            name: name.to_owned(),
            message: format!("missing from {}", self.weights_path.display()),
        })?;
        if info.shape != shape {
            let message = format!("has shape {:?}, config.json asks for {shape:?}", info.shape);
            return Err(ExportError::Weight { name: name.to_owned(), message });
        }
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0_u8; end - begin];
        self.weights
            .seek(SeekFrom::Start(self.data_start + begin as u64))
            .and_then(|_| self.weights.read_exact(&mut bytes))
            .map_err(|source| ExportError::io(&self.weights_path, source))?;
        let values = to_f32(&bytes, info.dtype).ok_or_else(|| ExportError::Weight {
            name: name.to_owned(),
            message: format!("has type {:?}; f32, f16 and bf16 can be exported", info.dtype),
        })?;
        if values.len() != shape.iter().product::<usize>() {
            let message = format!("holds {} values, its shape {shape:?} needs another number", values.len());
            return Err(ExportError::Weight { name: name.to_owned(), message });
        }
        Ok(Weight { shape: shape.to_vec(), values })
    }
}

impl Weight {
    /// Swaps the two axes of a matrix: Hugging Face keeps [out, in], ONNX MatMul wants [in, out].
    pub fn transposed(self) -> Self {
        let (rows, columns) = match self.shape[..] {
            [rows, columns] => (rows, columns),
            _ => return self,
        };
        let mut values = vec![0.0; self.values.len()];
        // Square tiles keep both sides in the cache.
        const TILE: usize = 32;
        for row_tile in (0..rows).step_by(TILE) {
            for column_tile in (0..columns).step_by(TILE) {
                for row in row_tile..(row_tile + TILE).min(rows) {
                    for column in column_tile..(column_tile + TILE).min(columns) {
                        values[column * rows + row] = self.values[row * columns + column];
                    }
                }
            }
        }
        Self { shape: vec![columns, rows], values }
    }

    /// Appends another weight along the first axis (output features).
    pub fn stacked(mut self, other: Self) -> Self {
        self.values.extend(other.values);
        if let (Some(rows), Some(more)) = (self.shape.first_mut(), other.shape.first()) {
            *rows += more;
        }
        self
    }
}

/// Tensor table and the file offset at which data begins.
fn read_header(weights: &mut File, path: &Path) -> Result<(BTreeMap<String, TensorInfo>, u64), ExportError> {
    let damaged = |message: String| ExportError::Config { message: format!("{}: {message}", path.display()) };
    let file_length = weights.metadata().map_err(|source| ExportError::io(path, source))?.len();
    let mut length = [0_u8; 8];
    weights.read_exact(&mut length).map_err(|source| ExportError::io(path, source))?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT || length + 8 > file_length {
        return Err(damaged(format!("header of {length} bytes in a file of {file_length}: copy the checkpoint again")));
    }
    let mut header = vec![0_u8; length as usize];
    weights.read_exact(&mut header).map_err(|source| ExportError::io(path, source))?;
    let entries: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;

    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let info: TensorInfo = serde_json::from_value(entry).map_err(|error| damaged(format!("{name}: {error}")))?;
        let (begin, end) = info.data_offsets;
        if begin > end || 8 + length + end as u64 > file_length {
            return Err(damaged(format!("{name} ends behind the end of the file: copy the checkpoint again")));
        }
        tensors.insert(name, info);
    }
    Ok((tensors, 8 + length))
}

fn two() -> usize {
    2
}

fn to_f32(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    let (pairs, _) = bytes.as_chunks::<2>();
    let (quads, _) = bytes.as_chunks::<4>();
    match dtype {
        Dtype::F32 => Some(quads.iter().map(|&quad| f32::from_le_bytes(quad)).collect()),
        Dtype::F16 => Some(pairs.iter().map(|&pair| half::f16::from_le_bytes(pair).to_f32()).collect()),
        Dtype::BF16 => Some(pairs.iter().map(|&pair| half::bf16::from_le_bytes(pair).to_f32()).collect()),
        _ => None,
    }
}
