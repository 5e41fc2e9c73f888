//! Writes one data file of weights and the graphs that share it.
//!
//! In: nodes and weights in a fixed order, one graph after the other. Out: `graph.onnx.data` and the graph files, byte
//! for byte the same for the same input. Weights are streamed to the data file as they come, once, whichever graphs use
//! them; the graph files appear last, by rename, so that a folder with a graph is whole. Called by `decoder`, `bert` and
//! `export`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};

use super::ExportError;
use super::checkpoint::Weight;
use super::names::DATA_SHA256;
use super::onnx::{
    self, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto,
    Versions,
};
use super::options::{Element, Flavour};

/// File name of the weights, as the graphs name it.
pub const DATA_FILE: &str = "graph.onnx.data";
/// Raise it when the bytes of an export change for the same checkpoint.
const FORMAT: &str = "1";
/// ONNX Runtime maps the data file; tensors begin on pages.
const PAGE: u64 = 4096;
/// Smaller constants stay inside the graph file (bytes).
const INLINE_LIMIT: usize = 1024;
/// Protobuf readers stop here (bytes).
const GRAPH_LIMIT: usize = i32::MAX as usize;

/// Graphs being written over one data file.
pub struct GraphWriter {
    folder: PathBuf,
    done: Vec<Pending>,
    /// The graph that nodes go into.
    current: Pending,
    /// Every weight written so far, as graphs refer to it.
    weights: HashMap<String, TensorProto>,
    data: BufWriter<File>,
    offset: u64,
    hash: Sha256,
    parameters: u64,
}

/// A graph that is not on disk yet.
#[derive(Default)]
struct Pending {
    file: String,
    versions: Versions,
    graph: GraphProto,
    metadata: Vec<StringStringEntryProto>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the first graph file.
    pub graph_bytes: u64,
    /// Bytes of the data file.
    pub data_bytes: u64,
    /// SHA-256 of the data file, hexadecimal.
    pub data_sha256: String,
    /// Weights written (numbers, not bytes).
    pub parameters: u64,
}

impl GraphWriter {
    /// Begins a data file in a folder, which is made if need be.
    pub fn create(folder: &Path) -> Result<Self, ExportError> {
        std::fs::create_dir_all(folder).map_err(|source| ExportError::io(folder, source))?;
        let path = folder.join(temporary(DATA_FILE));
        let data = File::create(&path).map_err(|source| ExportError::io(&path, source))?;
        Ok(Self {
            folder: folder.to_owned(),
            done: Vec::new(),
            current: Pending::default(),
            weights: HashMap::new(),
            data: BufWriter::with_capacity(1 << 20, data),
            offset: 0,
            hash: Sha256::new(),
            parameters: 0,
        })
    }

    /// Begins a graph; what follows goes into it.
    pub fn begin(&mut self, file: &str, name: &str, versions: Versions) {
        let graph = GraphProto { name: name.to_owned(), ..GraphProto::default() };
        let next = Pending { file: file.to_owned(), versions, graph, metadata: Vec::new() };
        let before = std::mem::replace(&mut self.current, next);
        // The first graph has none before it.
        if !before.file.is_empty() {
            self.done.push(before);
        }
    }

    /// Declares an input.
    pub fn input(&mut self, input: ValueInfoProto) {
        self.current.graph.input.push(input);
    }

    /// Declares an output.
    pub fn output(&mut self, output: ValueInfoProto) {
        self.current.graph.output.push(output);
    }

    /// Appends a node; its inputs must be there already.
    pub fn node(&mut self, node: NodeProto) {
        self.current.graph.node.push(node);
    }

    /// Notes a fact about the graph for those who load it.
    pub fn note(&mut self, key: &str, value: &str) {
        self.current.metadata.push(entry(key, value.to_owned()));
    }

    /// Adds integers, always inline: shape inference reads them.
    pub fn integers(&mut self, name: &str, dims: &[i64], values: &[i64]) {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = TensorProto {
            dims: dims.to_vec(),
            data_type: onnx::INT64,
            name: name.to_owned(),
            raw_data,
            ..TensorProto::default()
        };
        self.current.graph.initializer.push(tensor);
    }

    /// Gives the current graph a weight that an earlier one has written; false if none has.
    pub fn reuse(&mut self, name: &str) -> bool {
        let Some(tensor) = self.weights.get(name).cloned() else { return false };
        self.current.graph.initializer.push(tensor);
        true
    }

    /// Gives the current graph the bytes of weight `of` under another name and shape.
    pub fn alias(&mut self, name: &str, of: &str, shape: &[usize]) -> Result<(), ExportError> {
        let tensor = self.weights.get(of).cloned().ok_or_else(|| ExportError::Weight {
            path: self.folder.clone(),
            name: of.to_owned(),
            message: format!("is not written, '{name}' cannot share it"),
        })?;
        self.add(TensorProto { name: name.to_owned(), dims: dims(shape), ..tensor });
        Ok(())
    }

    /// Adds a weight under a name, in numbers of the given kind: inline when small, else in the data file.
    pub fn weight(&mut self, name: &str, weight: &Weight, element: Element) -> Result<(), ExportError> {
        if let Some(value) = weight.values.iter().find(|value| !element.holds(**value)) {
            let message = format!("holds {value}, which {element:?} cannot: choose another precision");
            return Err(ExportError::Weight { path: self.folder.clone(), name: name.to_owned(), message });
        }
        self.parameters += weight.values.len() as u64;
        let length = weight.values.len() * element.bytes();
        let mut tensor = self.place(name, &weight.shape, element.onnx(), length)?;
        let mut bytes = Vec::with_capacity(1 << 18);
        for values in weight.values.chunks(1 << 16) {
            bytes.clear();
            element.write(values, &mut bytes);
            match tensor.data_location {
                0 => tensor.raw_data.extend_from_slice(&bytes),
                _ => self.append(&bytes)?,
            }
        }
        self.add(tensor);
        Ok(())
    }

