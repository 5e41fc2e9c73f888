//! The decoder graph's contract: which inputs and outputs, of which shapes, `llm::onnx` runs.
//!
//! In: an opened session. Out: its [`GraphDims`], or what differs from the contract. The exporter that writes such
//! graphs is `train::export`; its decoder module has the table.

use ort::session::Session;
use ort::value::{Outlet, TensorElementType};

use super::runtime::max_positions;

/// Sizes of a decoder graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphDims {
    /// Layers.
    pub layers: usize,
    /// Key and value heads K.
    pub kv_heads: usize,
    /// Width of a head hd.
    pub head: usize,
    /// Vocabulary V.
    pub vocabulary: usize,
    /// Most positions of a row.
    pub positions: usize,
}

impl GraphDims {
    /// Reads the sizes and checks the contract; the error says what differs.
    pub fn of(session: &Session) -> Result<Self, String> {
        for (name, kind) in [
            ("input_ids", TensorElementType::Int64),
            ("seqlens_k", TensorElementType::Int32),
            ("total_sequence_length", TensorElementType::Int32),
            ("logits_indices", TensorElementType::Int64),
        ] {
            shape_of(session.inputs(), "input", name, kind)?;
        }
        let logits = shape_of(session.outputs(), "output", "logits", TensorElementType::Float32)?;
        let vocabulary = fixed(&logits, 1, "logits")?;

        let layers = session.inputs().iter().filter(|input| input.name().ends_with(".key")).count();
        let first = shape_of(session.inputs(), "input", &past(0, "key"), TensorElementType::Float32)?;
        let (kv_heads, head) = (fixed(&first, 1, &past(0, "key"))?, fixed(&first, 3, &past(0, "key"))?);
        for layer in 0..layers {
            for part in ["key", "value"] {
                for (outlets, side, name) in [
                    (session.inputs(), "input", past(layer, part)),
                    (session.outputs(), "output", present(layer, part)),
                ] {
                    let shape = shape_of(outlets, side, &name, TensorElementType::Float32)?;
                    if shape.len() != 4 || shape[1] != kv_heads as i64 || shape[3] != head as i64 {
                        return Err(format!("{side} {name} has shape {shape:?}, [B, {kv_heads}, M, {head}] is wanted"));
                    }
                }
            }
        }
        Ok(Self { layers, kv_heads, head, vocabulary, positions: max_positions(session)? })
    }
}

/// Name of a layer's cache input; `part` is `key` or `value`.
pub fn past(layer: usize, part: &str) -> String {
    format!("past_key_values.{layer}.{part}")
}

/// Name of a layer's cache output.
pub fn present(layer: usize, part: &str) -> String {
    format!("present.{layer}.{part}")
}

fn shape_of(outlets: &[Outlet], side: &str, name: &str, kind: TensorElementType) -> Result<Vec<i64>, String> {
    let outlet = outlets
        .iter()
        .find(|outlet| outlet.name() == name)
        .ok_or_else(|| format!("the graph has no {side} '{name}': export it again with 'taiji-trainer export'"))?;
    let found = outlet.dtype().tensor_type();
    if found != Some(kind) {
        return Err(format!("{side} '{name}' is of type {found:?}, {kind:?} is wanted"));
    }
    Ok(outlet.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default())
}

fn fixed(shape: &[i64], axis: usize, name: &str) -> Result<usize, String> {
    shape
        .get(axis)
        .and_then(|&length| usize::try_from(length).ok())
        .filter(|&length| length > 0)
        .ok_or_else(|| format!("'{name}' has shape {shape:?}: axis {axis} must be fixed"))
}
