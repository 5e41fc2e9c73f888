//! The encoder on ONNX Runtime: an exported BERT graph that pools and normalises inside.
//!
//! In: a folder with graph.onnx, graph.onnx.data and tokenizer.json (from `taiji_export`). Out: vectors of norm 1.
//! Texts are tokenised and cut, sorted by length, run in batches of like length, and put back in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ort::session::Session;
use ort::value::{Outlet, Tensor};
use parking_lot::Mutex;
use tokenizers::{Tokenizer, TruncationParams};

use super::{EncodeError, Encoder};
use crate::onnx::{GRAPH_FILE, folder, runtime};
use crate::telemetry::Progress;
use taiji_export::names;

/// How to run an encoder.
#[derive(Debug, Clone)]
pub struct EncoderOptions {
    /// Threads of one graph call; 0 = one per core.
    pub threads: usize,
    /// Most tokens of a text, special tokens included; longer texts lose their tail.
    pub max_tokens: usize,
    /// Most texts of one graph call.
    pub max_batch: usize,
    /// ONNX Runtime's library; `None` = see [`runtime::environment`].
    pub runtime_path: Option<PathBuf>,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        Self { threads: 0, max_tokens: 256, max_batch: 32, runtime_path: None }
    }
}

/// A loaded encoder. Calls from several threads take turns at the session; tokenising runs beside it.
pub struct BertEncoder {
    tokenizer: Tokenizer,
    session: Mutex<Session>,
    dim: usize,
    max_batch: usize,
    model_id: String,
    progress: Arc<Progress>,
}

impl BertEncoder {
    /// Opens a model folder. Fails when a file is missing or does not fit the others.
    pub fn load(dir: &Path, options: EncoderOptions) -> Result<Self, EncodeError> {
        let failed = |message: String| EncodeError::Load { path: dir.display().to_string(), message };
        let mut tokenizer = folder::load_tokenizer(dir).map_err(failed)?;
        let model_id = folder::model_id(dir).map_err(failed)?;
        let environment =
            runtime::environment(options.runtime_path.as_deref()).map_err(|error| failed(error.to_string()))?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let session = runtime::open_session(&environment, &dir.join(GRAPH_FILE), threads)
            .map_err(|error| failed(error.to_string()))?;
        let dim = vector_length(&session).map_err(failed)?;
        let positions = runtime::max_positions(&session).map_err(failed)?;
        let truncation =
            TruncationParams { max_length: options.max_tokens.min(positions), ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            tokenizer,
            session: Mutex::new(session),
            dim,
            max_batch: options.max_batch.max(1),
            model_id,
            progress: Arc::default(),
        })
    }

    /// Runs one batch of token rows; vectors in the order of the rows.
    fn run(&self, rows: &[&[u32]]) -> Result<Vec<Vec<f32>>, ort::Error> {
        let width = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let mut input_ids = vec![0_i64; rows.len() * width];
        let mut mask = vec![0_i64; rows.len() * width];
        for (index, row) in rows.iter().enumerate() {
            let cells = index * width..index * width + row.len();
            input_ids[cells.clone()].iter_mut().zip(*row).for_each(|(cell, &token)| *cell = i64::from(token));
            mask[cells].fill(1);
        }
        let shape = [rows.len(), width];
        let inputs = ort::inputs![
            names::INPUT_IDS => Tensor::from_array((shape, input_ids))?,
            names::ATTENTION_MASK => Tensor::from_array((shape, mask))?,
        ];
        let mut session = self.session.lock();
        let outputs = session.run(inputs)?;
        let (_, vectors) = outputs[names::SENTENCE_EMBEDDING].try_extract_tensor::<f32>()?;
        Ok(vectors.chunks(self.dim).map(<[f32]>::to_vec).collect())
    }
}

impl Encoder for BertEncoder {
    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let _work = self.progress.begin();
        let failed = |message: String| EncodeError::Run(message);
        let encodings = texts
            .iter()
            .map(|text| self.tokenizer.encode_fast(*text, true))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| failed(error.to_string()))?;
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&index| encodings[index].get_ids().len());

        let mut vectors = vec![Vec::new(); texts.len()];
        for batch in order.chunks(self.max_batch) {
            let rows: Vec<&[u32]> = batch.iter().map(|&index| encodings[index].get_ids()).collect();
            if rows.iter().any(|row| row.is_empty()) {
                return Err(failed("a text has no tokens: the tokenizer must add its special tokens".to_owned()));
            }
            let batch_vectors = self.run(&rows).map_err(|error| failed(error.to_string()))?;
            self.progress.step();
            for (&index, vector) in batch.iter().zip(batch_vectors) {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }

    fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.encode_fast(text, true).map_or(0, |encoding| encoding.get_ids().len())
    }

    fn stalled(&self) -> Option<Duration> {
        self.progress.stalled()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }
}

