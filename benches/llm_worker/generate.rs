//! `generate`: a batch that is there at once; when every row has its first token, and when the last token of all came.

use std::time::Instant;

use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use taiji::llm::{GenerateRequest, LlmEngine, OnnxLlm, Piece};
use tokio::sync::mpsc::UnboundedReceiver;

#[derive(Debug, Deserialize)]
pub struct Request {
    prompts: Vec<Vec<u32>>,
    new_tokens: usize,
}

/// A request of fixed length: whatever the model writes, it goes on.
pub fn fixed(prompt: Vec<u32>, new_tokens: usize) -> GenerateRequest {
    GenerateRequest { ignore_stop: true, ..GenerateRequest::tokens(prompt, new_tokens) }
}

pub async fn run(llm: &OnnxLlm, request: Request) -> Result<Value, String> {
    let requests: Vec<GenerateRequest> =
        request.prompts.into_iter().map(|prompt| fixed(prompt, request.new_tokens)).collect();
    match request.new_tokens {
        1 => prefill(llm, &requests),
        _ => decode(llm, requests).await,
    }
}

/// As the trainer hands over a batch: all at once.
fn prefill(llm: &OnnxLlm, requests: &[GenerateRequest]) -> Result<Value, String> {
    let started = Instant::now();
    let generations = llm.generate_all(requests);
    let first_s = started.elapsed().as_secs_f64();
    let mut last = Vec::new();
    for generation in generations {
        last.push(generation.map_err(|error| error.to_string())?.tokens.last().copied());
    }
    Ok(json!({"first_s": first_s, "rest_s": 0.0, "rest_tokens": 0, "last": last}))
}

/// As the service does: one stream a caller.
async fn decode(llm: &OnnxLlm, requests: Vec<GenerateRequest>) -> Result<Value, String> {
    let started = Instant::now();
    let streams = requests.into_iter().map(|request| llm.stream(request));
    let streams = try_join_all(streams).await.map_err(|error| error.to_string())?;
    let rows = try_join_all(streams.into_iter().map(tokens)).await?;
    let firsts = rows.iter().filter_map(|row| row.first());
    let first = firsts.map(|(at, _)| *at).max().ok_or("no row has a token")?;
    let ended = rows.iter().filter_map(|row| row.last()).map(|(at, _)| *at).max().ok_or("no row has a token")?;
    let rest_tokens = rows.iter().flatten().filter(|(at, _)| *at > first).count();
    let last: Vec<Option<u32>> = rows.iter().map(|row| row.last().map(|(_, token)| *token)).collect();
    let (first_s, rest_s) = ((first - started).as_secs_f64(), (ended - first).as_secs_f64());
    Ok(json!({"first_s": first_s, "rest_s": rest_s, "rest_tokens": rest_tokens, "last": last}))
}

/// All tokens of a stream with the moment each came.
async fn tokens(mut stream: UnboundedReceiver<Piece>) -> Result<Vec<(Instant, u32)>, String> {
    let mut tokens = Vec::new();
    while let Some(piece) = stream.recv().await {
        match piece {
            Piece::Token { token, .. } => tokens.push((Instant::now(), token)),
            Piece::End(end) => end.map(|_| ()).map_err(|error| error.to_string())?,
        }
    }
    Ok(tokens)
}
