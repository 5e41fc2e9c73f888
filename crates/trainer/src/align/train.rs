//! A run from its checkpoint to its checkpoint.

use super::log::Log;
use super::metrics::{Likelihoods, StepFigures};
use super::prompts::Order;
use super::sampler::{Room, Sampler};
use super::task::Policy;
use super::{AlignError, AlignSettings, PromptCase, Start};
use crate::fit::{self, AdamW, CurvePoint, Fitted, ParameterSet, TrainEvent};
use crate::model::{Decoder, load_checkpoint};
use crate::nn::tensor_file::write_json;
use crate::nn::{Module, with_values};
use crate::reward::RewardSet;
use crate::sft::tokenizer::TextTokenizer;
use crate::sft::{ADAPTER_FOLDER, keep_companions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Instant;

/// Name of the report's file.
pub const REPORT_FILE: &str = "align_report.json";
/// Steps of the end that a report's means are over.
const LAST: usize = 20;

/// What a run is made of.
pub struct Sources<'a> {
    /// Folder of the policy of the start.
    pub checkpoint: &'a Path,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// What is asked.
    pub prompts: &'a [PromptCase],
    /// What answers are worth.
    pub rewards: RewardSet,
    /// What they were worth under the policy of the start.
    pub start: Option<Start>,
    /// Most tokens of an answer.
    pub longest: usize,
}

/// What a run reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlignReport {
    /// Steps, skipped ones included.
    pub steps: u64,
    /// Steps skipped, for their loss or gradient was not finite.
    pub skipped: u64,
    /// Prompts that may be asked.
    pub prompts: usize,
    /// Prompts drawn, those drawn again included.
    pub drawn: usize,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds, earlier attempts of a resumed run included.
    pub seconds: f64,
    /// Deviations of the rewards in the groups of the start, where known.
    pub start_deviations: Vec<f64>,
    /// Means over the last steps, by name.
    pub last: StepFigures,
    /// The run over time.
    pub curve: Vec<CurvePoint>,
}

