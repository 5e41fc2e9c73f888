//! Weights out of a graph and its data file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};

use super::super::ExportError;
use super::super::checkpoint::{Weight, to_f32};
use super::super::linear::offsets;
use super::super::names::{DATA_SHA256, GRAPH_FILE};
use super::super::nbits::PackedWeight;
use super::super::onnx::{BFLOAT16, FLOAT, FLOAT16, ModelProto, NodeProto, TensorProto, UINT8};
use super::super::options::Blocks;
use super::super::writer::DATA_FILE;
use safetensors::tensor::Dtype;

/// An opened graph.
pub struct GraphFile {
    path: PathBuf,
    data: File,
    data_path: PathBuf,
    model: ModelProto,
    /// Name of each constant → its place in the graph's list.
    constants: HashMap<String, usize>,
}

/// A weight as it was before the export.
pub struct Whole {
    /// [out, in] or [out].
    pub weight: Weight,
    /// It was blocks of few bits.
    pub unpacked: bool,
}

impl GraphFile {
    /// Opens the first graph of a folder and checks that its weights are those it was written with.
    pub fn open(folder: &Path) -> Result<GraphFile, ExportError> {
        let (path, data_path) = (folder.join(GRAPH_FILE), folder.join(DATA_FILE));
        let bytes = std::fs::read(&path).map_err(|source| ExportError::io(&path, source))?;
        let wrong = |message: String| ExportError::Graph { path: path.clone(), message };
        let model = ModelProto::decode(bytes.as_slice()).map_err(|error| wrong(format!("is no graph: {error}")))?;
        let mut data = File::open(&data_path).map_err(|source| ExportError::io(&data_path, source))?;
        let noted = model.metadata_props.iter().find(|entry| entry.key == DATA_SHA256);
        let noted = noted.ok_or_else(|| wrong("was not written by this exporter".to_owned()))?;
        let mut hash = Sha256::new();
        std::io::copy(&mut data, &mut hash).map_err(|source| ExportError::io(&data_path, source))?;
        if hex::encode(hash.finalize()) != noted.value {
            return Err(wrong(format!("belongs to another {DATA_FILE}: copy the folder again")));
        }
        let constants = model.graph.iter().flat_map(|graph| &graph.initializer).enumerate();
        let constants = constants.map(|(place, tensor)| (tensor.name.clone(), place)).collect();
        Ok(GraphFile { path, data, data_path, model, constants })
    }

    /// What the graph notes under a key.
    pub fn note(&self, key: &str) -> Option<&str> {
        self.model.metadata_props.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    }

    /// An error about this graph.
    pub fn wrong(&self, message: String) -> ExportError {
        ExportError::Graph { path: self.path.clone(), message }
    }

    /// Whether a weight is there.
    pub fn has(&self, name: &str) -> bool {
        self.constants.contains_key(name)
    }

    /// Reads a weight of shape [out, in] or [out]; `turned` = floats are kept as [in, out].
    pub fn read(&mut self, name: &str, dims: &[usize], turned: bool) -> Result<Whole, ExportError> {
        let tensor = self.constant(name)?;
        if tensor.data_type == UINT8 {
            return Ok(Whole { weight: self.unpack(name, &tensor, dims)?, unpacked: true });
        }
        let kept: Vec<usize> = if turned { dims.iter().rev().copied().collect() } else { dims.to_vec() };
        let weight = self.floats(&tensor, &kept)?;
        Ok(Whole { weight: if turned { weight.transposed() } else { weight }, unpacked: false })
    }

    fn constant(&self, name: &str) -> Result<TensorProto, ExportError> {
        let place = self.constants.get(name);
        let tensor = place.and_then(|place| self.model.graph.as_ref()?.initializer.get(*place));
        tensor.cloned().ok_or_else(|| self.wrong(format!("has no weight {name}, which its config.json asks for")))
    }

