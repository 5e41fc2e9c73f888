//! A GGUF file → a folder in Hugging Face's shape, which exporter and trainer read like any other.
//!
//! In: a file of a Qwen2, Qwen3 or Llama decoder with a byte-level BPE tokenizer. Out: config.json, generation_config.json,
//! model.safetensors (f32: the very numbers the blocks stand for), tokenizer.json, tokenizer_config.json with the chat template. Called
//! by `taiji-trainer convert gguf`. `file` reads the container, `blocks` the numbers; `settings`, `weights` and `tokenizer` each
//! translate a part. What is not understood is an error, and the folder appears whole or not at all.

mod blocks;
mod file;
mod settings;
mod tokenizer;
mod weights;

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use thiserror::Error;

use super::config::{CONFIG_FILE, Config};
use super::kept::BLOCKS_FILE;
use super::{ExportError, WEIGHTS_FILE, new_folder};

use file::Gguf;
use weights::KeptTensors;

/// Why a file cannot be converted.
#[derive(Debug, Error)]
pub enum GgufError {
    /// A field is damaged, unknown, or asks for what is not computed.
    #[error("{}: {field}: {message}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Key of the metadata, tensor, or part of the header.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// The folder to write is there already.
    #[error("{}: is there already: choose another folder or remove it", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// What the metadata say makes no model.
    #[error("{}: its settings: {error}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Key of config.json and what is wrong with it.
        error: Box<ExportError>,
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

impl GgufError {
    fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// What was converted.
#[derive(Debug, Clone)]
pub struct ConvertReport {
    /// Class name in config.json.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Tensors whose blocks were kept.
    pub kept: usize,
    /// Tensors in blocks that a graph in int4 rounds to 8 bits (Q6_K).
    pub rounded: Vec<String>,
    /// Tokens of the vocabulary.
    pub tokens: usize,
}

/// Converts `file` into the new folder `out`; `keeps_blocks` = blocks (Q4_0, Q4_1, Q8_0, Q4_K) are kept beside the weights, for a graph in
/// int4 that takes them over as they are; it rounds Q6_K to 8 bits then, and leaves floats floats.
pub fn convert(file: &Path, out: &Path, keeps_blocks: bool) -> Result<ConvertReport, GgufError> {
    let opened = File::open(file).map_err(GgufError::io(file))?;
    let mut gguf = Gguf::open(BufReader::new(opened), file)?;
    let model = Model::of(&mut gguf)?;
    let exists = || GgufError::Exists { path: out.to_owned() };
    let failed = |path: &Path, source| GgufError::io(path)(source);
    let (parameters, kept) =
        new_folder::fill(out, failed, exists, |folder| model.write(&mut gguf, folder, keeps_blocks))?;
    Ok(ConvertReport {
        architecture: model.config.architecture().to_owned(),
        layers: model.config.num_hidden_layers,
        parameters,
        kept: kept.exact,
        rounded: kept.rounded,
        tokens: model.tokenizer.tokens,
    })
}

/// Whether `convert` takes a file, as far as can be said before its tensors are read; `file` is for messages.
pub fn check<R: Read + Seek>(source: R, file: &Path) -> Result<(), GgufError> {
    let mut gguf = Gguf::open(source, file)?;
    Model::of(&mut gguf).map(|_| ())
}

/// Everything about a model but its weights, in Hugging Face's words.
struct Model {
    settings: Map<String, Json>,
    config: Config,
    tokenizer: tokenizer::Tokenizer,
    tensors: Vec<weights::Tensor>,
}

impl Model {
    /// Translates and checks; no tensor is read yet.
    fn of<R: Read + Seek>(gguf: &mut Gguf<R>) -> Result<Self, GgufError> {
        let settings = settings::of(gguf)?;
        let gguf = &*gguf;
        let refused = |error| GgufError::Settings { path: gguf.path.clone(), error: Box::new(error) };
        let config = Config::of(settings.clone(), Path::new(CONFIG_FILE)).map_err(refused)?;
        config.rope().map_err(refused)?;
        let tensors = weights::tensors(gguf, &config, refused)?;
        let tokenizer = tokenizer::Tokenizer::of(gguf, config.vocab_size)?;
        Ok(Self { settings, config, tokenizer, tensors })
    }

    /// Writes all files into a folder; numbers in all tensors, and what became of those in blocks.
    fn write<R: Read + Seek>(
        &self,
        gguf: &mut Gguf<R>,
        folder: &Path,
        keeps_blocks: bool,
    ) -> Result<(u64, KeptTensors), GgufError> {
        let mut settings = self.settings.clone();
        settings.extend(self.tokenizer.generation.clone());
        for (file, content) in [
            (CONFIG_FILE, &settings),
            ("generation_config.json", &self.tokenizer.generation),
            ("tokenizer.json", &self.tokenizer.definition),
            ("tokenizer_config.json", &self.tokenizer.settings),
        ] {
            let path = folder.join(file);
            let text = serde_json::to_string_pretty(content).map_err(|error| GgufError::io(&path)(error.into()))?;
            std::fs::write(&path, text + "\n").map_err(GgufError::io(&path))?;
        }
        let parameters = weights::write(gguf, &self.tensors, &folder.join(WEIGHTS_FILE))?;
        let kept = match keeps_blocks {
            true => weights::write_blocks(gguf, &self.tensors, &folder.join(BLOCKS_FILE))?,
            false => KeptTensors::default(),
        };
        Ok((parameters, kept))
    }
}

#[cfg(test)]
mod tests;
