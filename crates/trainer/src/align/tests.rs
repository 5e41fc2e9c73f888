//! A small policy, real roll-outs: it learns what is rewarded, goes on after a fall, and says what is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::model::{
    Decoder, DecoderConfig, DeviceKind, LoraSettings, TokenBatch, TrainBatch, load_checkpoint, save_checkpoint,
};
use crate::models::export_for_engine;
use crate::nn::Module;
use crate::nn::tensor_file::write_atomically;
use crate::reward::{Answered, Reward, RewardSet};
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::sft::{ADAPTER_FOLDER, TextTokenizer};
use crate::weighting::{RuleKind, WeightingSettings};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use taiji::llm::GENERATION_FILE;
use taiji::prompt::{ANSWER_CLOSE, PromptMode};
use taiji_export::Precision;

const LONGEST: usize = 8;

/// Share of letters from a to m; fails at one call.
struct Letters {
    from: u8,
    to: u8,
    calls: usize,
    fails_at: Option<usize>,
    /// A call whose values are numbers, but too large for a gradient.
    overflows_at: Option<usize>,
}

fn letters(from: u8, to: u8) -> Box<Letters> {
    Box::new(Letters { from, to, calls: 0, fails_at: None, overflows_at: None })
}

impl Reward for Letters {
    fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        self.calls += 1;
        let fails = self.fails_at == Some(self.calls);
        let scale = if self.overflows_at == Some(self.calls) { 1e60 } else { 1.0 };
        let share = |text: &str| {
            let hits = text.bytes().filter(|byte| (self.from..=self.to).contains(byte)).count();
            if fails { f64::NAN } else { scale * hits as f64 / text.len().max(1) as f64 }
        };
        Ok(answers.iter().map(|answer| Some(share(answer.text))).collect())
    }
}

struct Bed {
    folder: tempfile::TempDir,
    tokenizer: TextTokenizer,
    prompts: Vec<PromptCase>,
}

impl Bed {
    fn new() -> Self {
        let texts: Vec<String> = (0..40).map(|number| format!("what does user {number} want")).collect();
        let tokenizer = TextTokenizer::train(texts.iter().map(String::as_str), 270, &[]).unwrap();
        let config = DecoderConfig::small(tokenizer.vocab_size(), 32, 2, 2, 1, 64);
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("sft");
        save_checkpoint(
            &Decoder::random(&DecoderConfig { max_position_embeddings: 64, ..config }, 3).unwrap(),
            &checkpoint,
        )
        .unwrap();
        write_atomically(&checkpoint.join(TOKENIZER_FILE), tokenizer.to_json().unwrap().as_bytes()).unwrap();
        let prompt = |(number, text): (usize, &String)| PromptCase {
            user_id: format!("u{number}"),
            tokens: tokenizer.encode(text).unwrap(),
            mode: PromptMode::Think,
            truth: None,
        };
        let prompts = texts.iter().take(12).enumerate().map(prompt).collect();
        Self { folder, tokenizer, prompts }
    }

    /// Its tokenizer no longer has the answer's end as one token.
    fn estrange(&mut self) {
        let path = self.folder.path().join("sft").join(TOKENIZER_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(ANSWER_CLOSE));
        write_atomically(&path, text.replace(ANSWER_CLOSE, "[unused]").as_bytes()).unwrap();
        write_atomically(&path.with_file_name("tokenizer_config.json"), b"{}").unwrap();
        self.tokenizer = TextTokenizer::load(&path).unwrap();
    }

