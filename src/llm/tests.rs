//! The engine on a tiny exported decoder: batches, stops, limits, errors, scores.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::onnx::{GRAPH_FILE, Provider};
use crate::telemetry::Metrics;
use taiji_export::{ExportOptions, export};
use testkit::fixture;

fn model(name: &str, stop: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    export(&fixture(name), folder.path(), &ExportOptions::default()).unwrap();
    write_stop(folder.path(), stop);
    folder
}

fn write_stop(folder: &Path, stop: &str) {
    std::fs::write(folder.join(GENERATION_FILE), format!(r#"{{"stop": ["{stop}"], "other": 1}}"#)).unwrap();
}

fn options() -> LlmOptions {
    LlmOptions { threads: 1, max_rows: 5, max_len: 48, ..LlmOptions::default() }
}

fn words(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|number| format!("w{}", number * 7 % 120)).collect::<Vec<String>>().join(" ")
}

/// Log-probability of an answer whose tokens' were asked for.
fn total(generation: &Generation) -> f64 {
    assert_eq!(generation.logprobs.len(), generation.new_tokens);
    generation.logprobs.iter().sum()
}

fn request(numbers: std::ops::Range<usize>, max_new_tokens: usize) -> GenerateRequest {
    GenerateRequest { logprobs: true, ..GenerateRequest::new(words(numbers), max_new_tokens) }
}

fn score(llm: &OnnxLlm, prompt: &[u32], continuation: &[u32]) -> Result<Vec<f64>, LlmError> {
    llm.score_all(&[(prompt, continuation)]).remove(0)
}

fn load_error(folder: &Path) -> String {
    match OnnxLlm::load(folder, options()) {
        Err(error @ LlmError::Load { .. }) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it loaded"),
    }
}

#[test]
fn a_batch_writes_what_each_prompt_writes_alone() {
    let folder = model("qwen2", "</answer>");
    let metrics = Arc::new(Metrics::new().unwrap());
    let llm = OnnxLlm::load(folder.path(), LlmOptions { metrics: Some(metrics.clone()), ..options() }).unwrap();
    let requests: Vec<GenerateRequest> =
        [(0..9, 12), (3..4, 20), (5..30, 3), (40..47, 1), (2..19, 16), (60..63, 0), (70..72, 30)]
            .map(|(words, budget)| request(words, budget))
            .to_vec();
    let alone: Vec<Generation> =
        requests.iter().map(|one| futures::executor::block_on(llm.generate(one.clone())).unwrap()).collect();
    let steps = || metrics.llm_steps.with_label_values(&["decode"]).get_sample_count();
    let steps_alone = steps();
    for _ in 0..3 {
        let together: Vec<Generation> = llm.generate_all(&requests).into_iter().map(Result::unwrap).collect();
        for (left, right) in together.iter().zip(&alone) {
            assert_eq!((&left.text, left.new_tokens, left.finish), (&right.text, right.new_tokens, right.finish));
            assert!((total(left) - total(right)).abs() < 1e-3);
        }
    }
    let tokens: Vec<usize> = alone.iter().map(|one| one.new_tokens).collect();
    assert_eq!(tokens, [12, 20, 3, 1, 16, 0, 30]);
    assert!(llm.model_id().len() > 12 && llm.queue_depth().requests == 0 && llm.count_tokens("w1 w2</answer>") == 3);
    drop(llm); // its thread counts a request after it has answered it
    assert_eq!(metrics.llm_requests.with_label_values(&["done"]).get(), 4 * 6);
    assert_eq!(metrics.llm_tokens.with_label_values(&["generated"]).get(), 4 * 82);
    // How many join before the first is through is the machine's affair.
    let steps_together = steps() - steps_alone;
    assert!(
        steps_together < 3 * steps_alone,
        "rows that wait together decode together: {steps_together}, {steps_alone}"
    );
}

#[test]
fn writing_ends_with_the_stop_token() {
    let folder = model("qwen3-tied", "</answer>");
    let long = {
        let llm = OnnxLlm::load(folder.path(), options()).unwrap();
        llm.generate_all(&[request(0..9, 20)]).remove(0).unwrap()
    };
    let words: Vec<&str> = long.text.split(' ').collect();
    let stop_at = (2..20).find(|&index| !words[..index].contains(&words[index])).unwrap();
    write_stop(folder.path(), words[stop_at]);
    let llm = OnnxLlm::load(folder.path(), options()).unwrap();
    let short = llm.generate_all(&[request(0..9, 20)]).remove(0).unwrap();
    assert_eq!((long.finish, short.finish), (Finish::Length, Finish::Stop));
    assert_eq!(short.text, words[..=stop_at].join(" "));
    assert_eq!((short.new_tokens, short.prompt_tokens), (stop_at + 1, 9));
}

#[test]
fn scores_agree_with_what_was_generated() {
    let folder = model("qwen2-tied", "</answer>");
    let llm = OnnxLlm::load(folder.path(), options()).unwrap();
    let request = request(0..9, 14);
    let generation = llm.generate_all(std::slice::from_ref(&request)).remove(0).unwrap();
    let (prompt, continuation) = (llm.tokenize(&words(0..9)).unwrap(), llm.tokenize(&generation.text).unwrap());
    let scores = score(&llm, &prompt, &continuation).unwrap();
    assert_eq!(scores.len(), 14);
    assert!((scores.iter().sum::<f64>() - total(&generation)).abs() < 1e-3);
    assert!(score(&llm, &prompt, &[]).unwrap().is_empty());
    assert!(matches!(score(&llm, &[], &continuation), Err(LlmError::Invalid(_))));
    assert!(matches!(score(&llm, &prompt, &[4000]), Err(LlmError::Invalid(_))));
}

#[test]
fn limits_and_shutdown_are_typed_errors() {
    let folder = model("qwen2", "</answer>");
    let llm = OnnxLlm::load(folder.path(), options()).unwrap();
    assert_eq!(llm.prompt_limit(8), 40);
    let one = |request| futures::executor::block_on(llm.generate(request));
    assert!(matches!(one(request(0..41, 8)), Err(LlmError::PromptTooLong { tokens: 41, limit: 40 })));
    assert_eq!(one(request(0..40, 8)).unwrap().new_tokens, 8);
    assert!(matches!(one(request(0..0, 8)), Err(LlmError::Invalid(_))));
    llm.close();
    assert!(matches!(one(request(0..4, 8)), Err(LlmError::Closed)));
    assert!(matches!(llm.generate_all(&[request(0..4, 8)])[0], Err(LlmError::Closed)));
}

#[test]
fn what_does_not_fit_together_is_named() {
    let folder = model("qwen2", "</answer>");
    write_stop(folder.path(), "</nothing>");
    assert!(load_error(folder.path()).contains("</nothing>"));
    std::fs::remove_file(folder.path().join(GENERATION_FILE)).unwrap();
    assert!(load_error(folder.path()).contains(GENERATION_FILE));
    write_stop(folder.path(), "</answer>");

    let tokenizer = std::fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.replace("\"w9\": 12,", "\"w9\": 912,")).unwrap();
    let error = load_error(folder.path());
    assert!(error.contains("913 ids") && error.contains("128"), "{error}");

    let encoder = model("bert", "w1");
    assert!(load_error(encoder.path()).contains("the graph has no input"), "{}", load_error(encoder.path()));
    std::fs::remove_file(encoder.path().join(GRAPH_FILE)).unwrap();
    assert!(load_error(encoder.path()).contains("taiji-trainer export"));
}

