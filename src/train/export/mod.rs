//! A Hugging Face shaped checkpoint → an ONNX graph that computes the same (f32: logits within 1e-3).
//!
//! In: a folder with config.json, model.safetensors and, where there, tokenizer files. Out: a folder with `graph.onnx`,
//! `graph.onnx.data` and those files. Called by `taiji-trainer export`, the pipeline's `export` stage and set-up. The
//! graphs are described in `decoder` (Qwen2, Qwen3) and `bert`; `llm` and `encode` run them.

mod bert;
mod checkpoint;
mod decoder;
mod onnx;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use thiserror::Error;

pub use crate::llm::GRAPH_FILE;
pub use writer::DATA_FILE;

use crate::llm::runtime::MAX_POSITIONS;
use checkpoint::Checkpoint;
use writer::GraphWriter;

/// Rope or position rows exported unless asked otherwise.
pub const DEFAULT_MAX_POSITIONS: usize = 4096;

/// Files copied beside the graph where the checkpoint has them.
const COMPANIONS: [&str; 11] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "generation.json",
];

/// Number format of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats; not built yet.
    F16,
    /// bfloat16; not built yet.
    Bf16,
    /// 8-bit weights; not built yet.
    Int8,
    /// 4-bit weights; not built yet.
    Int4,
}

/// Kind of attention in a decoder's graph; encoders have one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Flavour {
    /// GroupQueryAttention over a shared buffer.
    #[default]
    Gqa,
    /// The same with positions and bias as inputs, for beams; not built yet.
    Tree,
    /// Standard operators; not built yet.
    Std,
    /// PagedAttention; not built yet.
    Paged,
}

/// What to export.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// Most positions the graph takes; `None` = the checkpoint's, at most [`DEFAULT_MAX_POSITIONS`].
    pub max_positions: Option<usize>,
    /// Number format.
    pub precision: Precision,
    /// Kind of attention.
    pub flavour: Flavour,
}

/// What was exported.
#[derive(Debug, Clone)]
pub struct ExportReport {
    /// Class name in the checkpoint's config.json.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Width.
    pub hidden_size: usize,
    /// Most positions the graph takes.
    pub max_positions: usize,
    /// Numbers in the graph's weights.
    pub parameters: u64,
    /// Bytes of `graph.onnx`.
    pub graph_bytes: u64,
    /// Bytes of `graph.onnx.data`.
    pub data_bytes: u64,
    /// SHA-256 of `graph.onnx.data`, hexadecimal.
    pub data_sha256: String,
    /// Every file that was written, relative to the output folder.
    pub files: Vec<String>,
}

/// Why a checkpoint cannot be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// Planned, but not there.
    #[error("{0}: not built yet")]
    NotBuilt(String),
    /// No graph is known for this model.
    #[error("architecture '{found}' cannot be exported: Qwen2ForCausalLM, Qwen3ForCausalLM and BertModel can")]
    Architecture {
        /// What config.json names.
        found: String,
    },
    /// config.json or a header does not make sense.
    #[error("checkpoint: {message}")]
    Config {
        /// What is wrong.
        message: String,
    },
    /// A weight is missing or of another shape or type.
    #[error("weight {name}: {message}")]
    Weight {
        /// Name in the checkpoint.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ExportError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// Exports a checkpoint folder into `out` (made if need be). The same input gives the same bytes every time.
pub fn export(checkpoint: &Path, out: &Path, options: &ExportOptions) -> Result<ExportReport, ExportError> {
    if options.precision != Precision::F32 {
        return Err(ExportError::NotBuilt(format!("precision {:?}", options.precision).to_lowercase()));
    }
    if options.flavour != Flavour::Gqa {
        return Err(ExportError::NotBuilt(format!("flavour {:?}", options.flavour).to_lowercase()));
    }
    let mut source = Checkpoint::open(checkpoint)?;
    let architecture = source.config.architectures.first().cloned().unwrap_or_default();
    let max_positions = positions(options, &source)?;

    let mut graph = GraphWriter::create(out, &architecture)?;
    graph.note(MAX_POSITIONS, &max_positions.to_string());
    match architecture.as_str() {
        "Qwen2ForCausalLM" | "Qwen3ForCausalLM" => decoder::write(&mut source, &mut graph, max_positions)?,
        "BertModel" => bert::write(&mut source, &mut graph, max_positions)?,
        _ => return Err(ExportError::Architecture { found: architecture }),
    }
    // Companions first: a folder with a graph is whole.
    let mut files = copy_companions(checkpoint, out)?;
    let written = graph.finish()?;
    files.extend([DATA_FILE.to_owned(), GRAPH_FILE.to_owned()]);
    Ok(ExportReport {
        architecture,
        layers: source.config.num_hidden_layers,
        hidden_size: source.config.hidden_size,
        max_positions,
        parameters: written.parameters,
        graph_bytes: written.graph_bytes,
        data_bytes: written.data_bytes,
        data_sha256: written.data_sha256,
        files,
    })
}

fn positions(options: &ExportOptions, source: &Checkpoint) -> Result<usize, ExportError> {
    let most = source.config.max_position_embeddings;
    match options.max_positions {
        None => Ok(most.min(DEFAULT_MAX_POSITIONS)),
        Some(wanted) if wanted >= 1 && wanted <= most => Ok(wanted),
        Some(wanted) => {
            Err(ExportError::Config { message: format!("{wanted} positions asked for: choose 1 to {most}") })
        }
    }
}

fn copy_companions(checkpoint: &Path, out: &Path) -> Result<Vec<String>, ExportError> {
    let mut copied = Vec::new();
    for name in COMPANIONS {
        let (from, to) = (checkpoint.join(name), out.join(name));
        if !from.exists() {
            continue;
        }
        // Exporting into the checkpoint's own folder must not truncate the file onto itself.
        let same = matches!((from.canonicalize(), to.canonicalize()), (Ok(left), Ok(right)) if left == right);
        if !same {
            std::fs::copy(&from, &to).map_err(|source| ExportError::io(&to, source))?;
        }
        copied.push(name.to_owned());
    }
    Ok(copied)
}