    /// Its texts end by this token.
    fn end_by(&self, token: u32) {
        let path = self.folder.path().join("sft/config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["eos_token_id"] = token.into();
        write_atomically(&path, config.to_string().as_bytes()).unwrap();
    }

    fn rewards(&self, fails_at: Option<usize>) -> RewardSet {
        self.set_of(Letters { fails_at, ..*letters(b'a', b'm') })
    }

    fn set_of(&self, first: Letters) -> RewardSet {
        let free = [f64::NEG_INFINITY, f64::INFINITY];
        RewardSet::default().with("early", Box::new(first), false, free).with(
            "vowels",
            letters(b'e', b'e'),
            false,
            free,
        )
    }

    fn start(&self) -> Start {
        let text = |number: usize| ["abz", "zee", "q", "maze"][number % 4].to_string();
        let written: HashMap<String, Vec<String>> = self
            .prompts
            .iter()
            .enumerate()
            .map(|(at, prompt)| (prompt.user_id.clone(), (0..4).map(|number| text(at + number)).collect()))
            .collect();
        let mut rewards = self.rewards(None);
        let (values, group) = start_values(&self.prompts, &written, &|text| text.len(), &mut rewards).unwrap();
        Start::of(&rewards.names(), &values, group).unwrap()
    }

    fn run(&self, settings: &AlignSettings, fails_at: Option<usize>, out: &str) -> Result<AlignReport, AlignError> {
        self.run_with(settings, self.rewards(fails_at), out)
    }

    fn run_with(&self, settings: &AlignSettings, rewards: RewardSet, out: &str) -> Result<AlignReport, AlignError> {
        let sources = Sources {
            checkpoint: &self.folder.path().join("sft"),
            tokenizer: &self.tokenizer,
            prompts: &self.prompts,
            rewards,
            start: Some(self.start()),
            longest: LONGEST,
        };
        train(settings, sources, &self.folder.path().join(out), &mut |_| {})
    }

    /// Log-likelihoods of a prompt's tokens.
    fn likelihoods(&self, decoder: &Decoder) -> Vec<f64> {
        let tokens = &self.prompts[0].tokens;
        let input = TokenBatch::from_sequences([tokens.as_slice()]);
        let batch = TrainBatch { input, targets: tokens.clone(), weights: vec![1.0; tokens.len()] };
        decoder.log_likelihoods(&batch).unwrap()
    }

    fn bytes(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(out).join("model.safetensors")).unwrap()
    }
}

fn settings(rule: RuleKind) -> AlignSettings {
    AlignSettings {
        steps: 6,
        prompts: 3,
        group: Some(4),
        lr: 3e-3,
        warmup: 0,
        threads: 1,
        log_every: 2,
        checkpoint_every: 2,
        // Nothing ends in so short a time.
        truncated: Truncated::Score,
        weighting: WeightingSettings { rule, ..WeightingSettings::default() },
        ..AlignSettings::default()
    }
}

