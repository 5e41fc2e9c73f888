//! The engine on a tiny exported decoder: batches, stops, limits, errors, scores.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::telemetry::Metrics;
use crate::train::export::{ExportOptions, export};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

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
    for _ in 0..3 {
        let together: Vec<Generation> = llm.generate_all(&requests).into_iter().map(Result::unwrap).collect();
        for (left, right) in together.iter().zip(&alone) {
            assert_eq!((&left.text, left.new_tokens, left.finish), (&right.text, right.new_tokens, right.finish));
            assert!((left.logprob - right.logprob).abs() < 1e-3);
        }
    }
    let tokens: Vec<usize> = alone.iter().map(|one| one.new_tokens).collect();
    assert_eq!(tokens, [12, 20, 3, 1, 16, 0, 30]);
    assert!(llm.model_id().len() > 12 && llm.queue_depth().requests == 0 && llm.count_tokens("w1 w2</answer>") == 3);
    drop(llm); // its thread counts a request after it has answered it
    assert_eq!(metrics.llm_requests.with_label_values(&["done"]).get(), 4 * 6);
    assert_eq!(metrics.llm_tokens.with_label_values(&["generated"]).get(), 4 * 82);
    let steps = metrics.llm_steps.with_label_values(&["decode"]).get_sample_count();
    assert!(steps < 3 * 82, "rows that wait together decode together: {steps} steps");
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
    assert!((scores.iter().sum::<f64>() - generation.logprob).abs() < 1e-3);
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
    assert!(load_error(encoder.path()).contains("seqlens_k"), "{}", load_error(encoder.path()));
    std::fs::remove_file(encoder.path().join(GRAPH_FILE)).unwrap();
    assert!(load_error(encoder.path()).contains("taiji-trainer export"));
}
