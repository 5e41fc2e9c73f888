//! `beam`: beam searches over a trie, at once or one after the other.
//!
//! The engine counts the time of its prefill calls and of its beam levels apart; the levels are what is compared.

use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use taiji::llm::trie::Trie;
use taiji::llm::{BeamRequest, LlmEngine, OnnxLlm, Priority, Prompt};

use crate::steps;

#[derive(Debug, Deserialize)]
pub struct Request {
    prompts: Vec<Vec<u32>>,
    /// Token sequences, all of one length.
    items: Vec<Vec<u32>>,
    width: usize,
    together: bool,
}

pub async fn run(llm: &OnnxLlm, request: Request) -> Result<Value, String> {
    let trie = trie(&request.items)?;
    let kinds = || (steps(llm, "prefill").0, steps(llm, "beam"));
    let (prefill_before, (levels_before, calls_before)) = kinds();
    let (total_s, found) = search(llm, &request, &trie).await?;
    let (prefill, (levels, calls)) = kinds();
    let (prefill_s, levels_s) = (prefill - prefill_before, levels - levels_before);
    Ok(
        json!({"prefill_s": prefill_s, "levels_s": levels_s, "calls": calls - calls_before, "total_s": total_s, "found": found}),
    )
}

fn trie(items: &[Vec<u32>]) -> Result<Arc<Trie>, String> {
    let entries = items.iter().zip(0_u32..).map(|(tokens, item)| (item, tokens.as_slice(), true));
    Trie::build(entries).map(Arc::new).map_err(|error| error.to_string())
}

/// Seconds of all searches, and the numbers of the items that each found, best first.
async fn search(llm: &OnnxLlm, request: &Request, trie: &Arc<Trie>) -> Result<(f64, Vec<Vec<u32>>), String> {
    let one = async |prompt: &Vec<u32>| -> Result<Vec<u32>, String> {
        let prompt = Prompt::Tokens(prompt.clone());
        let (width, trie, priority) = (request.width, trie.clone(), Priority::default());
        let search = BeamRequest { prompt, width, trie, priority, deadline: None };
        let found = llm.beam(search).await.map_err(|error| error.to_string())?;
        match found.len() == width {
            true => Ok(found.iter().map(|beam| beam.item).collect()),
            false => Err(format!("{} beams instead of {width}", found.len())),
        }
    };
    let started = Instant::now();
    let mut found = Vec::new();
    if request.together {
        found = try_join_all(request.prompts.iter().map(one)).await?;
    } else {
        for prompt in &request.prompts {
            found.push(one(prompt).await?);
        }
    }
    Ok((started.elapsed().as_secs_f64(), found))
}