    /// A weight of floats, of this shape.
    fn floats(&mut self, tensor: &TensorProto, dims: &[usize]) -> Result<Weight, ExportError> {
        let kind = match tensor.data_type {
            FLOAT => Dtype::F32,
            FLOAT16 => Dtype::F16,
            BFLOAT16 => Dtype::BF16,
            other => return Err(self.wrong(format!("{} is of type {other}", tensor.name))),
        };
        let found: Vec<usize> = tensor.dims.iter().map(|length| *length as usize).collect();
        if found != dims {
            return Err(self.wrong(format!("{} has shape {found:?}, config.json asks for {dims:?}", tensor.name)));
        }
        let bytes = self.bytes(tensor, dims.iter().product::<usize>() * kind.bitsize() / 8)?;
        Ok(Weight { shape: dims.to_vec(), values: to_f32(&bytes, kind) })
    }

    /// What the blocks of a weight [out, in] stand for.
    fn unpack(&mut self, name: &str, tensor: &TensorProto, dims: &[usize]) -> Result<Weight, ExportError> {
        let &[rows, width] = dims else { return Err(self.wrong(format!("{name} cannot be blocks"))) };
        let nodes = self.model.graph.iter().flat_map(|graph| &graph.node);
        let user = nodes.into_iter().find(|node| node.input.iter().any(|input| input == name));
        let (blocks, scales, zeros) = match user.map(|node| (blocks_of(node), node.input.get(2), node.input.get(3))) {
            Some((Some(blocks), Some(scales), zeros)) => (blocks, scales.clone(), zeros.cloned()),
            _ => return Err(self.wrong(format!("the blocks of {name} are used in a way that is not known"))),
        };
        let row_blocks = blocks.of_row(width);
        let bytes = self.bytes(tensor, rows * row_blocks * blocks.bytes())?;
        let scales = self.floats(&self.constant(&scales)?, &[rows, row_blocks])?;
        let zeros = match zeros {
            Some(zeros) => Some(self.bytes(&self.constant(&zeros)?, rows * blocks.zero_bytes(width))?),
            None => None,
        };
        let packed = PackedWeight { bytes, scales, zeros, parameters: (rows * width) as u64 };
        let mut weight = packed.dequantised(blocks, width);
        let added = offsets(name);
        if self.constants.contains_key(&added) {
            let added = self.floats(&self.constant(&added)?, &[row_blocks, rows])?.transposed();
            for (place, value) in weight.values.iter_mut().enumerate() {
                *value += added.values[place / width * row_blocks + place % width / blocks.block];
            }
        }
        Ok(weight)
    }

    /// The bytes of a constant, of which there must be so many.
    fn bytes(&mut self, tensor: &TensorProto, length: usize) -> Result<Vec<u8>, ExportError> {
        let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|e| e.value.as_str());
        let number = |key: &str| entry(key)?.parse::<u64>().ok();
        let (kept, offset) = match tensor.data_location {
            0 => (tensor.raw_data.len() as u64, None),
            _ => match (entry("location"), number("offset"), number("length")) {
                (Some(DATA_FILE), Some(offset), Some(kept)) => (kept, Some(offset)),
                _ => return Err(self.wrong(format!("{} is kept where it is not known", tensor.name))),
            },
        };
        if kept != length as u64 {
            return Err(self.wrong(format!("{} has {kept} bytes, its shape needs {length}", tensor.name)));
        }
        let Some(offset) = offset else { return Ok(tensor.raw_data.clone()) };
        let mut bytes = vec![0; length];
        let read = self.data.seek(SeekFrom::Start(offset)).and_then(|_| self.data.read_exact(&mut bytes));
        read.map_err(|source| ExportError::io(&self.data_path, source))?;
        Ok(bytes)
    }
}

/// How a product or a table keeps its weight, if it is one over blocks.
fn blocks_of(node: &NodeProto) -> Option<Blocks> {
    if !matches!(node.op_type.as_str(), "MatMulNBits" | "GatherBlockQuantized") {
        return None;
    }
    let number = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name).map(|found| found.i);
    let (bits, block) = (usize::try_from(number("bits")?).ok()?, usize::try_from(number("block_size")?).ok()?);
    let known = matches!(bits, 4 | 8) && block >= 16 && block.is_power_of_two();
    let (accuracy_level, zero_points) = (number("accuracy_level").unwrap_or(0), node.input.len() > 3);
    known.then_some(Blocks { bits, block, accuracy_level, zero_points })
}
