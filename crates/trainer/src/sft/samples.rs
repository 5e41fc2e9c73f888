//! What the model writes to a few validation prompts, before it is trained and after: for people to read.
//!
//! In: a decoder and token sequences. Out: texts. Called by `training`. Greedy, and without a cache: for a handful of short texts one is
//! not worth its code; serving writes through the exported graph.

use serde::{Deserialize, Serialize};

use super::SftError;
use super::packing::TokenExample;
use super::tokenizer::{END_OF_TEXT, TextTokenizer};
use crate::model::{Decoder, TokenBatch, TrainBatch};
use taiji::prompt::ANSWER_CLOSE;

/// Tokens written at most.
const LONGEST: usize = 64;

/// One prompt and what was written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What the model reads.
    pub prompt: String,
    /// What it is to write.
    pub wanted: String,
    /// What it wrote before training.
    pub before: String,
    /// What it wrote after.
    pub after: String,
}

impl Sample {
    /// Of the texts that `written` gave of the same examples before and after.
    pub fn of(
        tokenizer: &TextTokenizer,
        examples: &[TokenExample],
        before: Vec<String>,
        after: Vec<String>,
    ) -> Result<Vec<Sample>, SftError> {
        let texts = examples.iter().zip(before.into_iter().zip(after));
        let sample = |(example, (before, after)): (&TokenExample, (String, String))| {
            let (prompt, wanted) = example.tokens.split_at(example.prompt_len);
            Ok(Sample { prompt: tokenizer.decode(prompt)?, wanted: tokenizer.decode(wanted)?, before, after })
        };
        texts.map(sample).collect()
    }
}

/// What the decoder writes to each prompt, greedily, to the end of its answer or [`LONGEST`] tokens.
pub fn written(
    decoder: &Decoder,
    tokenizer: &TextTokenizer,
    examples: &[TokenExample],
) -> Result<Vec<String>, SftError> {
    let ends: Vec<u32> = [ANSWER_CLOSE, END_OF_TEXT].iter().filter_map(|tag| tokenizer.token_id(tag)).collect();
    let longest = decoder.config().max_position_embeddings;
    let mut texts = Vec::new();
    for example in examples {
        let mut tokens = example.tokens[..example.prompt_len].to_vec();
        while tokens.len() < longest.min(example.prompt_len + LONGEST) {
            let next = next_token(decoder, &tokens)?;
            tokens.push(next);
            if ends.contains(&next) {
                break;
            }
        }
        texts.push(tokenizer.decode(&tokens[example.prompt_len..])?);
    }
    Ok(texts)
}

/// The most likely token behind some.
fn next_token(decoder: &Decoder, tokens: &[u32]) -> Result<u32, SftError> {
    let last = tokens.len().saturating_sub(1);
    let weights = (0..tokens.len()).map(|place| if place == last { 1.0 } else { 0.0 }).collect();
    // Targets are not asked for; any token does.
    let batch = TrainBatch { input: TokenBatch::from_sequences([tokens]), targets: vec![0; tokens.len()], weights };
    match decoder.scores(&batch)?[..] {
        [(_, best)] => Ok(best),
        _ => Err(SftError::NoExamples("a prompt is empty".into())),
    }
}
