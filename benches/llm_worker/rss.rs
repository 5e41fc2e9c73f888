//! `rss`: resident memory of this process after so many requests.

use std::collections::VecDeque;

use futures::stream::{self, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use taiji::llm::{LlmEngine, OnnxLlm};

use crate::generate::fixed;

/// Requests under way at once.
const CALLERS: usize = 8;

#[derive(Debug, Deserialize)]
pub struct Request {
    vocabulary: u32,
    longest_prompt: usize,
    new_tokens: usize,
    /// Numbers of requests after which memory is read, rising.
    at: Vec<usize>,
}

pub async fn run(llm: &OnnxLlm, request: Request) -> Result<Value, String> {
    let mut rss_bytes = Vec::new();
    let (mut done, mut marks) = (0, VecDeque::from(request.at.clone()));
    let last = request.at.last().copied().unwrap_or(0);
    let calls = (0..last).map(|number| llm.generate(fixed(prompt(&request, number), request.new_tokens)));
    let mut answers = stream::iter(calls).buffer_unordered(CALLERS);
    while let Some(answer) = answers.next().await {
        answer.map_err(|error| error.to_string())?;
        done += 1;
        if marks.front() == Some(&done) {
            marks.pop_front();
            rss_bytes.push(resident()?);
        }
    }
    Ok(json!({"rss_bytes": rss_bytes}))
}

/// Lengths from 1 on, in an order that mixes long and short.
fn prompt(request: &Request, number: usize) -> Vec<u32> {
    let length = 1 + number * 7919 % request.longest_prompt;
    (0..length).map(|place| ((number * 31 + place * 17) % request.vocabulary as usize) as u32).collect()
}

fn resident() -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).ok_or("/proc/self/status has no VmRSS")?;
    let kibibytes: u64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).ok_or("VmRSS: no number")?;
    Ok(kibibytes * 1024)
}
