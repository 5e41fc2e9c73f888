//! How much another export of a bundle's LLM (int4, int8, f16) differs from it: `taiji-trainer compare`.
//!
//! In: a bundle, a model folder of the same tokenizer, held-out prompts. Out: shares and differences. The bundle's model
//! writes its answers greedily; the other one reads them token by token, so that one deviation does not hide the rest.

use super::bundle::{held_out, open_bundle};
use crate::stage::StageError;
use crate::synth::{SynthSettings, WorldKind};
use serde::Serialize;
use std::path::Path;
use taiji::llm::{GenerateRequest, LlmEngine, LlmOptions, OnnxLlm, Sampling};

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// Held-out users whose answers were compared.
    pub users: usize,
    /// Tokens of these answers.
    pub tokens: usize,
    /// Share of tokens that the other model would have written, too.
    pub top1_agreement: f64,
    /// Mean difference of the tokens' log-probabilities, natural log, without sign.
    pub mean_logprob_difference: f64,
    /// The largest.
    pub max_logprob_difference: f64,
}

/// Compares on generated users of a seed that training did not see.
pub fn compare_llm(
    bundle: &Path,
    other: &Path,
    world: WorldKind,
    seed: u64,
    users: usize,
) -> Result<Compared, StageError> {
    let (models, _) = open_bundle(bundle)?;
    let (_, set) = held_out(SynthSettings { kind: world, ..SynthSettings::default() }, users, seed, &models);
    let budget = models.schema.max_new_tokens;
    let options = LlmOptions {
        threads: 2,
        max_rows: 16,
        max_len: models.schema.max_prompt_tokens + budget,
        ..LlmOptions::default()
    };
    let second = OnnxLlm::load(other, options)?;

    let prompts = set.cases.iter().map(|case| models.llm.tokenize(&models.prompt(&case.prompt)));
    let prompts = prompts.collect::<Result<Vec<Vec<u32>>, _>>()?;
    let greedy = |prompt: &Vec<u32>| GenerateRequest {
        logprobs: true,
        sampling: Some(Sampling::GREEDY),
        ..GenerateRequest::tokens(prompt.clone(), budget)
    };
    let requests: Vec<GenerateRequest> = prompts.iter().map(greedy).collect();
    let written = models.llm.generate_all(&requests).into_iter().collect::<Result<Vec<_>, _>>()?;
    let pairs: Vec<(&[u32], &[u32])> =
        prompts.iter().zip(&written).map(|(prompt, answer)| (prompt.as_slice(), answer.tokens.as_slice())).collect();
    let read = second.judge_all(&pairs).into_iter().collect::<Result<Vec<_>, _>>()?;

    let tokens: usize = read.iter().map(Vec::len).sum();
    let agreed = read.iter().flatten().filter(|token| token.is_best).count();
    let differences: Vec<f64> = written
        .iter()
        .flat_map(|answer| &answer.logprobs)
        .zip(read.iter().flatten())
        .map(|(own, token)| (own - token.logprob).abs())
        .collect();
    Ok(Compared {
        users: set.cases.len(),
        tokens,
        top1_agreement: agreed as f64 / tokens.max(1) as f64,
        mean_logprob_difference: differences.iter().sum::<f64>() / tokens.max(1) as f64,
        max_logprob_difference: differences.into_iter().fold(0.0, f64::max),
    })
}
