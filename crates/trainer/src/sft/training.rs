//! Training on texts: what `fit`'s loop needs to know of them, and the stage around it.
//!
//! Called by `stages`. Stops by epochs or steps, never by the clock, so a run can be repeated.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::packing::{BatchSize, TokenExample, assemble, plan_epoch, tokenise};
use super::samples::{Sample, written};
use super::tokenizer::{TOKENIZER_FILE, TextTokenizer};
use super::{SftError, SftExample, SftSettings, start, step};
use crate::fit::{self, AdamW, CurvePoint, Evaluated, Fitted, ParameterSet, Task, TrainEvent, Validated};
use crate::model::lora::with_adapter_groups;
use crate::model::{Decoder, Dropout, TrainBatch, save_checkpoint};
use crate::nn::tensor_file::{write_atomically, write_json};

/// Name of the report's file.
pub const REPORT_FILE: &str = "sft_report.json";
/// Folder of the adapters, in PEFT's form, where adapters were trained.
pub const ADAPTER_FOLDER: &str = "adapter";

/// Where the weights of a step are kept that `keep_at` names: a checkpoint of its own.
pub fn kept_folder(out: &Path, step: u64) -> PathBuf {
    out.join("at").join(format!("step-{step}"))
}

/// What a run reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SftReport {
    /// Values of the model.
    pub parameters: usize,
    /// Values that were trained.
    pub trained_parameters: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Examples trained on.
    pub examples: usize,
    /// Examples left out: longer than `max_len`, or empty on one side.
    pub left_out: usize,
    /// Steps, skipped ones included.
    pub steps: u64,
    /// Steps skipped, for their loss or gradient was not finite.
    pub skipped: u64,
    /// Validations brought no better loss, so training ended before its steps did.
    pub stopped_early: bool,
    /// Tokens trained on, all epochs.
    pub tokens: u64,
    /// Seconds, earlier attempts of a resumed run included.
    pub seconds: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Loss of the kept weights on validation completions (nats per token); none without validation examples.
    pub validation_loss: Option<f64>,
    /// Step of the lowest validation loss.
    pub best_step: Option<u64>,
    /// The run over time.
    pub curve: Vec<CurvePoint>,
    /// A few validation prompts and what the model wrote to them.
    #[serde(default)]
    pub samples: Vec<Sample>,
}

/// Trains a decoder from scratch or from `settings.checkpoint` (or from the newest resumable state in `out`) and writes
/// checkpoint, tokenizer and report into `out`; adapters go into a folder of their own and are merged into the checkpoint.
/// `progress` hears of every step.
pub fn train(
    settings: &SftSettings,
    tokenizer: &TextTokenizer,
    examples: &[SftExample],
    validation: &[SftExample],
    out: &Path,
    progress: &mut (dyn FnMut(&TrainEvent) + Send),
) -> Result<SftReport, SftError> {
    settings.check()?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(settings.threads)
        .build()
        .map_err(|error| SftError::Threads { threads: settings.threads, message: error.to_string() })?;
    pool.install(|| {
        let mut texts = Texts::prepare(settings, tokenizer, examples, validation, out)?;
        let before = written(&texts.decoder, tokenizer, texts.shown())?;
        let set = ParameterSet::grouped(
            &texts.decoder,
            &with_adapter_groups(&settings.group, settings.lora.as_ref()),
            settings.lr,
        )?;
        let trained = set.value_count();
        let optimizer = AdamW::new(set, settings.optimizer());
        let vocab = tokenizer.vocab_size();
        let run_id = start::run_id(settings, &texts.decoder, vocab, &texts.examples, &texts.validation)?;
        let fitting = settings.fitting(texts.steps());
        let fitted = fit::run(&mut texts, optimizer, &fitting, &run_id, out, progress)?;
        if texts.decoder.has_adapters() {
            let base = settings.checkpoint.as_deref().unwrap_or(Path::new(""));
            texts.decoder.save_adapters(base, &out.join(ADAPTER_FOLDER))?;
            texts.decoder.merge_adapters()?;
        }
        save_checkpoint(&texts.decoder, out)?;
        write_atomically(&out.join(TOKENIZER_FILE), tokenizer.to_json()?.as_bytes())?;
        if let Some(checkpoint) = &settings.checkpoint {
            start::keep_companions(checkpoint, out)?;
        }
        let after = written(&texts.decoder, tokenizer, texts.shown())?;
        let samples = Sample::of(tokenizer, texts.shown(), before, after)?;
        let report = texts.report(fitted, trained, vocab, samples);
        write_json(&out.join(REPORT_FILE), &report)?;
        fit::clear(out)?;
        Ok(report)
    })
}

/// The task of this stage.
struct Texts<'a> {
    settings: &'a SftSettings,
    tokenizer: &'a TextTokenizer,
    out: &'a Path,
    examples: Vec<TokenExample>,
    validation: Vec<TokenExample>,
    left_out: usize,
    /// Example numbers of every batch.
    plan: Vec<Vec<usize>>,
    /// Examples in the batches before each place of the plan, and in all of them.
    examples_before: Vec<usize>,
    decoder: Decoder,
}

