//! The parity gate: the loaded models must answer the stored probes as they did when the bundle was made.

use super::BundleError;
use crate::encode::Encoder;
use crate::llm::OnnxLlm;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the probe file in a bundle.
pub const PROBE: &str = "probe.json";

/// A prompt, its continuation, and the log-probability of each continuation token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TokenProbe {
    pub prompt: Vec<u32>,
    pub continuation: Vec<u32>,
    /// Natural log, one a continuation token.
    pub logprobs: Vec<f32>,
}

/// A text and its vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ProbeText {
    pub text: String,
    pub vector: Vec<f32>,
}

/// `probe.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParityProbe {
    /// Largest difference allowed in a log-probability.
    pub max_logprob_difference: f32,
    /// Smallest cosine allowed between stored and measured vector.
    pub min_cosine: f32,
    /// For the reasoning LLM.
    pub llm: Vec<TokenProbe>,
    /// For the encoder.
    pub encoder: Vec<ProbeText>,
}

impl ParityProbe {
    /// Reads a bundle's probe.
    pub fn read(bundle: &Path) -> Result<ParityProbe, BundleError> {
        let refuse = |message: String| BundleError::Invalid { bundle: bundle.display().to_string(), message };
        let text = std::fs::read_to_string(bundle.join(PROBE)).map_err(|error| refuse(format!("{PROBE}: {error}")))?;
        serde_json::from_str(&text).map_err(|error| refuse(format!("{PROBE}: {error}")))
    }

    /// Runs every probe; names the first that is out of bounds.
    pub fn check(&self, bundle: &Path, llm: &OnnxLlm, encoder: &dyn Encoder) -> Result<(), BundleError> {
        let fail = |message: String| BundleError::Parity { bundle: bundle.display().to_string(), message };
        let pairs: Vec<(&[u32], &[u32])> =
            self.llm.iter().map(|probe| (probe.prompt.as_slice(), probe.continuation.as_slice())).collect();
        for (place, (probe, scores)) in self.llm.iter().zip(llm.score_all(&pairs)).enumerate() {
            let scores = scores.map_err(|error| fail(error.to_string()))?;
            for (token, (stored, found)) in probe.logprobs.iter().zip(&scores).enumerate() {
                let difference = (*stored - *found as f32).abs();
                // A NaN is out of bounds, too.
                if !matches!(difference.partial_cmp(&self.max_logprob_difference), Some(order) if order.is_le()) {
                    let message = format!("llm probe {place}, token {token}: log-probability {found}, stored {stored}");
                    return Err(fail(message));
                }
            }
        }
        for (place, probe) in self.encoder.iter().enumerate() {
            let vectors = encoder.encode(&[&probe.text]).map_err(|error| fail(error.to_string()))?;
            let found = vectors.first().map(Vec::as_slice).unwrap_or_default();
            let cosine: f32 = probe.vector.iter().zip(found).map(|(stored, found)| stored * found).sum();
            if !matches!(cosine.partial_cmp(&self.min_cosine), Some(order) if order.is_ge()) {
                return Err(fail(format!("encoder probe {place}: cosine {cosine} to the stored vector")));
            }
        }
        Ok(())
    }
}