/// Checks the graph's contract; the error says what differs.
fn vector_length(session: &Session) -> Result<usize, String> {
    let find = |outlets: &[Outlet], name: &str| {
        let found = outlets.iter().find(|outlet| outlet.name() == name).map(|outlet| outlet.dtype().clone());
        found.ok_or_else(|| format!("the graph has no '{name}': export a BertModel with 'taiji-trainer export'"))
    };
    find(session.inputs(), names::INPUT_IDS)?;
    find(session.inputs(), names::ATTENTION_MASK)?;
    let output = find(session.outputs(), names::SENTENCE_EMBEDDING)?;
    let shape = output.tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
    match shape[..] {
        [_, length] if length > 0 => Ok(length as usize),
        _ => Err(format!("'sentence_embedding' has shape {shape:?}, [B, d] with a fixed d is wanted")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use safetensors::SafeTensors;

    use super::*;
    use taiji_export::{ExportOptions, export};
    use testkit::fixture;

    fn encoder(max_batch: usize) -> BertEncoder {
        let folder = tempfile::tempdir().unwrap();
        export(&fixture("bert"), folder.path(), &ExportOptions::default()).unwrap();
        let options = EncoderOptions { threads: 1, max_tokens: 32, max_batch, runtime_path: None };
        BertEncoder::load(folder.path(), options).unwrap()
    }

    #[test]
    fn vectors_match_the_reference_in_any_batch() {
        let texts: Vec<String> =
            serde_json::from_slice(&std::fs::read(fixture("bert").join("texts.json")).unwrap()).unwrap();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let bytes = std::fs::read(fixture("bert").join("reference.safetensors")).unwrap();
        let reference = SafeTensors::deserialize(&bytes).unwrap();
        let wanted = reference.tensor("sentence_embedding").unwrap();
        let (wanted, _) = wanted.data().as_chunks::<4>();
        for max_batch in [1, 2, 32] {
            let encoder = encoder(max_batch);
            let vectors = encoder.encode(&texts).unwrap().concat();
            assert_eq!((vectors.len(), encoder.dim()), (wanted.len(), 64));
            for (found, &bytes) in vectors.iter().zip(wanted) {
                assert!((found - f32::from_le_bytes(bytes)).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn long_texts_lose_their_tail_and_none_is_fine() {
        let encoder = encoder(4);
        let words = |count: usize| (0..count).map(|number| format!("w{number}")).collect::<Vec<_>>().join(" ");
        let vectors = encoder.encode(&[&words(30), &words(100), ""]).unwrap();
        assert_eq!(vectors[0], vectors[1], "30 words and two special tokens fill the limit of 32");
        let norm: f32 = vectors[2].iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-5);
        assert!(encoder.encode(&[]).unwrap().is_empty());
    }

    #[test]
    fn audit_04_an_encoder_that_never_returns_is_seen_as_work_without_a_step() {
        let encoder = encoder(4);
        assert_eq!(encoder.stalled(), None);
        // Whoever waits for the session waits as long as the call before it hangs.
        let session = encoder.session.lock();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| encoder.encode(&["w1"]).map(|vectors| vectors.len()));
            let soon = std::time::Instant::now() + Duration::from_secs(60);
            while encoder.stalled().unwrap_or_default() < Duration::from_millis(200) {
                assert!(std::time::Instant::now() < soon, "work that makes no step is not seen");
                std::thread::yield_now();
            }
            drop(session);
            assert_eq!(waiting.join().unwrap().unwrap(), 1);
        });
        assert_eq!(encoder.stalled(), None);
    }

    #[test]
    fn a_decoder_graph_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        export(&fixture("qwen2"), folder.path(), &ExportOptions::default()).unwrap();
        let error = BertEncoder::load(folder.path(), EncoderOptions::default()).err().unwrap().to_string();
        assert!(error.contains("attention_mask"), "{error}");
    }
}
