//! `trace`: requests that arrive one after the other, answered continuously or in static batches.
//!
//! Both ways run on the same engine, so that only the batching differs. A static batch takes those that have arrived, at
//! most so many, and the next one waits until it has ended. `padded`: every row of a static batch goes on until the
//! longest has ended, as batches of a fixed shape do; otherwise rows that have ended leave it.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use taiji::llm::{LlmEngine, OnnxLlm};

use crate::generate::fixed;

#[derive(Debug, Deserialize)]
pub struct Request {
    requests: Vec<Arrival>,
    /// 0: continuous.
    static_rows: usize,
    padded: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Arrival {
    at_s: f64,
    prompt: Vec<u32>,
    new_tokens: usize,
}

pub async fn run(llm: &OnnxLlm, request: Request) -> Result<Value, String> {
    let mut arrivals = request.requests;
    arrivals.sort_by(|one, other| one.at_s.total_cmp(&other.at_s));
    let new_tokens: usize = arrivals.iter().map(|arrival| arrival.new_tokens).sum();
    let started = Instant::now();
    let waits = match request.static_rows {
        0 => try_join_all(arrivals.into_iter().map(|arrival| one(llm, started, arrival))).await?,
        rows => batches(llm, started, arrivals, rows, request.padded).await?,
    };
    let makespan_s = started.elapsed().as_secs_f64();
    let wait_s = waits.iter().sum::<f64>() / waits.len().max(1) as f64;
    Ok(json!({"makespan_s": makespan_s, "new_tokens": new_tokens, "wait_s": wait_s}))
}

/// Waits for the arrival, generates; seconds from the arrival to the answer.
async fn one(llm: &OnnxLlm, started: Instant, arrival: Arrival) -> Result<f64, String> {
    let due = started + Duration::from_secs_f64(arrival.at_s);
    tokio::time::sleep_until(due.into()).await;
    let generation =
        llm.generate(fixed(arrival.prompt, arrival.new_tokens)).await.map_err(|error| error.to_string())?;
    match generation.new_tokens == arrival.new_tokens {
        true => Ok(due.elapsed().as_secs_f64()),
        false => Err(format!("{} tokens instead of {}", generation.new_tokens, arrival.new_tokens)),
    }
}

async fn batches(
    llm: &OnnxLlm,
    started: Instant,
    arrivals: Vec<Arrival>,
    rows: usize,
    padded: bool,
) -> Result<Vec<f64>, String> {
    let (mut waits, mut rest) = (Vec::new(), arrivals.as_slice());
    while let Some(first) = rest.first() {
        tokio::time::sleep_until((started + Duration::from_secs_f64(first.at_s)).into()).await;
        let now_s = started.elapsed().as_secs_f64();
        let ready = rest.iter().take(rows).take_while(|arrival| arrival.at_s <= now_s).count().max(1);
        let (batch, later) = rest.split_at(ready);
        let longest = batch.iter().map(|arrival| arrival.new_tokens).max().unwrap_or(1);
        let length = |arrival: &Arrival| if padded { longest } else { arrival.new_tokens };
        let members = batch.iter().map(|arrival| Arrival { new_tokens: length(arrival), ..arrival.clone() });
        waits.extend(try_join_all(members.map(|arrival| one(llm, started, arrival))).await?);
        rest = later;
    }
    Ok(waits)
}
