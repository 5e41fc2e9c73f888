//! Texts → token sequences → batches of a token budget. Called by `training` and `generative`.
//!
//! Batches hold whole sequences laid end to end: there is no padding, so lengths need no bucketing and the order can be a
//! plain shuffle.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::tokenizer::TextTokenizer;
use super::{SftError, SftExample};
use crate::model::{TokenBatch, TrainBatch};

/// One tokenised example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenExample {
    /// Prompt, then completion.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
}

impl TokenExample {
    /// Positions the model is run on: the last token is only a target.
    pub fn input_len(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }
}

/// Tokenises examples in order; returns those of 1 to `max_len` tokens on each side, and how many were left out. `end` is
/// added to completions whose own last token does not end a text.
pub fn tokenise(
    tokenizer: &TextTokenizer,
    examples: &[SftExample],
    max_len: usize,
    end: Option<u32>,
) -> Result<(Vec<TokenExample>, usize), SftError> {
    let all: Vec<TokenExample> = examples
        .par_iter()
        .map(|example| {
            let mut tokens = tokenizer.encode(&example.prompt)?;
            let prompt_len = tokens.len();
            tokens.extend(tokenizer.encode(&example.completion)?);
            tokens.extend(end);
            Ok(TokenExample { tokens, prompt_len })
        })
        .collect::<Result<_, SftError>>()?;
    let total = all.len();
    let kept: Vec<TokenExample> = all
        .into_iter()
        .filter(|example| {
            let completion = example.tokens.len() - example.prompt_len - usize::from(end.is_some());
            example.prompt_len > 0 && completion > 0 && example.input_len() <= max_len
        })
        .collect();
    let left_out = total - kept.len();
    Ok((kept, left_out))
}

/// How large a batch may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    /// Most tokens.
    pub tokens: usize,
    /// Most examples.
    pub examples: usize,
}

impl BatchSize {
    /// As many examples as fit into so many tokens.
    pub fn of_tokens(tokens: usize) -> Self {
        BatchSize { tokens, examples: usize::MAX }
    }
}

/// The batches of one epoch: example numbers, shuffled by (seed, epoch), filled in order.
pub fn plan_epoch(examples: &[TokenExample], size: BatchSize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch + 1);
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.shuffle(&mut random);
    fill(examples, order.into_iter(), size)
}

/// Batches in the given order.
pub fn fill(examples: &[TokenExample], order: impl Iterator<Item = usize>, size: BatchSize) -> Vec<Vec<usize>> {
    let mut batches = Vec::new();
    let (mut current, mut tokens) = (Vec::new(), 0);
    for index in order {
        let len = examples[index].input_len();
        let is_full = tokens + len > size.tokens || current.len() >= size.examples;
        if is_full && !current.is_empty() {
            batches.push(std::mem::take(&mut current));
            tokens = 0;
        }
        current.push(index);
        tokens += len;
    }
    if !current.is_empty() {
        batches.push(current);
    }
    batches
}

/// Lays the chosen examples end to end; prompt targets weigh `prompt_weight`, completion targets 1.
pub fn assemble(examples: &[TokenExample], chosen: &[usize], prompt_weight: f32) -> TrainBatch {
    let chosen: Vec<&TokenExample> = chosen.iter().map(|&index| &examples[index]).collect();
    let input = TokenBatch::from_sequences(chosen.iter().map(|example| &example.tokens[..example.input_len()]));
    let targets = chosen.iter().flat_map(|example| example.tokens[1..].iter().copied()).collect();
    let weights = chosen
        .iter()
        .flat_map(|example| {
            let prompt_targets = example.prompt_len - 1;
            (0..example.input_len()).map(move |place| if place < prompt_targets { prompt_weight } else { 1.0 })
        })
        .collect();
    TrainBatch { input, targets, weights }
}

/// Adds examples to a hash.
pub(crate) fn hash_examples<'a>(hash: &mut Sha256, examples: impl IntoIterator<Item = &'a TokenExample>) {
    for example in examples {
        hash.update((example.tokens.len() as u64).to_le_bytes());
        hash.update((example.prompt_len as u64).to_le_bytes());
        for token in &example.tokens {
            hash.update(token.to_le_bytes());
        }
    }
}
