//! `gap`: how long decoding rows wait for their next token while a long prompt is read.
//!
//! First the long prompt is read alone, then `rows` rows decode alone until each has `warm_tokens`, then a second long
//! prompt joins them. The rows are given up when it has its first token.

use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use taiji::llm::{LlmEngine, OnnxLlm, Piece};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::generate::fixed;
use crate::steps;

#[derive(Debug, Deserialize)]
pub struct Request {
    rows: Vec<Vec<u32>>,
    new_tokens: usize,
    warm_tokens: usize,
    prompt_alone: Vec<u32>,
    prompt_beside: Vec<u32>,
}

/// Which row got a token, and when.
type Tick = (usize, Instant);

pub async fn run(llm: &OnnxLlm, request: Request) -> Result<Value, String> {
    let started = Instant::now();
    first_token(llm, request.prompt_alone).await?;
    let prefill_alone_s = started.elapsed().as_secs_f64();

    let (sender, mut ticks) = unbounded_channel();
    let mut tasks = JoinSet::new();
    let rows = request.rows.len();
    for (row, prompt) in request.rows.into_iter().enumerate() {
        let stream = llm.stream(fixed(prompt, request.new_tokens)).await.map_err(|error| error.to_string())?;
        tasks.spawn(forward(row, stream, sender.clone()));
    }
    let mut times: Vec<Vec<Instant>> = vec![Vec::new(); rows];
    while times.iter().any(|row| row.len() < request.warm_tokens) {
        let (row, at) = ticks.recv().await.ok_or("the rows ended too early")?;
        times[row].push(at);
    }
    let alone_s = gaps(&times);

    // From here on the gaps count that end after the prompt was handed over.
    let submitted = Instant::now();
    let (chunk_sum, chunk_count) = steps(llm, "prefill");
    let mut beside: Vec<Vec<Instant>> = times.iter().filter_map(|row| row.last()).map(|at| vec![*at]).collect();
    let prefill = first_token(llm, request.prompt_beside);
    tokio::pin!(prefill);
    loop {
        tokio::select! {
            ended = &mut prefill => break ended?,
            tick = ticks.recv() => {
                let (row, at) = tick.ok_or("the rows ended too early: raise new_tokens")?;
                beside[row].push(at);
            }
        }
    }
    let prefill_beside_s = submitted.elapsed().as_secs_f64();
    let (chunks_s, chunks) = steps(llm, "prefill");
    tasks.shutdown().await; // drops the streams, which cancels the rows
    Ok(json!({
        "alone_s": alone_s, "beside_s": gaps(&beside), "chunks": chunks - chunk_count, "chunks_s": chunks_s - chunk_sum,
        "prefill_alone_s": prefill_alone_s, "prefill_beside_s": prefill_beside_s,
    }))
}

async fn first_token(llm: &OnnxLlm, prompt: Vec<u32>) -> Result<(), String> {
    llm.generate(fixed(prompt, 1)).await.map(|_| ()).map_err(|error| error.to_string())
}

async fn forward(row: usize, mut stream: UnboundedReceiver<Piece>, ticks: UnboundedSender<Tick>) {
    while let Some(Piece::Token { .. }) = stream.recv().await {
        if ticks.send((row, Instant::now())).is_err() {
            return;
        }
    }
}

/// Seconds between neighbours, of all rows.
fn gaps(times: &[Vec<Instant>]) -> Vec<f64> {
    times.iter().flat_map(|row| row.windows(2)).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
}
