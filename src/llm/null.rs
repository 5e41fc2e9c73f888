//! A stand-in for the decoder: canned, well-formed answers without a model, for `--engine null` and tests.
//!
//! In: any prompt. Out: reasoning and answer decided by the prompt's hash alone. Whoever uses it must flag the features.

use async_trait::async_trait;
use xxhash_rust::xxh3::xxh3_64;

use super::{Finish, GenerateRequest, Generation, LlmEngine, LlmError};
use crate::prompt::{ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE};

const INTERESTS: [&str; 16] = [
    "running shoes",
    "coffee beans",
    "wireless headphones",
    "board games",
    "garden tools",
    "winter jackets",
    "mystery novels",
    "camping gear",
    "skin care",
    "guitar strings",
    "dog food",
    "desk lamps",
    "yoga mats",
    "phone cases",
    "baking tins",
    "model trains",
];

/// The engine without a model; every text has any length it likes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullLlm;

impl NullLlm {
    /// The answer to a prompt that ends with the opening think tag.
    pub fn answer(prompt: &str) -> String {
        let hash = xxh3_64(prompt.as_bytes());
        let pick = |shift: u32| INTERESTS[(hash >> shift) as usize % INTERESTS.len()];
        let (first, second) = (pick(0), pick(8));
        format!("recent interest in {first}{THINK_CLOSE}{ANSWER_OPEN}{first}, {second}{ANSWER_CLOSE}")
    }
}

#[async_trait]
impl LlmEngine for NullLlm {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, LlmError> {
        let text = Self::answer(&request.prompt);
        Ok(Generation {
            prompt_tokens: self.count_tokens(&request.prompt),
            new_tokens: self.count_tokens(&text),
            text,
            finish: Finish::Stop,
            logprob: 0.0,
        })
    }

    fn count_tokens(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn prompt_limit(&self, _max_new_tokens: usize) -> usize {
        usize::MAX
    }

    fn model_id(&self) -> &str {
        "null"
    }

    fn queue_depth(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn answers_are_well_formed_and_decided_by_the_prompt() {
        let answer = NullLlm::answer("user likes tea<think>");
        assert_eq!(answer, NullLlm::answer("user likes tea<think>"));
        assert!(answer.ends_with(ANSWER_CLOSE) && answer.contains(THINK_CLOSE) && answer.contains(ANSWER_OPEN));
        let different: std::collections::BTreeSet<String> = (0..50).map(|n| NullLlm::answer(&n.to_string())).collect();
        assert!(different.len() > 30);
    }
}
