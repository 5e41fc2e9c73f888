//! Tokenizer, packing, resume, and what the default settings learn on a crude world.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::demo_world::examples;
use super::packing::{BatchSize, assemble, plan_epoch, tokenise};
use super::training::kept_folder;
use super::*;
use crate::fit::{CurvePoint, FitError};
use crate::model::{LoraSettings, TokenBatch, TrainBatch, load_checkpoint};
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
    let (tokens, left_out) = tokenise(&tokenizer, &examples, 1024, None).unwrap();
    assert_eq!(left_out, 0);
    let plan = plan_epoch(&tokens, BatchSize::of_tokens(2000), 5, 0);
    let mut seen: Vec<usize> = plan.concat();
    assert!(plan.iter().all(|batch| batch.iter().map(|&i| tokens[i].input_len()).sum::<usize>() <= 2000));
    assert_ne!(plan, plan_epoch(&tokens, BatchSize::of_tokens(2000), 5, 1));
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    let sixes = plan_epoch(&tokens, BatchSize { tokens: 100_000, examples: 6 }, 5, 0);
    assert_eq!(sixes.iter().map(Vec::len).collect::<Vec<_>>(), [6, 6, 6, 6, 6, 6, 6, 6, 2]);
    assert_eq!(sixes.concat(), plan.concat());

    let batch = assemble(&tokens, &[3], 0.25);
    let prompt_targets = batch.weights.iter().filter(|weight| **weight == 0.25).count();
    assert_eq!(prompt_targets, tokens[3].prompt_len - 1);
    assert_eq!(batch.targets[prompt_targets], tokens[3].tokens[tokens[3].prompt_len]);
    assert_eq!(tokenise(&tokenizer, &examples, 10, None).unwrap().1, 50);
}

#[test]
fn a_text_of_a_foreign_tokenizer_ends_with_the_checkpoints_end() {
    let examples = examples(5, 2);
    let tokenizer = TextTokenizer::train(texts(&examples), 600, &[]).unwrap();
    let (own, _) = tokenise(&tokenizer, &examples, 1024, None).unwrap();
    let (foreign, left_out) = tokenise(&tokenizer, &examples, 1024, Some(9)).unwrap();
    assert_eq!(left_out, 0);
    for (without, with) in own.iter().zip(&foreign) {
        assert_eq!([without.tokens.as_slice(), &[9]].concat(), with.tokens);
        assert_eq!(without.prompt_len, with.prompt_len);
    }
    let nothing = SftExample { completion: String::new(), ..examples[0].clone() };
    assert_eq!(tokenise(&tokenizer, &[nothing], 1024, Some(9)).unwrap().1, 1);
}

/// Trains whole, and killed and begun again on one thread; expects the same weights and the same curve.
fn kill_and_rerun(settings: &SftSettings) -> SftReport {
    let examples = examples(80, 3);
    let tokenizer = TextTokenizer::train(texts(&examples), 400, &[]).unwrap();
    let (learn, validate) = examples.split_at(70);
    let whole = tempfile::tempdir().unwrap();
    let report = train(settings, &tokenizer, learn, validate, whole.path(), &mut |_| {}).unwrap();
    assert!(!whole.path().join("resume").exists());

    let killed = tempfile::tempdir().unwrap();
    let attempt = std::panic::catch_unwind(|| {
        let mut die_at_five = |event: &TrainEvent| assert!(event.point.step < 5, "killed");
        train(settings, &tokenizer, learn, validate, killed.path(), &mut die_at_five)
    });
    assert!(attempt.is_err());
    assert!(killed.path().join("resume/step-4").exists());
    let other = SftSettings { lr: 1e-3, ..settings.clone() };
    let refused = train(&other, &tokenizer, learn, validate, killed.path(), &mut |_| {});
    assert!(matches!(refused, Err(SftError::Fit(FitError::OtherRun { .. }))));
    // Another number of threads must not matter either.
    let single = SftSettings { threads: 1, ..settings.clone() };
    let resumed = train(&single, &tokenizer, learn, validate, killed.path(), &mut |_| {}).unwrap();
    let curve = |report: &SftReport| -> Vec<CurvePoint> {
        report.curve.iter().map(|point| CurvePoint { tokens_per_s: 0.0, ..point.clone() }).collect()
    };
    assert_eq!(curve(&resumed), curve(&report));
    let bytes = |folder: &std::path::Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(bytes(whole.path()) == bytes(killed.path()), "weights differ");
    report
}

#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let report = kill_and_rerun(&quick_settings());
    assert_eq!((report.steps, report.curve.last().unwrap().step), (9, 9));
    assert!(report.validation_loss.unwrap() < 6.0);
}

