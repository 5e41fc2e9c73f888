//! Our engine as a worker of `make bench-llm`: one JSON object a line in, one out.
//!
//! In: a model folder as `taiji-trainer export` writes it, then requests on standard input. Out: measured seconds. The
//! language is described in `scripts/bench_llm/protocol.py`, which also starts this program. It drives the engine as
//! `taiji serve` does: many callers on a tokio runtime, one engine.
//!
//!     llm_worker FOLDER THREADS MAX_ROWS MAX_LEN [cpu|cuda|cuda-graphs [PREFILL_CHUNK]]

mod beam;
mod gap;
mod generate;
mod roll_outs;
mod rss;
mod score;
mod trace;

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Value, json};
use taiji::llm::{LlmEngine, LlmOptions, OnnxLlm};
use taiji::onnx::runtime::Provider;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Request {
    Generate(generate::Request),
    Trace(trace::Request),
    Gap(gap::Request),
    RollOuts(roll_outs::Request),
    Beam(beam::Request),
    Rss(rss::Request),
    Score(score::Request),
}

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("llm_worker: {message}");
            ExitCode::from(69)
        }
    }
}

fn work() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, threads, max_rows, max_len, rest @ ..] = arguments.as_slice() else {
        return Err(
            "usage: llm_worker FOLDER THREADS MAX_ROWS MAX_LEN [cpu|cuda|cuda-graphs [PREFILL_CHUNK]]".to_owned()
        );
    };
    let usual = LlmOptions::default();
    let options = LlmOptions {
        prefill_chunk: rest.get(1).map_or(Ok(usual.prefill_chunk), |text| number(text))?,
        threads: number(threads)?,
        max_rows: number(max_rows)?,
        max_len: number(max_len)?,
        queue_limit: 4096,
        provider: provider(rest.first().map_or("cpu", String::as_str))?,
        ..usual
    };
    let llm = OnnxLlm::load(Path::new(folder), options).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| e.to_string())?;
    answer(&json!({"ready": "ours", "model": llm.model_id()}))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let answered = match serde_json::from_str(&line) {
            Ok(request) => runtime.block_on(run(&llm, request)),
            Err(error) => Err(error.to_string()),
        };
        answer(&answered.unwrap_or_else(|message| json!({"error": message})))?;
    }
    Ok(())
}

async fn run(llm: &OnnxLlm, request: Request) -> Result<Value, String> {
    match request {
        Request::Generate(request) => generate::run(llm, request).await,
        Request::Trace(request) => trace::run(llm, request).await,
        Request::Gap(request) => gap::run(llm, request).await,
        Request::RollOuts(request) => roll_outs::run(llm, &request),
        Request::Beam(request) => beam::run(llm, request).await,
        Request::Rss(request) => rss::run(llm, request).await,
        Request::Score(request) => score::run(llm, request).await,
    }
}

fn answer(value: &Value) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}

/// Seconds and number of all graph calls of a kind so far: `prefill`, `decode` or `beam`.
fn steps(llm: &OnnxLlm, kind: &str) -> (f64, u64) {
    let histogram = llm.metrics().llm_steps.with_label_values(&[kind]);
    (histogram.get_sample_sum(), histogram.get_sample_count())
}

fn provider(name: &str) -> Result<Provider, String> {
    match name {
        "cpu" => Ok(Provider::Cpu),
        "cuda" | "cuda-graphs" => Ok(Provider::Cuda { device: 0, memory_limit: 0, graphs: name == "cuda-graphs" }),
        _ => Err(format!("provider '{name}': cpu, cuda or cuda-graphs")),
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}
