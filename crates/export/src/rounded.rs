//! A decoder's checkpoint in numbers of 16 bits: half the size, and near enough to train on from there.
//!
//! In: a folder in Hugging Face's shape. Out: another one. Called by the trainer's `publish`.

use std::io::Write;
use std::path::Path;

use safetensors::tensor::Dtype;

use super::checkpoint::{Checkpoint, WHOLE_FILE};
use super::layout::decoder_tensors;
use super::options::Element;
use super::tensor_file;
use super::{ExportError, copy_companions};

/// Writes a decoder's checkpoint into `out` (made if need be) in f16, with its settings and tokenizer.
pub fn save_f16(checkpoint: &Path, out: &Path) -> Result<(), ExportError> {
    let mut source = Checkpoint::open(checkpoint)?;
    source.check_decoder(true)?;
    std::fs::create_dir_all(out).map_err(|source| ExportError::io(out, source))?;
    copy_companions(checkpoint, out)?;
    let path = out.join(WHOLE_FILE);
    let io = |source| ExportError::io(&path, source);
    let mut tensors = decoder_tensors(&source.config, true)?;
    tensors.sort();
    let entries: Vec<_> = tensors.iter().map(|(name, shape)| (name.clone(), Dtype::F16, shape.clone())).collect();
    let mut target = tensor_file::begin(&path, &entries).map_err(io)?;
    let mut bytes = Vec::new();
    for (name, shape) in tensors {
        let values = source.read(&name, &shape)?.values;
        if let Some(value) = values.iter().find(|value| !Element::F16.holds(**value)) {
            let message = format!("holds {value}, which f16 cannot: leave the checkpoint out of from");
            return Err(ExportError::Weight { path: checkpoint.to_owned(), name, message });
        }
        bytes.clear();
        Element::F16.write(&values, &mut bytes);
        target.write_all(&bytes).map_err(io)?;
    }
    tensor_file::finish(target).map_err(io)
}