#[test]
fn weights_on_the_way_are_those_of_a_shorter_run_and_survive_a_kill() {
    let settings = SftSettings { keep_at: vec![3, 8], ..quick_settings() };
    let examples = examples(80, 3);
    let tokenizer = TextTokenizer::train(texts(&examples), 400, &[]).unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let run = |folder: &std::path::Path, progress: &mut (dyn FnMut(&TrainEvent) + Send)| {
        train(&settings, &tokenizer, &examples, &[], folder, progress)
    };
    run(folders[0].path(), &mut |_| {}).unwrap();
    let killed = std::panic::catch_unwind(|| run(folders[1].path(), &mut |event| assert!(event.point.step < 5)));
    assert!(killed.is_err());
    run(folders[1].path(), &mut |_| {}).unwrap();
    let weights = |folder: &std::path::Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    for step in [3, 8] {
        let [whole, killed] = folders.each_ref().map(|folder| kept_folder(folder.path(), step));
        assert!(weights(&whole) == weights(&killed));
        assert!(weights(&whole) != weights(folders[0].path()));
        load_checkpoint(&whole).unwrap();
        assert_eq!(TextTokenizer::load(&whole.join("tokenizer.json")).unwrap().vocab_size(), tokenizer.vocab_size());
    }
}

#[test]
fn a_killed_run_with_everything_on_continues_to_the_same_bytes() {
    let settings: SftSettings = toml::from_str(
        r#"
        d_model = 32
        layers = 2
        heads = 2
        kv_heads = 1
        ffn = 48
        vocab = 400
        max_len = 1024
        batch_tokens = 1024
        max_steps = 9
        warmup = 3
        log_every = 2
        validate_every = 2
        checkpoint_every = 2
        accumulate = 2
        dropout = 0.1
        label_smoothing = 0.1
        ema = 0.9
        keep_best = true
        patience = 3
        group = [{ names = ["model.layers.0.*"], frozen = true }, { names = ["*embed*"], lr = 1e-3, weight_decay = 0.0 }]
        "#,
    )
    .unwrap();
    let report = kill_and_rerun(&settings);
    assert!(report.trained_parameters < report.parameters && report.best_step.is_some());
}

#[test]
fn adapters_are_trained_from_a_checkpoint_and_merged() {
    let examples = examples(80, 3);
    let tokenizer = TextTokenizer::train(texts(&examples), 400, &[]).unwrap();
    let (learn, validate) = examples.split_at(70);
    let base = tempfile::tempdir().unwrap();
    train(&quick_settings(), &tokenizer, learn, validate, base.path(), &mut |_| {}).unwrap();
    let settings = SftSettings {
        checkpoint: Some(base.path().to_owned()),
        lora: Some(LoraSettings::default()),
        dropout: 0.1,
        ..quick_settings()
    };
    let report = kill_and_rerun(&settings);
    assert!(report.trained_parameters < report.parameters);

    let out = tempfile::tempdir().unwrap();
    train(&settings, &tokenizer, learn, validate, out.path(), &mut |_| {}).unwrap();
    let tokens = tokenizer.encode(&examples[0].prompt).unwrap();
    let batch = TrainBatch {
        input: TokenBatch::from_sequences([&tokens[..tokens.len() - 1]]),
        targets: tokens[1..].to_vec(),
        weights: vec![1.0; tokens.len() - 1],
    };
    let merged = load_checkpoint(out.path()).unwrap().log_likelihoods(&batch).unwrap();
    let mut apart = load_checkpoint(base.path()).unwrap();
    let before = apart.log_likelihoods(&batch).unwrap();
    apart.load_adapters(&out.path().join(training::ADAPTER_FOLDER)).unwrap();
    let apart = apart.log_likelihoods(&batch).unwrap();
    let farthest = |other: &[f64]| merged.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(farthest(&apart) < 1e-5 && farthest(&before) > 1e-3);

    let refuse = |settings: SftSettings, part: &str| {
        let message = train(&settings, &tokenizer, learn, validate, out.path(), &mut |_| {}).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refuse(SftSettings { checkpoint: None, ..settings.clone() }, "name a checkpoint in from");
    refuse(SftSettings { max_len: 2000, batch_tokens: 2048, ..settings.clone() }, "[sft] max_len");
    refuse(SftSettings { dropout: 1.0, ..settings }, "[sft] dropout");
}

#[test]
fn settings_come_from_toml_and_name_what_is_wrong() {
    let settings: SftSettings = toml::from_str("d_model = 192\nheads = 6").unwrap();
    assert_eq!((settings.d_model, settings.layers), (192, 4));
    assert!(toml::from_str::<SftSettings>("d_modle = 1").is_err());
    // Of a checkpoint that was trained before there was this setting, the hash holds.
    assert!(!toml::to_string(&settings).unwrap().contains("initializer_range"));
    assert!((settings.decoder_config(300, None).initializer_range - 192f64.powf(-0.5)).abs() < 1e-12);
    let small = SftSettings { initializer_range: 0.02, ..settings.clone() };
    assert!(toml::to_string(&small).unwrap().contains("initializer_range = 0.02"));
    assert_eq!(small.decoder_config(300, None).initializer_range, 0.02);
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
