//! Tensors of a file under Hugging Face's names, in their order of rows.
//!
//! In: the file and the settings. Out: model.safetensors, and the blocks beside it if they are kept, written tensor by tensor.

use std::collections::BTreeSet;
use std::io::{Read, Seek, Write};
use std::path::Path;

use safetensors::tensor::Dtype;

use super::GgufError;
use super::blocks::KeptKind;
use super::file::Gguf;
use crate::ExportError;
use crate::config::{Config, Family};
use crate::kept::{BLOCK, part};
use crate::layout::decoder_tensors;
use crate::tensor_file;

/// The output head; without it the embedding table is the head.
pub const HEAD: &str = "output.weight";
/// What Llama 3.1 divides each rotary frequency by; `settings` reads it.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Names within a layer: Hugging Face's, ggml's.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// One tensor and where it comes from.
pub struct Tensor {
    name: String,
    source: String,
    shape: Vec<usize>,
    /// Llama's query and key: heads whose rows stand in the other order of rotary pairs.
    paired_heads: Option<usize>,
}

/// Every tensor of the model, each there in the right shape; one that nobody needs is refused.
pub fn tensors<R: Read + Seek>(
    gguf: &Gguf<R>,
    config: &Config,
    refused: impl Fn(ExportError) -> GgufError,
) -> Result<Vec<Tensor>, GgufError> {
    let is_paired = config.family().map_err(&refused)? == Family::Llama;
    let mut tensors = Vec::new();
    for (name, shape) in decoder_tensors(config, true).map_err(&refused)? {
        let source = source_name(&name);
        gguf.place(&source, &shape)?;
        let paired_heads = match is_paired {
            true if name.contains(".q_proj.") => Some(config.num_attention_heads),
            true if name.contains(".k_proj.") => Some(config.kv_heads()),
            _ => None,
        };
        tensors.push(Tensor { name, source, shape, paired_heads });
    }
    let known: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.source.as_str()).chain([ROPE_FACTORS]).collect();
    match gguf.tensors.keys().find(|name| !known.contains(name.as_str())) {
        Some(name) => Err(gguf.wrong(&format!("tensor {name}"), "is not known in a model of this kind")),
        None => Ok(tensors),
    }
}

/// ggml's name of a tensor of Hugging Face's.
fn source_name(name: &str) -> String {
    let in_layer =
        name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).and_then(|(layer, rest)| {
            let (part, kind) = rest.rsplit_once('.')?;
            let (_, source) = PARTS.iter().find(|(own, _)| *own == part)?;
            Some(format!("blk.{layer}.{source}.{kind}"))
        });
    in_layer.unwrap_or_else(|| match name {
        "model.embed_tokens.weight" => "token_embd.weight".to_owned(),
        "model.norm.weight" => "output_norm.weight".to_owned(),
        _ => HEAD.to_owned(),
    })
}

/// Writes all tensors as f32; the number of values.
pub fn write<R: Read + Seek>(gguf: &mut Gguf<R>, tensors: &[Tensor], path: &Path) -> Result<u64, GgufError> {
    let entries =
        tensors.iter().map(|tensor| (tensor.name.clone(), Dtype::F32, tensor.shape.clone())).collect::<Vec<_>>();
    let mut target = tensor_file::begin(path, &entries).map_err(GgufError::io(path))?;
    let mut count = 0;
    for tensor in tensors {
        let values = gguf.read(&tensor.source, &tensor.shape)?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(gguf.wrong(&format!("tensor {}", tensor.source), "holds a value that is not finite"));
        }
        count += values.len() as u64;
        let values = tensor.in_order(values);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        target.write_all(&bytes).map_err(GgufError::io(path))?;
    }
    tensor_file::finish(target).map_err(GgufError::io(path))?;
    Ok(count)
}

/// What became of tensors in blocks.
#[derive(Debug, Clone, Default)]
pub struct KeptTensors {
    /// How many a graph takes over as they are.
    pub exact: usize,
    /// Those that it rounds to 8 bits.
    pub rounded: Vec<String>,
}

/// Writes the blocks that tensors are kept in, in the form of `kept`.
pub fn write_blocks<R: Read + Seek>(
    gguf: &mut Gguf<R>,
    tensors: &[Tensor],
    path: &Path,
) -> Result<KeptTensors, GgufError> {
    let mut kept = Vec::new();
    let mut entries = Vec::new();
    let mut rounded = Vec::new();
    for tensor in tensors {
        let kind = gguf.place(&tensor.source, &tensor.shape)?.kind;
        let (&[rows, width], Some(form)) = (tensor.shape.as_slice(), kind.kept()) else { continue };
        let KeptKind::Exact { number_bytes, parts, has_minimums } = form else {
            entries.push((part(&tensor.name, 'r'), Dtype::U8, vec![0]));
            rounded.push(tensor.name.clone());
            continue;
        };
        let row_blocks = width / BLOCK;
        entries.push((part(&tensor.name, 'q'), Dtype::U8, vec![rows, row_blocks, number_bytes]));
        entries.push((part(&tensor.name, 'd'), parts, vec![rows, row_blocks]));
        if has_minimums {
            entries.push((part(&tensor.name, 'm'), parts, vec![rows, row_blocks]));
        }
        kept.push((tensor, kind));
    }
    let mut target = tensor_file::begin(path, &entries).map_err(GgufError::io(path))?;
    for (tensor, kind) in &kept {
        let bytes = tensor.in_order(gguf.read_bytes(&tensor.source, &tensor.shape)?);
        for part in kind.split(&bytes) {
            target.write_all(&part).map_err(GgufError::io(path))?;
        }
    }
    tensor_file::finish(target).map_err(GgufError::io(path))?;
    Ok(KeptTensors { exact: kept.len(), rounded })
}

impl Tensor {
    /// Rows in Hugging Face's order. Rotary pairs of a head are (i, i + hd/2) there, and neighbours (2i, 2i + 1) in Llama's GGUF.
    fn in_order<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        let Some(heads) = self.paired_heads else { return values };
        let rows = self.shape[0];
        let (head, width) = (rows / heads, values.len() / rows);
        let source_row = |row: usize| {
            let (first, within) = (row / head * head, row % head);
            first + within % (head / 2) * 2 + within / (head / 2)
        };
        (0..rows).flat_map(|row| &values[source_row(row) * width..][..width]).copied().collect()
    }
}
