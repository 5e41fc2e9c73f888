//! Writes `graph.onnx` and `graph.onnx.data`.
//!
//! In: nodes and weights in a fixed order. Out: the two files, byte for byte the same for the same input. Weights are
//! streamed to the data file as they come; the graph file appears last, by rename, so that a folder with a graph is
//! whole. Called by `decoder`, `bert` and `export`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};

use super::ExportError;
use super::checkpoint::Weight;
use super::onnx::{
    self, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto,
};
use crate::llm::GRAPH_FILE;

/// File name of the weights, as the graph names it.
pub const DATA_FILE: &str = "graph.onnx.data";
/// Raise it when the bytes of an export change for the same checkpoint.
const FORMAT: &str = "1";
/// ONNX Runtime maps the data file; tensors begin on pages.
const PAGE: u64 = 4096;
/// Smaller constants stay inside the graph file (bytes).
const INLINE_LIMIT: usize = 1024;

/// A graph being written.
pub struct GraphWriter {
    folder: PathBuf,
    graph: GraphProto,
    metadata: Vec<StringStringEntryProto>,
    data: BufWriter<File>,
    offset: u64,
    hash: Sha256,
    parameters: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the graph file.
    pub graph_bytes: u64,
    /// Bytes of the data file.
    pub data_bytes: u64,
    /// SHA-256 of the data file, hexadecimal.
    pub data_sha256: String,
    /// Weights written (numbers, not bytes).
    pub parameters: u64,
}

impl GraphWriter {
    /// Begins a graph in a folder, which is made if need be.
    pub fn create(folder: &Path, name: &str) -> Result<Self, ExportError> {
        std::fs::create_dir_all(folder).map_err(|source| ExportError::io(folder, source))?;
        let path = folder.join(temporary(DATA_FILE));
        let data = File::create(&path).map_err(|source| ExportError::io(&path, source))?;
        Ok(Self {
            folder: folder.to_owned(),
            graph: GraphProto { name: name.to_owned(), ..GraphProto::default() },
            metadata: Vec::new(),
            data: BufWriter::with_capacity(1 << 20, data),
            offset: 0,
            hash: Sha256::new(),
            parameters: 0,
        })
    }

    /// Declares an input.
    pub fn input(&mut self, input: ValueInfoProto) {
        self.graph.input.push(input);
    }

    /// Declares an output.
    pub fn output(&mut self, output: ValueInfoProto) {
        self.graph.output.push(output);
    }

    /// Appends a node; its inputs must be there already.
    pub fn node(&mut self, node: NodeProto) {
        self.graph.node.push(node);
    }

    /// Notes a fact about the graph for those who load it.
    pub fn note(&mut self, key: &str, value: &str) {
        self.metadata.push(StringStringEntryProto { key: key.to_owned(), value: value.to_owned() });
    }

    /// Adds integers, always inline: shape inference reads them.
    pub fn integers(&mut self, name: &str, dims: &[i64], values: &[i64]) {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.graph.initializer.push(TensorProto {
            dims: dims.to_vec(),
            data_type: onnx::INT64,
            name: name.to_owned(),
            raw_data,
            ..TensorProto::default()
        });
    }

    /// Adds a weight under a name: inline when small, else to the data file.
    pub fn weight(&mut self, name: &str, weight: &Weight) -> Result<(), ExportError> {
        self.parameters += weight.values.len() as u64;
        let mut tensor = TensorProto {
            dims: weight.shape.iter().map(|&length| length as i64).collect(),
            data_type: onnx::FLOAT,
            name: name.to_owned(),
            ..TensorProto::default()
        };
        let length = weight.values.len() * size_of::<f32>();
        if length < INLINE_LIMIT {
            tensor.raw_data = weight.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        } else {
            self.pad()?;
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
            tensor.data_location = 1;
            tensor.external_data = vec![
                entry("location", DATA_FILE.to_owned()),
                entry("offset", self.offset.to_string()),
                entry("length", length.to_string()),
            ];
            let mut bytes = Vec::with_capacity(1 << 18);
            for values in weight.values.chunks(1 << 16) {
                bytes.clear();
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                self.append(&bytes)?;
            }
        }
        self.graph.initializer.push(tensor);
        Ok(())
    }

    /// Closes both files and puts them in place, the graph last.
    pub fn finish(mut self) -> Result<Written, ExportError> {
        let data_path = self.folder.join(temporary(DATA_FILE));
        self.data
            .flush()
            .and_then(|()| self.data.get_ref().sync_all())
            .map_err(|source| ExportError::io(&data_path, source))?;
        let data_sha256: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        // The graph names the weights' hash, so that the hash of the small file identifies the whole model.
        self.metadata.push(StringStringEntryProto { key: "taiji.data_sha256".to_owned(), value: data_sha256.clone() });
        self.metadata.sort_by(|left, right| left.key.cmp(&right.key));

        let operator_set = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
        let model = ModelProto {
            ir_version: onnx::IR_VERSION,
            producer_name: "taiji".to_owned(),
            producer_version: FORMAT.to_owned(),
            graph: Some(self.graph),
            opset_import: vec![operator_set("", onnx::OPSET), operator_set(onnx::MICROSOFT, 1)],
            metadata_props: self.metadata,
        };
        let bytes = model.encode_to_vec();
        let graph_path = self.folder.join(temporary(GRAPH_FILE));
        write_synced(&graph_path, &bytes).map_err(|source| ExportError::io(&graph_path, source))?;

        let final_graph = self.folder.join(GRAPH_FILE);
        // An older graph must not stand beside the new data, not even for a moment.
        if final_graph.exists() {
            std::fs::remove_file(&final_graph).map_err(|source| ExportError::io(&final_graph, source))?;
        }
        let final_data = self.folder.join(DATA_FILE);
        std::fs::rename(&data_path, &final_data).map_err(|source| ExportError::io(&final_data, source))?;
        std::fs::rename(&graph_path, &final_graph).map_err(|source| ExportError::io(&final_graph, source))?;
        Ok(Written {
            graph_bytes: bytes.len() as u64,
            data_bytes: self.offset,
            data_sha256,
            parameters: self.parameters,
        })
    }

    fn pad(&mut self) -> Result<(), ExportError> {
        let missing = self.offset.next_multiple_of(PAGE) - self.offset;
        self.append(&[0; PAGE as usize][..missing as usize])
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.hash.update(bytes);
        self.offset += bytes.len() as u64;
        self.data.write_all(bytes).map_err(|source| ExportError::io(&self.folder.join(temporary(DATA_FILE)), source))
    }
}

fn temporary(name: &str) -> String {
    format!("{name}.partial")
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
