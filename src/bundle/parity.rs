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
    /// Most times that the probes may be as surprising as when the bundle was made, over all their tokens. Products of rounded
    /// weights differ from machine to machine by more than those of floats, token by token, but not on the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_perplexity_ratio: Option<f64>,
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
        let scores = llm.score_all(&pairs).into_iter().collect::<Result<Vec<_>, _>>();
        self.check_llm(&scores.map_err(|error| fail(error.to_string()))?).map_err(fail)?;
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

    /// Holds log-probabilities of all probes against the stored ones; what is out of bounds.
    fn check_llm(&self, scores: &[Vec<f64>]) -> Result<(), String> {
        let (mut lost, mut tokens) = (0.0, 0.0);
        for (place, (probe, scores)) in self.llm.iter().zip(scores).enumerate() {
            for (token, (stored, found)) in probe.logprobs.iter().zip(scores).enumerate() {
                let difference = (*stored - *found as f32).abs();
                // A NaN is out of bounds, too.
                if !matches!(difference.partial_cmp(&self.max_logprob_difference), Some(order) if order.is_le()) {
                    return Err(format!("llm probe {place}, token {token}: log-probability {found}, stored {stored}"));
                }
                lost += f64::from(*stored) - found;
                tokens += 1.0;
            }
        }
        let ratio = if tokens > 0.0 { (lost / tokens).exp() } else { 1.0 };
        match self.max_perplexity_ratio {
            Some(most) if ratio > most => Err(format!("llm probes: {ratio:.3} times as surprising, at most {most}")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounded_weights_are_held_to_their_perplexity_beside_every_token() {
        let probe =
            |logprobs: Vec<f32>| TokenProbe { prompt: vec![1], continuation: vec![2; logprobs.len()], logprobs };
        let floats = ParityProbe {
            max_logprob_difference: 0.25,
            max_perplexity_ratio: None,
            min_cosine: 0.999,
            llm: vec![probe(vec![-1.0, -2.0]), probe(vec![-3.0])],
            encoder: vec![],
        };
        let rounded = ParityProbe { max_perplexity_ratio: Some(1.15), ..floats.clone() };
        // One token far off is within the bound of all; every token off in one direction is not.
        assert_eq!(rounded.check_llm(&[vec![-1.2, -1.9], vec![-3.1]]), Ok(()));
        let drifted = [vec![-1.2, -2.2], vec![-3.2]];
        assert_eq!(floats.check_llm(&drifted), Ok(()));
        let refused = rounded.check_llm(&drifted).err().unwrap_or_default();
        assert_eq!(refused, "llm probes: 1.221 times as surprising, at most 1.15");
        let refused = rounded.check_llm(&[vec![-1.0, -2.3], vec![-3.0]]).err().unwrap_or_default();
        assert_eq!(refused, "llm probe 0, token 1: log-probability -2.3, stored -2");
        assert!(rounded.check_llm(&[vec![f64::NAN, -2.0], vec![-3.0]]).is_err());
    }
}
