//! Reads a Hugging Face shaped checkpoint folder: `config.json` and `model.safetensors`, whole or in shards.
//!
//! In: the folder. Out: a typed configuration and weights as f32, one tensor in memory at a time. Called by `decoder`
//! and `bert`, and by the trainer, which has no reader of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;
use serde_json::Value;

use super::ExportError;
use super::config::{CONFIG_FILE, Config};
use super::kept::BLOCKS_FILE;

/// A safetensors header longer than this is damage, not a header (bytes).
const HEADER_LIMIT: u64 = 100 << 20;
/// All weights in one file.
pub const WHOLE_FILE: &str = "model.safetensors";
/// Says which of several files holds which weight.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// An opened checkpoint.
pub struct Checkpoint {
    /// Folder.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: Config,
    shards: Vec<Shard>,
    /// Name of each tensor → its shard and place there.
    tensors: HashMap<String, (usize, TensorInfo)>,
    brings_blocks: bool,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// One file of weights.
struct Shard {
    file: File,
    path: PathBuf,
    data_start: u64,
}

/// A weight as f32, row-major.
pub struct Weight {
    /// Shape.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Vec<f32>,
}

impl Checkpoint {
    /// Opens a folder and checks that the weight file is whole.
    pub fn open(folder: &Path) -> Result<Self, ExportError> {
        let config = Config::read(&folder.join(CONFIG_FILE))?;
        let kept = folder.join(BLOCKS_FILE);
        let (shards, tensors, brings_blocks) = (Vec::new(), HashMap::new(), kept.exists());
        let mut checkpoint = Self { folder: folder.to_owned(), config, shards, tensors, brings_blocks };
        if brings_blocks {
            checkpoint.add_shard(kept)?;
        }
        let (whole, index) = (folder.join(WHOLE_FILE), folder.join(INDEX_FILE));
        if whole.exists() || !index.exists() {
            checkpoint.add_shard(whole)?;
            return Ok(checkpoint);
        }
        let placed = read_index(&index)?;
        let files: BTreeSet<&String> = placed.values().collect();
        for file in files {
            checkpoint.add_shard(folder.join(file))?;
        }
        if let Some((name, file)) = placed.iter().find(|(name, _)| !checkpoint.has(name)) {
            let message = format!("missing, though {INDEX_FILE} has it there: copy the checkpoint again");
            return Err(ExportError::Weight { path: folder.join(file), name: name.clone(), message });
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<(), ExportError> {
        let mut file = File::open(&path).map_err(|source| ExportError::io(&path, source))?;
        let (tensors, data_start) = read_header(&mut file, &path)?;
        let number = self.shards.len();
        self.tensors.extend(tensors.into_iter().map(|(name, info)| (name, (number, info))));
        self.shards.push(Shard { file, path, data_start });
        Ok(())
    }

    /// Whether the blocks of a quantised model are there, too.
    pub(crate) fn brings_blocks(&self) -> bool {
        self.brings_blocks
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Checkpoints of a bare decoder lack the prefix that those with a head have.
    fn find(&self, name: &str) -> Option<&(usize, TensorInfo)> {
        self.tensors.get(name).or_else(|| self.tensors.get(name.strip_prefix("model.")?))
    }

    /// Shape of a tensor, if it is there.
    pub(crate) fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|(_, info)| info.shape.as_slice())
    }

    /// Finds one tensor and checks its shape and type, without reading it.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), ExportError> {
        self.place(name, shape).map(|_| ())
    }

    /// Its shard and where it stands there; the length fits the shape.
    fn place(&self, name: &str, shape: &[usize]) -> Result<(usize, TensorInfo), ExportError> {
        let Some((number, info)) = self.find(name) else {
            let message = format!("missing; its shape would be {shape:?}");
            return Err(ExportError::Weight { path: self.folder.clone(), name: name.to_owned(), message });
        };
        let shard = &self.shards[*number];
        let wrong = |message: String| ExportError::Weight { path: shard.path.clone(), name: name.to_owned(), message };
        if info.shape != shape {
            return Err(wrong(format!("has shape {:?}, {CONFIG_FILE} asks for {shape:?}", info.shape)));
        }
        let width = match info.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::U8 if name.ends_with(".q") => 1,
            other => return Err(wrong(format!("has type {other:?}; F32, F16 and BF16 can be read"))),
        };
        let (begin, end) = info.data_offsets;
        let needed = shape.iter().try_fold(width, |product: usize, &length| product.checked_mul(length));
        if needed != Some(end - begin) {
            return Err(wrong(format!("has {} bytes, its shape {shape:?} needs another number", end - begin)));
        }
        Ok((*number, info.clone()))
    }

    /// Reads one tensor and checks its shape; f16 and bf16 become f32.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Weight, ExportError> {
        let (number, info) = self.place(name, shape)?;
        let bytes = self.shards[number].read(&info)?;
        Ok(Weight { shape: shape.to_vec(), values: to_f32(&bytes, info.dtype) })
    }

    /// The bytes of a tensor of a given shape, whatever its type.
    pub(crate) fn read_bytes(&mut self, name: &str, shape: &[usize]) -> Result<Vec<u8>, ExportError> {
        let (number, info) = self.place(name, shape)?;
        self.shards[number].read(&info)
    }
}

impl Shard {
    fn read(&mut self, info: &TensorInfo) -> Result<Vec<u8>, ExportError> {
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0_u8; end - begin];
        self.file
            .seek(SeekFrom::Start(self.data_start + begin as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|source| ExportError::io(&self.path, source))?;
        Ok(bytes)
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

/// `weight_map` of the index: tensor → file of the same folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ExportError> {
    let damaged = |message: String| ExportError::Config { message: format!("{}: {message}", path.display()) };
    let text = std::fs::read(path).map_err(|source| ExportError::io(path, source))?;
    let index: ShardIndex = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if let Some(file) = index.weight_map.values().find(|file| Path::new(file).file_name() != Some(file.as_ref())) {
        return Err(damaged(format!("'{file}' is not a file name")));
    }
    Ok(index.weight_map)
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
        if begin > end || end as u64 > file_length - 8 - length {
            let message = "ends behind the end of the file: copy the checkpoint again".to_owned();
            return Err(ExportError::Weight { path: path.to_owned(), name, message });
        }
        tensors.insert(name, info);
    }
    Ok((tensors, 8 + length))
}

/// Numbers of a type as f32.
pub(crate) fn to_f32(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let (pairs, _) = bytes.as_chunks::<2>();
    let (quads, _) = bytes.as_chunks::<4>();
    match dtype {
        Dtype::F16 => pairs.iter().map(|&pair| half::f16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::BF16 => pairs.iter().map(|&pair| half::bf16::from_le_bytes(pair).to_f32()).collect(),
        // `place` lets no other type through.
        _ => quads.iter().map(|&quad| f32::from_le_bytes(quad)).collect(),
    }
}
