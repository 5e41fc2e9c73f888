//! The decoder graph's contract: which inputs and outputs, of which shapes, `llm::onnx` runs.
//!
//! In: an opened session. Out: its [`GraphDims`], or what differs from the contract. The exporter that writes such
//! graphs is `taiji_export`; its `inputs` module has the table.

use ort::session::Session;
use ort::value::Outlet;
use ort::value::TensorElementType::{self, Float32, Int32, Int64};

use crate::onnx::runtime::max_positions;
use taiji_export::names;

/// Sizes of a decoder graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphDims {
    /// Layers.
    pub layers: usize,
    /// Key and value heads K.
    pub kv_heads: usize,
    /// Width of a head hd.
    pub head: usize,
    /// Width d of the hidden states.
    pub hidden: usize,
    /// Vocabulary V.
    pub vocabulary: usize,
    /// Most positions of a row.
    pub positions: usize,
    /// Number format of keys and values.
    pub element: TensorElementType,
}

impl GraphDims {
    /// Reads the sizes and checks the contract; the error says what differs.
    pub fn of(session: &Session) -> Result<Self, String> {
        Self::with_inputs(session, &[(names::SEQLENS_K, Int32), (names::TOTAL_SEQUENCE_LENGTH, Int32)])
    }

    /// The same for the graph of one beam search.
    pub fn of_tree(session: &Session) -> Result<Self, String> {
        let inputs = [(names::SEQLENS_K, Int32), (names::TOTAL_SEQUENCE_LENGTH, Int32), (names::POSITION_IDS, Int64)];
        let dims = Self::with_inputs(session, &inputs)?;
        shape_of(session.inputs(), "input", names::ATTENTION_BIAS, dims.element)?;
        Ok(dims)
    }

    /// The same for the graph of several beam searches.
    pub fn of_std(session: &Session) -> Result<Self, String> {
        let lengths = [(names::POSITION_IDS, Int64), (names::WRITE_INDICES, Int64), (names::NONPAD_KV_SEQLEN, Int64)];
        shape_of(session.inputs(), "input", names::ATTENTION_BIAS, Float32)?;
        Self::with_inputs(session, &lengths)
    }

    fn with_inputs(session: &Session, inputs: &[(&str, TensorElementType)]) -> Result<Self, String> {
        for &(name, kind) in [(names::INPUT_IDS, Int64), (names::LOGITS_INDICES, Int64)].iter().chain(inputs) {
            shape_of(session.inputs(), "input", name, kind)?;
        }
        let logits = shape_of(session.outputs(), "output", names::LOGITS, Float32)?;
        let vocabulary = fixed(&logits, 1, names::LOGITS)?;

        let layers = session.inputs().iter().filter(|input| input.name().ends_with(".key")).count();
        let (first, element) = cache_of(session.inputs(), "input", &names::past(0, "key"))?;
        let (kv_heads, head) = (fixed(&first, 1, &names::past(0, "key"))?, fixed(&first, 3, &names::past(0, "key"))?);
        if !head.is_multiple_of(16) {
            return Err(format!("heads are {head} wide: the attention kernel takes multiples of 16 only"));
        }
        for layer in 0..layers {
            for part in ["key", "value"] {
                for (outlets, side, name) in [
                    (session.inputs(), "input", names::past(layer, part)),
                    (session.outputs(), "output", names::present(layer, part)),
                ] {
                    let (shape, found) = cache_of(outlets, side, &name)?;
                    if shape.len() != 4 || shape[1] != kv_heads as i64 || shape[3] != head as i64 || found != element {
                        return Err(format!(
                            "{side} {name} has shape {shape:?} of {found}, [B, {kv_heads}, M, {head}] of {element} is wanted"
                        ));
                    }
                }
            }
        }
        let hidden = session.outputs().iter().find(|output| output.name() == names::HIDDEN_STATES);
        let hidden = hidden.and_then(|output| output.dtype().tensor_shape()).map(|shape| shape.to_vec());
        let hidden = fixed(&hidden.unwrap_or_default(), 2, names::HIDDEN_STATES)?;
        Ok(Self { layers, kv_heads, head, hidden, vocabulary, positions: max_positions(session)?, element })
    }

    /// Bytes of keys and values for so many rows of so many slots.
    pub fn pool_bytes(&self, rows: usize, slots: usize) -> usize {
        let elements = 2 * self.layers * rows * self.kv_heads * slots * self.head;
        self.element.byte_size(elements).unwrap_or(usize::MAX)
    }
}

/// Shape and number format of a cache input or output.
fn cache_of(outlets: &[Outlet], side: &str, name: &str) -> Result<(Vec<i64>, TensorElementType), String> {
    use TensorElementType::{Bfloat16, Float16};
    let kinds = [Float32, Float16, Bfloat16];
    let found = outlets.iter().find(|outlet| outlet.name() == name).and_then(|outlet| outlet.dtype().tensor_type());
    let kind = found.filter(|kind| kinds.contains(kind)).unwrap_or(Float32);
    Ok((shape_of(outlets, side, name, kind)?, kind))
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
