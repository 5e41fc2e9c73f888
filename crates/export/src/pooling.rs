//! A decoder as an encoder of texts: the last token's state of each row, of norm 1 (Qwen3-Embedding).
//!
//! In: `attention_mask` in front, `hidden_states` behind the layers. Out: `sentence_embedding`. Called by `decoder`;
//! `export` asks here what a checkpoint says about pooling.

use std::path::Path;

use serde_json::Value;

use super::ExportError;
use super::decoder::DecoderGraph;
use super::names;
use super::onnx::{FLOAT, INT32, int, node};
use super::options::Element;

/// How sentence-transformers pools the states of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Mean of all tokens.
    Mean,
    /// Last token.
    Last,
}

impl Pooling {
    /// What `1_Pooling/config.json` of a checkpoint says; `None` without that file.
    pub fn of(folder: &Path) -> Result<Option<Self>, ExportError> {
        let path = folder.join("1_Pooling").join("config.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(|error| ExportError::io(&path, error))?;
        let settings: Value = serde_json::from_slice(&text)
            .map_err(|error| ExportError::Config { message: format!("{}: {error}", path.display()) })?;
        let flag = |name: &str| settings.get(name).and_then(Value::as_bool);
        match (flag("pooling_mode_mean_tokens"), flag("pooling_mode_lasttoken")) {
            (_, Some(true)) => Ok(Some(Self::Last)),
            (Some(false), _) => {
                Err(ExportError::NotBuilt("pooling other than the mean of the tokens or the last one".to_owned()))
            }
            _ => Ok(Some(Self::Mean)),
        }
    }
}

impl DecoderGraph<'_> {
    /// `attention_mask` → `last_token` i64 [B], and the lengths that the attention kernel takes.
    pub fn write_lengths(&mut self) {
        self.graph.integers("one", &[1], &[1]);
        let int32 = || vec![int("to", i64::from(INT32))];
        let keep = vec![int("keepdims", 0)];
        self.graph.node(node("ReduceSum", &[names::ATTENTION_MASK, "one"], &["lengths"], keep));
        self.graph.node(node("Sub", &["lengths", "one"], &["last_token"], vec![]));
        self.graph.node(node("Cast", &["last_token"], &[names::SEQLENS_K], int32()));
        self.graph.node(node("Shape", &[names::INPUT_IDS], &["width"], vec![int("start", 1), int("end", 2)]));
        self.graph.node(node("Cast", &["width"], &[names::TOTAL_SEQUENCE_LENGTH], int32()));
    }

    /// `hidden_states` → `sentence_embedding`.
    pub fn write_pooling(&mut self) {
        self.graph.node(node("Unsqueeze", &["last_token", "one"], &["last_token_index"], vec![]));
        let by_row = vec![int("batch_dims", 1)];
        self.graph.node(node("GatherND", &[names::HIDDEN_STATES, "last_token_index"], &["pooled"], by_row));
        let mut pooled = "pooled";
        if self.numbers.element != Element::F32 {
            pooled = "pooled_wide";
            self.graph.node(node("Cast", &["pooled"], &[pooled], vec![int("to", i64::from(FLOAT))]));
        }
        let attributes = vec![int("axis", -1), int("p", 2)];
        self.graph.node(node("LpNormalization", &[pooled], &[names::SENTENCE_EMBEDDING], attributes));
    }
}
