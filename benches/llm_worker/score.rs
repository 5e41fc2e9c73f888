//! `score`: log-probabilities of given texts, to compare two models or two providers.

use serde::Deserialize;
use serde_json::{Value, json};
use taiji::llm::{LlmEngine, OnnxLlm};

#[derive(Debug, Deserialize)]
pub struct Request {
    /// Prompt and continuation of each text.
    texts: Vec<(Vec<u32>, Vec<u32>)>,
}

pub async fn run(llm: &OnnxLlm, request: Request) -> Result<Value, String> {
    let mut logprobs: Vec<Vec<f64>> = Vec::new();
    for (prompt, continuation) in request.texts {
        let scored = llm.score(prompt, continuation).await.map_err(|error| error.to_string())?;
        logprobs.push(scored.iter().map(|token| token.logprob).collect());
    }
    Ok(json!({"logprobs": logprobs}))
}
