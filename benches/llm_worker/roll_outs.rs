//! `roll_outs`: groups of sampled answers as an alignment draws them: all at once, those to one prompt from one prefill.

use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use taiji::llm::{GenerateRequest, OnnxLlm, Sampling};

use crate::generate::fixed;

#[derive(Debug, Deserialize)]
pub struct Request {
    prompts: Vec<Vec<u32>>,
    group: usize,
    new_tokens: usize,
    seed: u64,
}

pub fn run(llm: &OnnxLlm, request: &Request) -> Result<Value, String> {
    let groups = request.prompts.iter().enumerate();
    let requests: Vec<GenerateRequest> = groups
        .flat_map(|(place, prompt)| {
            (0..request.group).map(move |number| (prompt, (place * request.group + number) as u64))
        })
        .map(|(prompt, number)| GenerateRequest {
            sampling: Some(Sampling { temperature: 1.0, seed: request.seed << 20 | number, ..Sampling::GREEDY }),
            logprobs: true,
            ..fixed(prompt.clone(), request.new_tokens)
        })
        .collect();
    let started = Instant::now();
    let generations = llm.generate_all(&requests);
    let total_s = started.elapsed().as_secs_f64();
    let mut tokens = 0;
    for generation in generations {
        tokens += generation.map_err(|error| error.to_string())?.tokens.len();
    }
    Ok(json!({"total_s": total_s, "tokens": tokens}))
}