fn figures(folder: &Path) -> Vec<StepFigures> {
    let text = std::fs::read_to_string(folder.join("steps.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_policy_learns_what_is_rewarded() {
    let bed = Bed::new();
    let settings = AlignSettings { steps: 60, group: Some(8), prompts: 4, lr: 1e-2, ..settings(RuleKind::Nash) };
    let report = bed.run(&settings, None, "learned").unwrap();
    let steps = figures(&bed.folder.path().join("learned"));
    assert_eq!((steps.len(), report.steps, report.skipped), (60, 60, 0));
    let mean = |name: &str, part: &[StepFigures]| {
        part.iter().map(|step| step.get(name).unwrap()).sum::<f64>() / part.len() as f64
    };
    for name in ["rewards/early/mean", "rewards/vowels/mean"] {
        let (before, after) = (mean(name, &steps[..5]), mean(name, &steps[50..]));
        assert!(after > before + 0.2, "{name}: {before} → {after}");
    }
    // Sampler and trainer compute the same model.
    for step in &steps {
        assert!(step.get("sampling/sampling_logp_difference/mean").unwrap() < 1e-4, "{step:?}");
        assert!(step.get("sampling/sampling_logp_difference/max").unwrap() < 1e-2, "{step:?}");
    }
    let names = [
        "completions/mean_length",
        "frac_reward_zero_std",
        "entropy",
        "weights/early",
        "step_time/sync",
        "conflict_share",
    ];
    assert!(names.iter().all(|name| report.last.get(name).is_some()), "{:?}", report.last.values.keys());
    // What a run needs while it goes on does not stay.
    for gone in ["sampler", "resume", "replay.toml"] {
        assert!(!bed.folder.path().join("learned").join(gone).exists(), "{gone}");
    }
}

/// Adapters are trained, the engine draws from base and adapters together, and what is kept is both; a run that fell goes on to the same.
#[test]
fn adapters_alone_are_trained_and_kept_merged_and_apart() {
    let bed = Bed::new();
    let lora = LoraSettings { rank: 4, alpha: 8.0, last_layers: 1, ..LoraSettings::default() };
    let settings =
        AlignSettings { lora: Some(lora), steps: 40, group: Some(8), prompts: 4, lr: 3e-2, ..settings(RuleKind::Gdpo) };
    let report = bed.run(&settings, None, "whole").unwrap();
    let gaps = figures(&bed.folder.path().join("whole"));
    assert!(gaps.iter().all(|step| step.get("sampling/sampling_logp_difference/mean").unwrap() < 1e-4), "{gaps:?}");
    let early = |part: &[StepFigures]| {
        part.iter().map(|step| step.get("rewards/early/mean").unwrap()).sum::<f64>() / part.len() as f64
    };
    assert!(early(&gaps[35..]) > early(&gaps[..5]) + 0.1, "{report:?}");
    let open = |folder: &str| load_checkpoint(&bed.folder.path().join(folder)).unwrap();
    let (mut base, merged) = (open("sft"), open("whole"));
    let same = |name: &str| {
        let values = |decoder: &Decoder| {
            let found = decoder.parameters().into_iter().find(|parameter| parameter.name == name).unwrap();
            found.var.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        values(&base) == values(&merged)
    };
    assert!(same("model.layers.0.self_attn.qkv_proj.weight") && same("model.embed_tokens.weight"));
    assert!(!same("model.layers.1.self_attn.qkv_proj.weight"));
    base.load_adapters(&bed.folder.path().join("whole").join(ADAPTER_FOLDER)).unwrap();
    base.merge_adapters().unwrap();
    assert!(bed.likelihoods(&base).iter().zip(bed.likelihoods(&merged)).all(|(a, b)| (a - b).abs() < 1e-5));
    // Fails behind the state of the 38th step.
    bed.run(&settings, Some(39), "fallen").unwrap_err();
    bed.run(&settings, None, "fallen").unwrap();
    assert!(bed.bytes("whole") == bed.bytes("fallen"));
}

/// A gradient of one reward that is no number costs the step, not the run, and the rule hears nothing of it, before a fall and behind it.
#[test]
fn a_step_whose_probe_is_no_number_is_skipped() {
    let bed = Bed::new();
    let settings = AlignSettings {
        resample: Some(0),
        prompts: 4,
        weighting: WeightingSettings { rule: RuleKind::PopoRewards, ..WeightingSettings::default() },
        ..settings(RuleKind::PopoRewards)
    };
    let run = |fails_at: Option<usize>, out: &str| {
        let huge = Letters { overflows_at: Some(3), fails_at, ..*letters(b'a', b'm') };
        bed.run_with(&settings, bed.set_of(huge), out)
    };
    let report = run(None, "whole").unwrap();
    assert_eq!((report.steps, report.skipped), (6, 1));
    run(Some(5), "fallen").unwrap_err();
    // The calls of a second attempt count from the fourth step on.
    let report = bed.run_with(&settings, bed.set_of(*letters(b'a', b'm')), "fallen").unwrap();
    assert_eq!(report.skipped, 1);
    assert!(bed.bytes("whole") == bed.bytes("fallen"));
}

/// A checkpoint of somebody else: the tag is several tokens, a token of its own ends the text, and what it says of its texts stays with it.
#[test]
fn a_checkpoint_of_somebody_else_is_rolled_out_to_its_own_end() {
    let mut bed = Bed::new();
    bed.estrange();
    let settings = AlignSettings { steps: 2, checkpoint_every: 0, ..settings(RuleKind::Gdpo) };
    let refused = bed.run(&settings, None, "endless").unwrap_err().to_string();
    assert!(refused.contains("nothing says where an answer ends"), "{refused}");
    bed.end_by(7);
    bed.run(&settings, None, "foreign").unwrap();
    let companion = std::fs::read_to_string(bed.folder.path().join("foreign/tokenizer_config.json")).unwrap();
    assert_eq!(companion, "{}");
    let graphs = bed.folder.path().join("graphs");
    export_for_engine(&bed.folder.path().join("foreign"), &graphs, Precision::F32).unwrap();
    let generation: serde_json::Value =
        serde_json::from_slice(&std::fs::read(graphs.join(GENERATION_FILE)).unwrap()).unwrap();
    assert_eq!(generation, serde_json::json!({ "stop_token_ids": [7] }));
}

/// Nash remembers gains, guarded POPO norms, indicators and weights: both must be what they were.
#[test]
fn a_run_that_fell_goes_on_to_the_same_weights() {
    for rule in [RuleKind::Nash, RuleKind::PopoGuarded, RuleKind::Random] {
        let bed = Bed::new();
        let settings = AlignSettings { resample: Some(0), prompts: 4, ..settings(rule) };
        bed.run(&settings, None, "whole").unwrap();
        // Fails in the fifth step, behind the state of the fourth.
        let fallen = bed.run(&settings, Some(5), "fallen").unwrap_err();
        assert!(fallen.to_string().contains("reward early of answer 0 is NaN"), "{fallen}");
        bed.run(&settings, None, "fallen").unwrap();
        assert!(bed.bytes("whole") == bed.bytes("fallen"), "{rule:?}");
        // JSON brings numbers back to the last digit but one.
        let texts = |out: &str| -> Vec<String> {
            let lines = std::fs::read_to_string(bed.folder.path().join(out).join("samples.jsonl")).unwrap();
            let completion =
                |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["completion"].to_string();
            lines.lines().map(completion).collect()
        };
        assert_eq!(texts("whole"), texts("fallen"));
        assert_eq!(figures(&bed.folder.path().join("fallen")).len(), 6);
    }
}

#[test]
fn every_form_of_the_objective_takes_a_step() {
    let bed = Bed::new();
    for (number, loss) in
        [LossKind::Grpo, LossKind::Dapo, LossKind::DrGrpo, LossKind::Gspo, LossKind::Cispo].into_iter().enumerate()
    {
        // Roll-outs are two steps old at most, so that ratios are not 1; a divergence is paid for.
        let settings =
            AlignSettings { loss: Some(loss), sync_every: 2, kl: Some(0.01), steps: 4, ..settings(RuleKind::Gdpo) };
        let out = format!("loss-{number}");
        bed.run(&settings, None, &out).unwrap();
        let steps = figures(&bed.folder.path().join(&out));
        assert!(steps[3].get("kl").unwrap() > 0.0, "{loss:?}");
        assert!(steps.iter().all(|step| step.get("step_time/sync").is_some() == (step.step % 2 == 1)), "{steps:?}");
        // The engine is compared where its weights are the present ones; between syncs the policy's own way is told apart.
        let told = |name: &str| steps.iter().map(|step| step.get(name).is_some()).collect::<Vec<_>>();
        assert_eq!(told("sampling/kl"), [true, false, true, false]);
        assert_eq!(told("policy_since_sync/kl"), [false, true, false, true]);
        assert!(bed.bytes(&out) != std::fs::read(bed.folder.path().join("sft/model.safetensors")).unwrap());
    }
}

/// Sampler and trainer differ by rounding alone, so that both ways of making up for it weigh about 1; a cap of responses is another run.
#[test]
fn whole_responses_can_be_corrected() {
    let bed = Bed::new();
    let by = |correction: CorrectionBy, out: &str| {
        bed.run(&AlignSettings { correction, ..settings(RuleKind::Gdpo) }, None, out).unwrap();
        figures(&bed.folder.path().join(out))
    };
    let (tokens, responses) = (by(CorrectionBy::Token, "tokens"), by(CorrectionBy::Response, "responses"));
    for (one, other) in tokens.iter().zip(&responses) {
        let ratio = |step: &StepFigures| step.get("sampling/importance_sampling_ratio/mean").unwrap();
        assert!((ratio(one) - 1.0).abs() < 1e-3 && (ratio(other) - 1.0).abs() < 1e-3, "{one:?} {other:?}");
    }
    assert!(bed.bytes("tokens") != bed.bytes("responses"));
}

/// Colder, what is drawn is surer; what is kept answers as the start does, but for what was learned.
#[test]
fn a_policy_is_trained_at_a_temperature_and_kept_without_it() {
    let bed = Bed::new();
    let entropy = |temperature: f64, out: &str| {
        let settings = AlignSettings { temperature, lr: 1e-12, steps: 2, ..settings(RuleKind::Gdpo) };
        bed.run(&settings, None, out).unwrap();
        figures(&bed.folder.path().join(out))[0].get("entropy").unwrap()
    };
    let (warm, cold) = (entropy(1.0, "warm"), entropy(0.25, "cold"));
    assert!(cold < warm - 0.1, "{warm} {cold}");
    let values = |out: &str| bed.likelihoods(&load_checkpoint(&bed.folder.path().join(out)).unwrap());
    let (start, kept) = (values("sft"), values("cold"));
    assert!(start.iter().zip(&kept).all(|(one, other)| (one - other).abs() < 1e-4), "{start:?} {kept:?}");
}

#[test]
fn groups_without_a_difference_are_drawn_again() {
    struct Even(usize);
    impl Reward for Even {
        /// Every second prompt's answers are worth the same.
        fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
            self.0 += 1;
            let number = |answer: &Answered<'_>| answer.user_id[1..].parse::<usize>().unwrap();
            let value =
                |(at, answer): (usize, &Answered<'_>)| Some(if number(answer) % 2 == 0 { 0.5 } else { at as f64 });
            Ok(answers.iter().enumerate().map(value).collect())
        }
    }
    let bed = Bed::new();
    let run = |resample: usize, out: &str| {
        let settings = AlignSettings { resample: Some(resample), steps: 4, ..settings(RuleKind::Gdpo) };
        let rewards = RewardSet::default().with("even", Box::new(Even(0)), false, [f64::NEG_INFINITY, f64::INFINITY]);
        let sources = Sources {
            checkpoint: &bed.folder.path().join("sft"),
            tokenizer: &bed.tokenizer,
            prompts: &bed.prompts,
            rewards,
            start: None,
            longest: LONGEST,
        };
        let report = train(&settings, sources, &bed.folder.path().join(out), &mut |_| {}).unwrap();
        (report.drawn, figures(&bed.folder.path().join(out)))
    };
    let (drawn, steps) = run(0, "once");
    assert_eq!(drawn, 12);
    assert!(steps.iter().any(|step| step.get("frac_reward_zero_std").unwrap() > 0.0));
    let (drawn, steps) = run(8, "again");
    assert!(drawn > 12, "{drawn}");
    assert!(steps.iter().all(|step| step.get("frac_reward_zero_std") == Some(0.0)), "{steps:?}");
}

/// What is drawn anew for its equal rewards was asked nevertheless: gains count it.
#[test]
fn gains_are_of_every_prompt_that_was_asked() {
    #[derive(Clone, Default)]
    struct Half(Arc<Mutex<Vec<f64>>>);
    impl Reward for Half {
        fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
            let is_even = |answer: &Answered<'_>| answer.user_id[1..].parse::<usize>().unwrap() % 2 == 0;
            let value = |(at, answer)| if is_even(answer) { 9.0 } else { (at % 4) as f64 };
            let values: Vec<f64> = answers.iter().enumerate().map(value).collect();
            self.0.lock().unwrap().extend_from_slice(&values);
            Ok(values.into_iter().map(Some).collect())
        }
    }
    let bed = Bed::new();
    let half = Half::default();
    let settings = AlignSettings { resample: Some(8), steps: 1, ..settings(RuleKind::Nash) };
    let sources = Sources {
        checkpoint: &bed.folder.path().join("sft"),
        tokenizer: &bed.tokenizer,
        prompts: &bed.prompts,
        rewards: RewardSet::default().with("half", Box::new(half.clone()), false, [f64::NEG_INFINITY, f64::INFINITY]),
        start: Some(Start { means: vec![vec![0.5]; bed.prompts.len()], deviations: vec![1.0] }),
        longest: LONGEST,
    };
    train(&settings, sources, &bed.folder.path().join("out"), &mut |_| {}).unwrap();
    let steps = figures(&bed.folder.path().join("out"));
    let asked = half.0.lock().unwrap();
    let mean = asked.iter().sum::<f64>() / asked.len() as f64;
    assert!(asked.contains(&9.0) && mean > 2.0, "{asked:?}");
    assert!((steps[0].get("gains/half").unwrap() - (mean - 0.5)).abs() < 1e-9, "{steps:?}");
    assert!(steps[0].get("rewards/half/mean").unwrap() < 2.0, "only what differs is learned from: {steps:?}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |settings: AlignSettings| settings.check().unwrap_err().to_string();
    let of = || settings(RuleKind::Nash);
    assert!(refused(AlignSettings { group: Some(1), ..of() }).contains("group must be at least 2"));
    assert!(refused(AlignSettings { clip: Some([1.5, 0.2]), ..of() }).contains("clip"));
    assert!(
        refused(AlignSettings { sync_every: 4, ..of() }).contains("checkpoint_every must be a multiple of sync_every")
    );
    let on_a_gpu = AlignSettings { device: DeviceKind::Cuda, ..of() };
    assert!(refused(on_a_gpu.clone()).contains("max_gap 0.001 is for f32"), "{}", refused(on_a_gpu.clone()));
    AlignSettings { max_gap: 0.05, ..on_a_gpu }.check().unwrap();
    assert!(refused(AlignSettings { lr: 0.0, ..of() }).contains("lr must be positive"));
    assert!(refused(AlignSettings { reward: vec![], ..of() }).contains("reward is empty"));
    let odd = AlignSettings { prompts: 3, ..settings(RuleKind::PopoGuarded) };
    assert!(refused(odd).contains("prompts must be even"));
    assert!(refused(AlignSettings { keep_at: vec![7], ..of() }).contains("keep_at must be from 1 to steps 6"));
    let weights = WeightingSettings { weights: Some(vec![1.0]), ..WeightingSettings::default() };
    assert!(refused(AlignSettings { weighting: weights, ..of() }).contains("weights: 2 expected, 1 found"));
    let paper = AlignSettings { preset: Preset::Paper, ..AlignSettings::default() };
    assert_eq!((paper.group(), paper.loss(), paper.kl(), paper.clip()), (4, LossKind::Grpo, 1e-3, [0.2, 0.2]));
    let modern = AlignSettings::default();
    assert_eq!((modern.group(), modern.loss(), modern.kl(), modern.clip()), (8, LossKind::Dapo, 0.0, [0.2, 0.28]));
    // A rule that needs the start without one; a prompt that does not fit.
    let bed = Bed::new();
    let run = |start: Option<Start>, longest: usize| {
        let sources = Sources {
            checkpoint: &bed.folder.path().join("sft"),
            tokenizer: &bed.tokenizer,
            prompts: &bed.prompts,
            rewards: bed.rewards(None),
            start,
            longest,
        };
        train(&settings(RuleKind::Nash), sources, &bed.folder.path().join("refused"), &mut |_| {})
            .unwrap_err()
            .to_string()
    };
    assert!(run(None, LONGEST).contains("the rule nash needs"), "{}", run(None, LONGEST));
    assert!(run(Some(bed.start()), 64).contains("do not fit into 64 positions"));
    let other = HashMap::new();
    let missing = start_values(&bed.prompts, &other, &|_| 0, &mut bed.rewards(None)).unwrap_err().to_string();
    assert!(missing.contains("answers for user u0"), "{missing}");
}
