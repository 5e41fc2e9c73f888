//! What graphs call their files, inputs, outputs and notes: the contract between the exporter and those who run its graphs. The
//! table of `inputs` says which graph has which, with types and shapes.

/// File name of a graph; its weights stand beside it.
pub const GRAPH_FILE: &str = "graph.onnx";

/// Tokens.
pub const INPUT_IDS: &str = "input_ids";
/// 1 = token, 0 = padding.
pub const ATTENTION_MASK: &str = "attention_mask";
/// Position of each token.
pub const POSITION_IDS: &str = "position_ids";
/// Tokens of a row after the step, minus 1.
pub const SEQLENS_K: &str = "seqlens_k";
/// Tokens of the longest row after the step.
pub const TOTAL_SEQUENCE_LENGTH: &str = "total_sequence_length";
/// First slot written of each row.
pub const WRITE_INDICES: &str = "write_indices";
/// Added to the scores.
pub const ATTENTION_BIAS: &str = "attention_bias";
/// Slots in use of each row after the step.
pub const NONPAD_KV_SEQLEN: &str = "nonpad_kv_seqlen";
/// Positions whose logits are wanted.
pub const LOGITS_INDICES: &str = "logits_indices";
/// One row a wanted position.
pub const LOGITS: &str = "logits";
/// After the last norm.
pub const HIDDEN_STATES: &str = "hidden_states";
/// Norm 1.
pub const SENTENCE_EMBEDDING: &str = "sentence_embedding";

/// Before the layer in the name of a cache input.
pub const PAST: &str = "past_key_values.";

/// Name of a layer's cache input; `part` is `key` or `value`.
pub fn past(layer: usize, part: &str) -> String {
    format!("{PAST}{layer}.{part}")
}

/// Name of a layer's cache output.
pub fn present(layer: usize, part: &str) -> String {
    format!("present.{layer}.{part}")
}

/// Key under which a graph says how many positions it takes.
pub const MAX_POSITIONS: &str = "taiji.max_positions";
/// Key under which a graph of packed weights says how exactly it multiplies; 4 = in 8 bits.
pub const ACCURACY_LEVEL: &str = "taiji.accuracy_level";
/// Key under which a graph says the SHA-256 of its data file.
pub const DATA_SHA256: &str = "taiji.data_sha256";
/// Key under which a graph says its precision, when that is not f32.
pub const PRECISION: &str = "taiji.precision";
/// Key under which a graph says its flavour, when that is not gqa; `encoder` for vectors of a decoder.
pub const FLAVOUR: &str = "taiji.flavour";
/// Key under which a graph of packed weights says the number format of its activations, when that is not f32.
pub const ACTIVATIONS: &str = "taiji.activations";
