//! A Hugging Face shaped checkpoint → ONNX graphs that compute the same (f32: logits within 1e-3).
//!
//! In: a folder with config.json, model.safetensors and, where there, tokenizer files. Out: a folder with `graph.onnx`,
//! further graphs if asked for, the `graph.onnx.data` they share, and those files. Called by `taiji-trainer export`, its
//! pipeline's `export` stage, and tests. The graphs are described in `inputs` (decoders) and `bert`, their names in [`names`]; the
//! service's `llm` and `encode` run them. [`recover`] goes the other way. Who writes a graph of another kind (the trainer's rankers) takes
//! [`GraphWriter`] and [`onnx`].

mod attention;
mod bert;
mod calibrate;
mod checkpoint;
mod config;
mod decoder;
pub mod gguf;
mod inputs;
mod kept;
mod layout;
mod linear;
pub mod names;
mod nbits;
mod new_folder;
pub mod onnx;
mod options;
mod pooling;
mod recover;
mod rope;
mod rounded;
mod settings;
mod tensor_file;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use checkpoint::{Checkpoint, WHOLE_FILE as WEIGHTS_FILE, Weight};
pub use config::{CONFIG_FILE, Config, Family};
pub use kept::BLOCKS_FILE;
pub use names::{FLAVOUR, GRAPH_FILE, PRECISION};
pub use options::{Element, ExportOptions, Flavour, Precision, Role};
pub use recover::{RecoverReport, precision_of, recover};
pub use rope::{Llama3Rope, Rope, RopeScaling, YarnRope};
pub use rounded::save_f16;
pub use writer::{DATA_FILE, GraphWriter, Written};

use decoder::Form;
use names::{ACCURACY_LEVEL, ACTIVATIONS, MAX_POSITIONS};
use pooling::Pooling;

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
    #[error(
        "architecture '{found}' cannot be exported: Qwen2ForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM and BertModel can"
    )]
    Architecture {
        /// What config.json names.
        found: String,
    },
    /// What was asked for does not go together.
    #[error("{0}")]
    Option(String),
    /// config.json or a header does not make sense.
    #[error("checkpoint: {message}")]
    Config {
        /// What is wrong.
        message: String,
    },
    /// A setting that is not known or cannot be computed.
    #[error("{}: {key}: {message}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// Key, with a dot before that of an object within.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A weight is missing or of another shape or type.
    #[error("{}: tensor {name}: {message}", path.display())]
    Weight {
        /// File or folder.
        path: PathBuf,
        /// Name in the checkpoint.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A graph whose checkpoint cannot be recovered.
    #[error("{}: {message}", path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The folder to write is there already.
    #[error("{}: is there already: choose another folder or remove it", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
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
    options.check_flavours()?;
    let mut source = Checkpoint::open(checkpoint)?;
    let max_positions = positions(options, &source)?;
    let forms = match source.config.family()? {
        Family::Bert => bert_forms(options)?,
        Family::Qwen2 | Family::Qwen3 | Family::Llama => decoder_forms(options, &source)?,
    };
    let written = write(&mut source, out, options, &forms, max_positions)
        .inspect_err(|_| writer::discard(out, forms.iter().map(|(file, _)| file.as_str())))?;
    let mut files = written.companions;
    files.push(DATA_FILE.to_owned());
    files.extend(forms.into_iter().map(|(file, _)| file));
    let (architecture, written) = (source.config.architecture().to_owned(), written.graphs);
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

/// What `write` put into the folder.
struct WrittenFiles {
    companions: Vec<String>,
    graphs: Written,
}

/// Writes graphs and companions; on an error temporary files may be left.
fn write(
    source: &mut Checkpoint,
    out: &Path,
    options: &ExportOptions,
    forms: &Forms,
    max_positions: usize,
) -> Result<WrittenFiles, ExportError> {
    let architecture = source.config.architecture().to_owned();
    let calibrated = match forms.iter().any(|(_, form)| form.is_some()) {
        true => calibrate::rounded(source, options)?,
        false => HashMap::new(),
    };
    let mut graph = GraphWriter::create(out)?;
    for (file, form) in forms {
        graph.begin(file, &architecture, form.map_or(onnx::BASE, Form::versions));
        graph.note(MAX_POSITIONS, &max_positions.to_string());
        match form {
            None => bert::write(source, &mut graph, max_positions)?,
            Some(form) => {
                note_choices(&mut graph, options, *form);
                let numbers = (options.numbers()?, &calibrated);
                decoder::write(source, &mut graph, max_positions, numbers, *form)?;
            }
        }
    }
    // Companions first: a folder with a graph is whole.
    let companions = copy_companions(&source.folder, out)?;
    Ok(WrittenFiles { companions, graphs: graph.finish()? })
}

/// File name and form of each graph; `None` = BERT.
type Forms = Vec<(String, Option<Form>)>;

/// BERT has one graph, in f32.
fn bert_forms(options: &ExportOptions) -> Result<Forms, ExportError> {
    if options.precision != Precision::F32 {
        return Err(ExportError::NotBuilt(format!("precision {} of a BertModel", options.precision.name())));
    }
    if options.role == Some(Role::Decoder) {
        return Err(ExportError::Option("a BertModel cannot be exported as a decoder".to_owned()));
    }
    options.check_encoder()?;
    Ok(vec![(GRAPH_FILE.to_owned(), None)])
}

/// Graphs of a decoder, as text or as vectors, once the checkpoint has proven whole.
fn decoder_forms(options: &ExportOptions, source: &Checkpoint) -> Result<Forms, ExportError> {
    let pooling = Pooling::of(&source.folder)?;
    // A checkpoint without a head, or one that says how to pool, is made for vectors.
    let made_for = match pooling.is_some() || !source.config.architecture().ends_with("ForCausalLM") {
        true => Role::Encoder,
        false => Role::Decoder,
    };
    let role = options.role.unwrap_or(made_for);
    source.check_decoder(role == Role::Decoder)?;
    source.config.rope()?;
    options.numbers()?;
    if role == Role::Decoder {
        let named = options.flavours.iter().enumerate();
        return Ok(named.map(|(place, flavour)| (flavour.graph_file(place), Some(Form::Text(*flavour)))).collect());
    }
    if pooling == Some(Pooling::Mean) {
        return Err(ExportError::NotBuilt("mean pooling of a decoder".to_owned()));
    }
    options.check_encoder()?;
    Ok(vec![(GRAPH_FILE.to_owned(), Some(Form::Vector))])
}

/// Notes what is not the default, so that the default's bytes stay as they were.
fn note_choices(graph: &mut GraphWriter, options: &ExportOptions, form: Form) {
    if options.precision != Precision::default() {
        graph.note(PRECISION, options.precision.name());
    }
    if matches!(options.precision, Precision::Int8 | Precision::Int4) {
        graph.note(ACCURACY_LEVEL, &options.accuracy_level.to_string());
    }
    if options.activations != Element::default() {
        graph.note(ACTIVATIONS, options.activations.name());
    }
    match form {
        Form::Text(Flavour::Gqa) => {}
        Form::Text(flavour) => graph.note(FLAVOUR, flavour.name()),
        Form::Vector => graph.note(FLAVOUR, "encoder"),
    }
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