/// Aligns a policy, from the newest resumable state in `out` if there is one, and writes checkpoint, tokenizer, report, figures
/// (`steps.jsonl`) and samples (`samples.jsonl`) into `out`; adapters go into a folder of their own and are merged into the checkpoint.
pub fn train(
    settings: &AlignSettings,
    sources: Sources<'_>,
    out: &Path,
    progress: &mut (dyn FnMut(&TrainEvent) + Send),
) -> Result<AlignReport, AlignError> {
    settings.check()?;
    if sources.prompts.is_empty() {
        return Err(AlignError::NoPrompts("no user has a next purchase and something before it".into()));
    }
    if settings.weighting.needs_start() && sources.start.is_none() {
        return Err(AlignError::NoStart { rule: format!("{:?}", settings.weighting.rule).to_lowercase() });
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(settings.threads)
        .build()
        .map_err(|error| AlignError::Threads { threads: settings.threads, message: error.to_string() })?;
    pool.install(|| {
        let (checkpoint, prompts) = (sources.checkpoint, sources.prompts.len());
        let start_deviations = sources.start.as_ref().map_or(Vec::new(), |start| start.deviations.clone());
        let mut policy = prepare(settings, sources, out, &start_deviations)?;
        let set = ParameterSet::grouped(&policy.decoder, &settings.groups(), settings.lr)?;
        let run_id = run_id(settings, &policy)?;
        let optimizer = AdamW::new(set, settings.optimizer());
        let fitted = fit::run(&mut policy, optimizer, &settings.fitting(), &run_id, out, progress)?;
        policy.keep(out)?;
        if policy.decoder.has_adapters() {
            policy.decoder.save_adapters(checkpoint, &out.join(ADAPTER_FOLDER))?;
        }
        keep_companions(checkpoint, out)?;
        policy.log.write(out)?;
        let report = report(&policy.log, fitted, prompts, start_deviations);
        write_json(&out.join(REPORT_FILE), &report)?;
        drop(policy);
        // In this order: as long as there is a state, what it needs is there.
        fit::clear(out)?;
        Log::clear(out)?;
        Ok(report)
    })
}

fn prepare<'a>(
    settings: &'a AlignSettings,
    sources: Sources<'a>,
    out: &'a Path,
    deviations: &[f64],
) -> Result<Policy<'a>, AlignError> {
    let Sources { checkpoint, tokenizer, prompts, rewards, start, longest } = sources;
    let mut decoder = load_checkpoint(checkpoint)?;
    decoder.set_device(settings.device)?;
    if let Some(lora) = &settings.lora {
        decoder.add_adapters(lora, settings.seed)?;
    }
    let longest_prompt = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let positions = decoder.config().max_position_embeddings;
    if longest_prompt + longest > positions {
        let message =
            format!("of {longest_prompt} tokens and an answer of {longest} do not fit into {positions} positions");
        return Err(AlignError::NoPrompts(format!("a prompt {message}")));
    }
    decoder.scale_logits(1.0 / settings.temperature)?;
    let mut reference: Option<Decoder> = (settings.kl() > 0.0).then(|| load_checkpoint(checkpoint)).transpose()?;
    if let Some(reference) = &mut reference {
        reference.set_device(settings.device)?;
        reference.scale_logits(1.0 / settings.temperature)?;
    }
    let room = Room { rows: settings.prompts * settings.group(), prompt: longest_prompt, answer: longest };
    let sampler = Sampler::new(out.join("sampler"), tokenizer.to_json()?, room, settings.threads, settings.device);
    let counted = rewards.telemetry().cloned().unwrap_or_default();
    let rule = settings.weighting.build(rewards.names().len(), deviations, settings.seed)?;
    Ok(Policy {
        settings,
        tokenizer,
        prompts,
        start,
        longest,
        probe_set: ParameterSet::grouped(&decoder, &settings.groups(), settings.lr)?,
        decoder,
        reference,
        sampler,
        rewards,
        rule,
        order: Order::new(prompts.len(), settings.seed),
        log: Log::default(),
        out,
        figures: StepFigures::default(),
        likelihoods: Likelihoods::default(),
        counted,
        is_void: false,
        began: Instant::now(),
    })
}

/// Hash of what a resumable state must agree with; truths, rewards' sources and start decide the folder's name already.
fn run_id(settings: &AlignSettings, policy: &Policy<'_>) -> Result<String, AlignError> {
    let text = serde_json::to_string(&settings.decisive())
        .map_err(|error| AlignError::Settings { field: "settings", message: error.to_string() })?;
    let mut hash = Sha256::new();
    hash.update(text.as_bytes());
    for prompt in policy.prompts {
        hash.update(prompt.user_id.as_bytes());
        prompt.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    }
    for parameter in policy.decoder.parameters() {
        with_values(&parameter.var, |values| values.iter().for_each(|value| hash.update(value.to_le_bytes())))?;
    }
    Ok(hex::encode(hash.finalize()))
}

fn report(log: &Log, fitted: Fitted, prompts: usize, start_deviations: Vec<f64>) -> AlignReport {
    let last = &log.figures[log.figures.len().saturating_sub(LAST)..];
    let mut means = StepFigures { step: fitted.steps, ..StepFigures::default() };
    for name in last.iter().flat_map(|figures| figures.values.keys()) {
        let known: Vec<f64> = last.iter().filter_map(|figures| figures.get(name)).collect();
        means.put(name.clone(), known.iter().sum::<f64>() / known.len() as f64);
    }
    AlignReport {
        steps: fitted.steps,
        skipped: fitted.skipped,
        prompts,
        drawn: log.steps.last().map_or(0, |step| step.drawn),
        tokens: fitted.tokens,
        seconds: fitted.seconds,
        start_deviations,
        last: means,
        curve: fitted.curve,
    }
}