/// Many kinds of requests; the same number gives the same request.
fn mixed(number: usize) -> GenerateRequest {
    let start = number * 3;
    let mut made = request(start..start + 1 + number * 7 % 30, 1 + number * 5 % 16);
    if number % 3 == 1 {
        let sampling = Sampling { temperature: 1.0, top_k: 20, top_p: 0.95, seed: number as u64, ..Sampling::GREEDY };
        made.sampling = Some(sampling);
    }
    if number % 4 == 2 {
        made.sampling = Some(Sampling { repetition_penalty: 1.3, ..Sampling::GREEDY });
    }
    made
}

/// The pool of every engine in these tests begins full of garbage (see `OnnxLlm::load`).
#[test]
fn joining_leaving_and_cancelling_change_nobody_elses_text() {
    let folder = model("qwen3-tied", "</answer>");
    let llm = OnnxLlm::load(folder.path(), LlmOptions { prefill_chunk: 16, ..options() }).unwrap();
    let alone: Vec<Generation> =
        (0..40).map(|number| futures::executor::block_on(llm.generate(mixed(number))).unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let llm = Arc::new(llm);
    for round in 0..4 {
        let tasks: Vec<_> = (0..40)
            .map(|number| {
                let llm = llm.clone();
                let task = runtime.spawn(async move { llm.generate(mixed(number)).await });
                // Some callers go away at once, others somewhere in between.
                if (number + round) % 5 == 0 {
                    task.abort();
                }
                task
            })
            .collect();
        for (number, task) in tasks.into_iter().enumerate() {
            match runtime.block_on(task) {
                Ok(written) => {
                    let (written, wanted) = (written.unwrap(), &alone[number]);
                    assert_eq!((&written.tokens, written.finish), (&wanted.tokens, wanted.finish), "request {number}");
                    let close = |(one, other): (&f64, &f64)| (one - other).abs() < 1e-4;
                    assert!(written.logprobs.iter().zip(&wanted.logprobs).all(close));
                }
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
    }
}

#[test]
fn a_long_prompt_read_in_pieces_is_the_same_prompt() {
    let folder = model("qwen2", "</answer>");
    let load = |prefill_chunk| OnnxLlm::load(folder.path(), LlmOptions { prefill_chunk, ..options() }).unwrap();
    let (whole, pieces) = (load(64), load(16));
    let requests: Vec<GenerateRequest> = (0..6).map(|number| request(number..number + 40, 8)).collect();
    for (one, other) in whole.generate_all(&requests).into_iter().zip(pieces.generate_all(&requests)) {
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one.tokens, other.tokens);
        assert!((total(&one) - total(&other)).abs() < 1e-3);
    }
    let tokens = whole.tokenize(&words(0..44)).unwrap();
    let (one, other) = (score(&whole, &tokens[..3], &tokens[3..]), score(&pieces, &tokens[..3], &tokens[3..]));
    assert!(one.unwrap().iter().zip(other.unwrap()).all(|(one, other)| (one - other).abs() < 1e-4));
}

#[test]
fn prompts_that_begin_with_the_prefix_go_on_from_it() {
    let folder = model("qwen3-tied", "</answer>");
    let prefix = words(0..20);
    let load =
        |prefix: &str| OnnxLlm::load(folder.path(), LlmOptions { prefix: prefix.to_owned(), ..options() }).unwrap();
    let (with, without) = (load(&prefix), load(""));
    // The whole prefix, a part of it, and something else.
    for (prompt, cached) in [(words(0..26), 20), (words(0..17), 16), (words(5..30), 0)] {
        let ask = GenerateRequest { logprobs: true, ..GenerateRequest::new(prompt, 10) };
        let one = with.generate_all(std::slice::from_ref(&ask)).remove(0).unwrap();
        let other = without.generate_all(&[ask]).remove(0).unwrap();
        assert_eq!((&one.tokens, one.cached_tokens, other.cached_tokens), (&other.tokens, cached, 0));
        assert!((total(&one) - total(&other)).abs() < 1e-3);
    }
}

#[test]
fn a_stream_says_what_the_whole_says() {
    let folder = model("qwen2", "</answer>");
    let metrics = Arc::new(Metrics::new().unwrap());
    let llm = OnnxLlm::load(folder.path(), LlmOptions { metrics: Some(metrics.clone()), ..options() }).unwrap();
    let whole = llm.generate_all(&[request(0..9, 12)]).remove(0).unwrap();
    let collect = |ask: GenerateRequest| {
        let mut pieces = futures::executor::block_on(llm.stream(ask)).unwrap();
        let (mut text, mut tokens) = (String::new(), Vec::new());
        loop {
            match pieces.blocking_recv().unwrap() {
                Piece::Token { token, text: new, logprob } => {
                    assert!(logprob.is_some());
                    tokens.push(token);
                    text.push_str(&new);
                }
                Piece::End(generation) => return (text, tokens, generation.unwrap()),
            }
        }
    };
    let (text, tokens, end) = collect(request(0..9, 12));
    assert_eq!((&text, &tokens, &end), (&whole.text, &whole.tokens, &whole));
    // A stop string in the middle is cut off, in both ways of asking.
    let middle = whole.text.split(' ').nth(5).unwrap().to_owned();
    let stopped = GenerateRequest { stop: vec![middle.clone()], ..request(0..9, 12) };
    let (text, _, end) = collect(stopped.clone());
    assert_eq!((text.as_str(), end.finish), (end.text.as_str(), Finish::Stop));
    assert!(whole.text.starts_with(&text) && !text.contains(&middle));
    assert_eq!(llm.generate_all(&[stopped]).remove(0).unwrap().text, text);
    // Nobody listens any more.
    drop(futures::executor::block_on(llm.stream(request(0..9, 30))).unwrap());
    drop(llm);
    assert_eq!(metrics.llm_requests.with_label_values(&["done"]).get(), 4);
    assert!(metrics.llm_tokens.with_label_values(&["generated"]).get() < 12 * 4 + 30, "the last one was cancelled");
}

#[test]
fn broken_weights_fail_requests_and_not_the_engine() {
    let checkpoint = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixture("qwen2").join(name), checkpoint.path().join(name)).unwrap();
    }
    let mut bytes = std::fs::read(fixture("qwen2").join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let norm = tensors.tensor("model.norm.weight").unwrap().data().as_ptr();
    let place = norm as usize - bytes.as_ptr() as usize;
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(checkpoint.path().join("model.safetensors"), bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    export(checkpoint.path(), folder.path(), &ExportOptions::default()).unwrap();
    write_stop(folder.path(), "</answer>");
    let llm = OnnxLlm::load(folder.path(), options()).unwrap();
    for answer in llm.generate_all(&[request(0..9, 4), request(0..40, 4)]) {
        assert!(matches!(answer, Err(LlmError::Run(message)) if message.contains("not finite")));
    }
    assert!(matches!(score(&llm, &[1, 2], &[3]), Err(LlmError::Run(_))));
    assert!(llm.healthy());
}

#[test]
fn what_the_machine_lacks_is_said_at_load() {
    let folder = model("qwen2", "</answer>");
    let refused = |options| match OnnxLlm::load(folder.path(), options) {
        Err(LlmError::Load { message, .. }) => message,
        _ => panic!("it loaded, or failed otherwise"),
    };
    let message = refused(LlmOptions { max_rows: 1 << 26, ..options() });
    assert!(message.contains("MiB") && message.contains("engine.max_rows"), "{message}");
    // No GPU here, or a runtime without CUDA: never a silent processor.
    let cuda = Provider::Cuda { device: 0, memory_limit: 0, graphs: false };
    if std::path::Path::new("/dev/nvidiactl").exists() {
        testkit::skip("there is a GPU");
        return;
    }
    let message = refused(LlmOptions { provider: cuda, ..options() });
    assert!(message.contains("engine.provider is cuda"), "{message}");
}

#[test]
fn deadlines_and_bad_sampling_are_typed_errors() {
    let folder = model("qwen2", "</answer>");
    let llm = OnnxLlm::load(folder.path(), options()).unwrap();
    let one = |request| futures::executor::block_on(llm.generate(request));
    let late = GenerateRequest { deadline: Some(std::time::Instant::now()), ..request(0..9, 30) };
    assert_eq!(one(late), Err(LlmError::Deadline { new_tokens: 0 }));
    let odd = GenerateRequest { sampling: Some(Sampling { top_p: 2.0, ..Sampling::GREEDY }), ..request(0..9, 3) };
    assert!(matches!(one(odd), Err(LlmError::Invalid(message)) if message.contains("top_p")));
    assert!(matches!(one(GenerateRequest::tokens(vec![5000], 3)), Err(LlmError::Invalid(_))));
}
