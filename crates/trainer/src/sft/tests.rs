//! Tokenizer, packing, resume, and what the default settings learn on a crude world.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::demo_world::examples;
use super::packing::{assemble, plan_epoch, tokenise};
use super::*;
use crate::model::{TrainBatch, load_checkpoint};
use taiji::llm::{GENERATION_FILE, LlmOptions, OnnxLlm};
use taiji_export::{ExportOptions, export};

fn texts(examples: &[SftExample]) -> impl Iterator<Item = &str> {
    examples.iter().flat_map(|example| [example.prompt.as_str(), example.completion.as_str()])
}

fn quick_settings() -> SftSettings {
    SftSettings {
        d_model: 32,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        ffn: 48,
        vocab: 400,
        max_len: 1024,
        batch_tokens: 2048,
        epochs: 1,
        max_steps: 9,
        log_every: 2,
        validate_every: 4,
        checkpoint_every: 2,
        warmup: 3,
        ..SftSettings::default()
    }
}

#[test]
fn tokenizer_is_reproducible_and_keeps_tags_whole() {
    let examples = examples(60, 1);
    let extra = vec!["<user>".to_owned()];
    let train = || TextTokenizer::train(texts(&examples), 700, &extra).unwrap();
    let tokenizer = train();
    assert_eq!(tokenizer.to_json().unwrap(), train().to_json().unwrap());
    assert_eq!(tokenizer.token_id("<|endoftext|>"), Some(0));
    assert_eq!(tokenizer.encode("</think><answer></answer><user>").unwrap().len(), 4);
    let text = "<think>Ünïcode, Guitar  100\n→ ok</think><answer>Music > Classic</answer>";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    assert!(TextTokenizer::train(["a"], 200, &extra).unwrap_err().to_string().contains("vocab"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_json().unwrap()).unwrap();
    let loaded = TextTokenizer::load(&path).unwrap();
    assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
}

#[test]
fn batches_hold_every_example_once_within_the_budget() {
    let examples = examples(50, 2);
    let tokenizer = TextTokenizer::train(texts(&examples), 600, &[]).unwrap();
    let (tokens, left_out) = tokenise(&tokenizer, &examples, 1024).unwrap();
    assert_eq!(left_out, 0);
    let plan = plan_epoch(&tokens, 2000, 5, 0);
    let mut seen: Vec<usize> = plan.concat();
    assert!(plan.iter().all(|batch| batch.iter().map(|&i| tokens[i].input_len()).sum::<usize>() <= 2000));
    assert_ne!(plan, plan_epoch(&tokens, 2000, 5, 1));
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());

    let batch = assemble(&tokens, &[3], 0.25);
    let prompt_targets = batch.weights.iter().filter(|weight| **weight == 0.25).count();
    assert_eq!(prompt_targets, tokens[3].prompt_len - 1);
    assert_eq!(batch.targets[prompt_targets], tokens[3].tokens[tokens[3].prompt_len]);
    assert_eq!(tokenise(&tokenizer, &examples, 10).unwrap().1, 50);
}

#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let examples = examples(80, 3);
    let tokenizer = TextTokenizer::train(texts(&examples), 400, &[]).unwrap();
    let (learn, validate) = examples.split_at(70);
    let settings = quick_settings();
    let whole = tempfile::tempdir().unwrap();
    let report = train(&settings, &tokenizer, learn, validate, whole.path(), &mut |_| {}).unwrap();
    assert_eq!((report.steps, report.curve.last().unwrap().step), (9, 9));
    assert!(report.validation_loss.unwrap() < 6.0);
    assert!(!whole.path().join("resume").exists());

    let killed = tempfile::tempdir().unwrap();
    let attempt = std::panic::catch_unwind(|| {
        let mut die_at_five = |event: &TrainEvent| assert!(event.step < 5, "killed");
        train(&settings, &tokenizer, learn, validate, killed.path(), &mut die_at_five)
    });
    assert!(attempt.is_err());
    assert!(killed.path().join("resume/step-4").exists());
    let other = SftSettings { lr: 1e-3, ..settings.clone() };
    let refused = train(&other, &tokenizer, learn, validate, killed.path(), &mut |_| {});
    assert!(matches!(refused, Err(SftError::OtherRun { .. })));
    // Another number of threads must not matter either.
    let single = SftSettings { threads: 1, ..settings };
    let resumed = train(&single, &tokenizer, learn, validate, killed.path(), &mut |_| {}).unwrap();
    assert_eq!(resumed.curve, report.curve);
    let bytes = |folder: &std::path::Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(bytes(whole.path()) == bytes(killed.path()), "weights differ");
}

#[test]
fn settings_come_from_toml_and_name_what_is_wrong() {
    let settings: SftSettings = toml::from_str("d_model = 192\nheads = 6").unwrap();
    assert_eq!((settings.d_model, settings.layers), (192, 4));
    assert!(toml::from_str::<SftSettings>("d_modle = 1").is_err());
    let bad = SftSettings { batch_tokens: 10, ..settings };
    assert!(bad.check().unwrap_err().to_string().contains("batch_tokens"));
}

#[test]
fn the_exported_graph_scores_as_the_trained_decoder_does() {
    let examples = examples(80, 4);
    let settings = quick_settings();
    let tokenizer = TextTokenizer::train(texts(&examples), settings.vocab, &[]).unwrap();
    let trained = tempfile::tempdir().unwrap();
    train(&settings, &tokenizer, &examples[8..], &examples[..8], trained.path(), &mut |_| {}).unwrap();
    let exported = tempfile::tempdir().unwrap();
    export(trained.path(), exported.path(), &ExportOptions::default()).unwrap();
    std::fs::write(exported.path().join(GENERATION_FILE), r#"{"stop": ["</answer>"]}"#).unwrap();

    let decoder = load_checkpoint(trained.path()).unwrap();
    let llm = OnnxLlm::load(exported.path(), LlmOptions::default()).unwrap();
    for example in &examples[..4] {
        let prompt = tokenizer.encode(&example.prompt).unwrap();
        let completion = tokenizer.encode(&example.completion).unwrap();
        let mut batch = TrainBatch::default();
        batch.push_group(&prompt, [completion.as_slice()], 0.0).unwrap();
        let likelihoods = decoder.log_likelihoods(&batch).unwrap();
        let scores = llm.score_all(&[(&prompt, &completion)]).remove(0).unwrap();
        assert_eq!(likelihoods.len(), scores.len());
        for (likelihood, score) in likelihoods.iter().zip(&scores) {
            assert!((likelihood - score).abs() < 1e-3, "trainer {likelihood}, graph {score}");
        }
    }
}
