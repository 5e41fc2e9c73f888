//! Semantic reward: cosine of the answer's text and the text of what was bought, by the encoder that serves.

use super::{Answered, Reward, RewardError};
use std::collections::HashMap;
use std::sync::Arc;
use taiji::encode::Encoder;
use taiji::prompt::answer_text;

/// Vectors kept: answers repeat, for people's next purchases do.
const KEPT: usize = 1 << 16;
/// Texts encoded at once.
const CHUNK: usize = 64;

/// `None` where what was bought has no text.
pub struct Semantic {
    encoder: Arc<dyn Encoder>,
    /// Titles are cut as in the answers that are taught.
    max_title_chars: usize,
    vectors: HashMap<String, Vec<f32>>,
}

impl Semantic {
    /// By an encoder, whose vectors have length 1.
    pub fn new(encoder: Arc<dyn Encoder>, max_title_chars: usize) -> Self {
        Self { encoder, max_title_chars, vectors: HashMap::new() }
    }

    /// Encodes what is not known yet.
    fn learn(&mut self, texts: &[String]) -> Result<(), RewardError> {
        if self.vectors.len() > KEPT {
            self.vectors.clear();
        }
        let mut missing: Vec<&str> = texts.iter().map(String::as_str).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.retain(|text| !self.vectors.contains_key(*text));
        for chunk in missing.chunks(CHUNK) {
            let vectors = self.encoder.encode(chunk)?;
            self.vectors.extend(chunk.iter().map(|text| text.to_string()).zip(vectors));
        }
        Ok(())
    }

    /// Cosine of each pair of texts.
    pub fn cosines(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>, RewardError> {
        let texts: Vec<String> = pairs.iter().flat_map(|(one, other)| [one.clone(), other.clone()]).collect();
        self.learn(&texts)?;
        let vector = |text: &str| self.vectors.get(text).map(Vec::as_slice).unwrap_or_default();
        let cosine = |(one, other): &(String, String)| {
            vector(one).iter().zip(vector(other)).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
        };
        Ok(pairs.iter().map(cosine).collect())
    }
}

impl Reward for Semantic {
    fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let truth = |answer: &Answered<'_>| {
            answer.truth.map(|item| answer_text(&item.categories, &item.title, self.max_title_chars))
        };
        let truths: Vec<Option<String>> = answers.iter().map(truth).collect();
        let known = answers.iter().zip(&truths);
        let pairs: Vec<(String, String)> =
            known.filter_map(|(answer, truth)| Some((answer.parsed.answer.clone(), truth.clone()?))).collect();
        let mut cosines = self.cosines(&pairs)?.into_iter();
        Ok(truths.iter().map(|truth| truth.as_ref().and_then(|_| cosines.next())).collect())
    }
}
