//! A decoder's graph → the checkpoint it was exported from: what is served can be trained on.
//!
//! In: a folder that `export` wrote. Out: a folder in Hugging Face's shape, in f32: the very numbers that the graph multiplies with.
//! Of a graph in f32 these are the bytes that were exported, of one in f16 or bf16 the rounded ones, and blocks of few bits become
//! what they stand for. Called by `taiji-trainer convert bundle`. The exporter turns matrices and joins query, key and value
//! (`linear`, `attention`); here they are turned back and taken apart. `graph_file` reads the graph.

mod graph_file;

use std::io::Write;
use std::path::Path;

use clap::ValueEnum;
use safetensors::tensor::Dtype;

use super::checkpoint::{WHOLE_FILE, Weight};
use super::config::{CONFIG_FILE, Config, Family};
use super::decoder::{EMBEDDING, Shape};
use super::layout::decoder_tensors;
use super::names::{FLAVOUR, PRECISION};
use super::options::{Element, Precision};
use super::{ExportError, copy_companions, new_folder, tensor_file};

use graph_file::GraphFile;

/// What was recovered.
#[derive(Debug, Clone)]
pub struct RecoverReport {
    /// Class name in config.json.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Precision of the graph, as the exporter's option names it.
    pub precision: String,
    /// Tensors that were blocks of few bits in the graph.
    pub unpacked: usize,
}

/// Recovers the checkpoint of the decoder in `graphs` into the new folder `out`.
pub fn recover(graphs: &Path, out: &Path) -> Result<RecoverReport, ExportError> {
    let config = Config::read(&graphs.join(CONFIG_FILE))?;
    let mut graph = GraphFile::open(graphs)?;
    if config.family()? == Family::Bert || graph.note(FLAVOUR) == Some("encoder") {
        return Err(graph.wrong("is an encoder; a decoder's checkpoint can be recovered".to_owned()));
    }
    let exists = || ExportError::Exists { path: out.to_owned() };
    let write = |folder: &Path| {
        copy_companions(graphs, folder)?;
        write_tensors(&mut graph, &config, &folder.join(WHOLE_FILE))
    };
    let (parameters, unpacked) = new_folder::fill(out, ExportError::io, exists, write)?;
    Ok(RecoverReport {
        architecture: config.architecture().to_owned(),
        layers: config.num_hidden_layers,
        parameters,
        precision: graph.note(PRECISION).unwrap_or(Precision::F32.name()).to_owned(),
        unpacked,
    })
}

/// The precision that a folder's first graph was exported in.
pub fn precision_of(graphs: &Path) -> Result<Precision, ExportError> {
    let graph = GraphFile::open(graphs)?;
    let name = graph.note(PRECISION).unwrap_or(Precision::F32.name());
    Precision::from_str(name, false).map_err(|_| graph.wrong(format!("is in '{name}', a precision that is not known")))
}

/// Writes all tensors by name, as the trainer does; numbers in all, and tensors that were blocks.
fn write_tensors(graph: &mut GraphFile, config: &Config, path: &Path) -> Result<(u64, usize), ExportError> {
    let io = |source| ExportError::io(path, source);
    let shape = Shape::of(config)?;
    let mut tensors = decoder_tensors(config, true)?;
    tensors.sort();
    let entries: Vec<_> = tensors.iter().map(|(name, dims)| (name.clone(), Dtype::F32, dims.clone())).collect();
    let mut target = tensor_file::begin(path, &entries).map_err(io)?;
    let (mut parameters, mut unpacked, mut bytes) = (0, 0, Vec::new());
    for (name, dims) in tensors {
        let place = match graph.has(&name) {
            // A table, or a projection whose neighbours are kept in another way.
            true => Place::alone(&name, &dims),
            false => Place::of(&name, &dims, &shape),
        };
        let whole = graph.read(&place.name, &place.dims, place.turned)?;
        unpacked += usize::from(whole.unpacked);
        parameters += dims.iter().product::<usize>() as u64;
        bytes.clear();
        Element::F32.write(place.rows(&whole.weight), &mut bytes);
        target.write_all(&bytes).map_err(io)?;
    }
    tensor_file::finish(target).map_err(io)?;
    Ok((parameters, unpacked))
}

/// Where a tensor of a checkpoint stands in the graph.
struct Place {
    /// The graph's name of it or of what it was joined to.
    name: String,
    /// Shape of that, [out, in] or [out].
    dims: Vec<usize>,
    /// `MatMul` has it as [in, out].
    turned: bool,
    /// Its first row, and its rows.
    first: usize,
    rows: usize,
}

impl Place {
    fn alone(name: &str, dims: &[usize]) -> Place {
        let turned = dims.len() == 2 && name != EMBEDDING;
        Place { name: name.to_owned(), dims: dims.to_vec(), turned, first: 0, rows: dims[0] }
    }

    fn of(name: &str, dims: &[usize], shape: &Shape) -> Place {
        let (query, kv) = (shape.query_width(), shape.kv_width());
        let turned = dims.len() == 2 && name != EMBEDDING;
        let parts = [(".q_proj.", 0), (".k_proj.", query), (".v_proj.", query + kv)];
        match parts.into_iter().find(|(part, _)| name.contains(part)) {
            None => Place::alone(name, dims),
            Some((part, first)) => {
                let joined = [query + 2 * kv].into_iter().chain(dims.get(1).copied()).collect();
                Place { name: name.replace(part, ".qkv_proj."), dims: joined, turned, first, rows: dims[0] }
            }
        }
    }

    fn rows<'w>(&self, whole: &'w Weight) -> &'w [f32] {
        let width = self.dims.get(1).copied().unwrap_or(1);
        &whole.values[self.first * width..][..self.rows * width]
    }
}