    /// Adds what quantisation made under a name: bytes of a type that stand for `parameters` numbers of the model.
    pub fn packed(
        &mut self,
        name: &str,
        shape: &[usize],
        data_type: i32,
        bytes: &[u8],
        parameters: u64,
    ) -> Result<(), ExportError> {
        self.parameters += parameters;
        let mut tensor = self.place(name, shape, data_type, bytes.len())?;
        match tensor.data_location {
            0 => tensor.raw_data = bytes.to_vec(),
            _ => self.append(bytes)?,
        }
        self.add(tensor);
        Ok(())
    }

    /// Closes all files and puts them in place, the graphs last.
    pub fn finish(mut self) -> Result<Written, ExportError> {
        let data_path = self.folder.join(temporary(DATA_FILE));
        self.data
            .flush()
            .and_then(|()| self.data.get_ref().sync_all())
            .map_err(|source| ExportError::io(&data_path, source))?;
        let data_sha256 = hex::encode(self.hash.finalize());
        let mut sizes = Vec::new();
        let mut files = Vec::new();
        self.done.push(self.current);
        for pending in self.done {
            let path = self.folder.join(temporary(&pending.file));
            files.push(pending.file.clone());
            sizes.push(pending.write(&path, &data_sha256)?);
        }

        // An older graph must not stand beside the new data, not even for a moment.
        for name in Flavour::graph_files() {
            let path = self.folder.join(name);
            if path.exists() {
                std::fs::remove_file(&path).map_err(|source| ExportError::io(&path, source))?;
            }
        }
        for name in std::iter::once(DATA_FILE).chain(files.iter().map(String::as_str)) {
            let path = self.folder.join(name);
            std::fs::rename(self.folder.join(temporary(name)), &path)
                .map_err(|source| ExportError::io(&path, source))?;
        }
        Ok(Written {
            graph_bytes: sizes.first().copied().unwrap_or(0),
            data_bytes: self.offset,
            data_sha256,
            parameters: self.parameters,
        })
    }

    /// Leaves a hole in the data file, to show what follows behind it can be addressed.
    #[cfg(test)]
    pub fn leave_hole(&mut self, bytes: u64) -> std::io::Result<()> {
        use std::io::Seek;

        self.offset += bytes;
        self.data.seek(std::io::SeekFrom::Start(self.offset)).map(|_| ())
    }

    /// A tensor without its bytes; when they go to the data file, its end is moved to where they begin.
    fn place(
        &mut self,
        name: &str,
        shape: &[usize],
        data_type: i32,
        length: usize,
    ) -> Result<TensorProto, ExportError> {
        let mut tensor = TensorProto { dims: dims(shape), data_type, name: name.to_owned(), ..TensorProto::default() };
        if length >= INLINE_LIMIT {
            self.pad()?;
            tensor.data_location = 1;
            tensor.external_data = vec![
                entry("location", DATA_FILE.to_owned()),
                entry("offset", self.offset.to_string()),
                entry("length", length.to_string()),
            ];
        }
        Ok(tensor)
    }

    fn add(&mut self, tensor: TensorProto) {
        self.weights.insert(tensor.name.clone(), tensor.clone());
        self.current.graph.initializer.push(tensor);
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

impl Pending {
    /// Writes the graph file; its length in bytes.
    fn write(mut self, path: &Path, data_sha256: &str) -> Result<u64, ExportError> {
        // The graph names the weights' hash, so that the hash of the small file identifies the whole model.
        self.metadata.push(entry(DATA_SHA256, data_sha256.to_owned()));
        self.metadata.sort_by(|left, right| left.key.cmp(&right.key));
        let operator_set = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
        let model = ModelProto {
            ir_version: self.versions.ir,
            producer_name: "taiji".to_owned(),
            producer_version: FORMAT.to_owned(),
            graph: Some(self.graph),
            opset_import: vec![operator_set("", self.versions.operators), operator_set(onnx::MICROSOFT, 1)],
            metadata_props: self.metadata,
        };
        check_length(&self.file, model.encoded_len())?;
        let bytes = model.encode_to_vec();
        write_synced(path, &bytes).map_err(|source| ExportError::io(path, source))?;
        Ok(bytes.len() as u64)
    }
}

/// Takes away what a failed export left half-written in `folder`; `graphs` are the names the graphs were to have.
pub fn discard<'a>(folder: &Path, graphs: impl Iterator<Item = &'a str>) {
    for name in graphs.chain([DATA_FILE]) {
        // The export's own error is the one to report; a file that was never begun is no error at all.
        let _ = std::fs::remove_file(folder.join(temporary(name)));
    }
}

/// Refuses a graph file that nothing could read.
fn check_length(file: &str, length: usize) -> Result<(), ExportError> {
    if length > GRAPH_LIMIT {
        let message =
            format!("{file} would have {length} bytes, at most {GRAPH_LIMIT} can be read: export fewer layers");
        return Err(ExportError::Config { message });
    }
    Ok(())
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value }
}

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&length| length as i64).collect()
}

fn temporary(name: &str) -> String {
    format!("{name}.partial")
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_file_too_long_to_read_is_refused() {
        assert!(check_length("graph.onnx", GRAPH_LIMIT).is_ok());
        let refused = check_length("graph.onnx", GRAPH_LIMIT + 1).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|message| message.contains("graph.onnx") && message.contains("2147483648")));
    }
}