impl<'a> Texts<'a> {
    fn prepare(
        settings: &'a SftSettings,
        tokenizer: &'a TextTokenizer,
        examples: &[SftExample],
        validation: &[SftExample],
        out: &'a Path,
    ) -> Result<Self, SftError> {
        let mut decoder = start::decoder(settings, tokenizer)?;
        decoder.set_device(settings.device)?;
        let end = if tokenizer.ends_by_tag() { None } else { decoder.config().eos_token_id };
        let (examples, left_out) = tokenise(tokenizer, examples, settings.max_len, end)?;
        if examples.is_empty() {
            return Err(SftError::NoExamples(format!(
                "{left_out} were empty or longer than max_len {}",
                settings.max_len
            )));
        }
        let shown = validation.len().min(settings.validation_examples);
        let (validation, _) = tokenise(tokenizer, &validation[..shown], settings.max_len, end)?;
        let plan = plan_batches(settings, &examples);
        let mut examples_before = vec![0];
        examples_before.extend(plan.iter().scan(0, |seen, batch| {
            *seen += batch.len();
            Some(*seen)
        }));
        Ok(Self { settings, tokenizer, out, examples, validation, left_out, plan, examples_before, decoder })
    }

    /// The examples that samples are written of.
    fn shown(&self) -> &[TokenExample] {
        &self.validation[..self.settings.samples.min(self.validation.len())]
    }

    fn report(self, fitted: Fitted, trained: usize, vocab: usize, samples: Vec<Sample>) -> SftReport {
        SftReport {
            parameters: self.decoder.parameter_count(),
            trained_parameters: trained,
            vocab,
            examples: self.examples.len(),
            left_out: self.left_out,
            steps: fitted.steps,
            skipped: fitted.skipped,
            stopped_early: fitted.stopped_early,
            tokens: fitted.tokens,
            seconds: fitted.seconds,
            tokens_per_s: fitted.tokens_per_s(),
            validation_loss: fitted.kept_loss(self.settings.keep_best),
            best_step: fitted.best.map(|(step, _)| step),
            curve: fitted.curve,
            samples,
        }
    }
}

impl Task for Texts<'_> {
    /// With its number, which decides what dropout drops.
    type Batch = (u64, TrainBatch);
    type Error = SftError;

    fn steps(&self) -> u64 {
        self.plan.len().div_ceil(self.settings.accumulate) as u64
    }

    fn batches(&mut self, step: u64) -> Result<Vec<(u64, TrainBatch)>, SftError> {
        let first = step as usize * self.settings.accumulate;
        let chosen = self.plan.iter().enumerate().skip(first).take(self.settings.accumulate);
        let weight = self.settings.prompt_loss_weight as f32;
        Ok(chosen.map(|(number, chosen)| (number as u64, assemble(&self.examples, chosen, weight))).collect())
    }

    fn evaluate(&mut self, (number, batch): &(u64, TrainBatch), set: &ParameterSet) -> Result<Evaluated, SftError> {
        let SftSettings { dropout: rate, seed, label_smoothing, .. } = *self.settings;
        let dropout = (rate > 0.0).then_some(Dropout { rate, attention: 0.0, seed, batch: *number });
        step::cross_entropy(&mut self.decoder, batch, dropout, label_smoothing, set)
    }

    fn epoch(&self, steps: u64) -> Option<f64> {
        let batches = (steps as usize * self.settings.accumulate).min(self.plan.len());
        Some(self.examples_before[batches] as f64 / self.examples.len() as f64)
    }

    /// Mean nll per completion token.
    fn validate(&mut self) -> Result<Option<Validated>, SftError> {
        Ok(step::validated(&self.decoder, &self.validation, self.settings.batch_tokens)?)
    }

    fn stepped(&mut self, step: u64) -> Result<(), SftError> {
        if !self.settings.keep_at.contains(&step) {
            return Ok(());
        }
        let folder = kept_folder(self.out, step);
        save_checkpoint(&self.decoder, &folder)?;
        Ok(write_atomically(&folder.join(TOKENIZER_FILE), self.tokenizer.to_json()?.as_bytes())?)
    }
}

fn plan_batches(settings: &SftSettings, examples: &[TokenExample]) -> Vec<Vec<usize>> {
    let most = if settings.batch_examples == 0 { usize::MAX } else { settings.batch_examples };
    let size = BatchSize { tokens: settings.batch_tokens, examples: most };
    let epochs = 0..settings.epochs as u64;
    let all = epochs.flat_map(|epoch| plan_epoch(examples, size, settings.seed, epoch));
    match settings.max_steps {
        0 => all.collect(),
        limit => all.take(limit as usize * settings.accumulate).collect(),
    }
}
