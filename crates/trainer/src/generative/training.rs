//! Training a decoder on item sequences: what `fit`'s loop needs to know of them, and the run around it.
//!
//! Called by `stages`. The loss is on every token, so each item of a window is learned from all before it.

use super::{Case, GenerativeError, GenerativeSettings, Sequences};
use crate::fit::{self, AdamW, CurvePoint, Evaluated, Fitted, ParameterSet, Task, TrainEvent, Validated};
use crate::model::{Decoder, Dropout, TrainBatch, save_checkpoint};
use crate::nn::tensor_file::{write_atomically, write_json};
use crate::sft::packing::{TokenExample, assemble, hash_examples};
use crate::sft::step;
use crate::sft::tokenizer::{TOKENIZER_FILE, TextTokenizer};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Name of the report's file.
pub(super) const REPORT_FILE: &str = "generative_report.json";
/// Batches that share a shuffled pool, within which sequences are sorted by length.
const POOL: usize = 16;
/// Tokens looked at together in validation.
const VALIDATION_TOKENS: usize = 8_192;

/// What a run reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerativeReport {
    /// Values of the model.
    pub parameters: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Windows trained on.
    pub sequences: usize,
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
    /// Loss of the kept weights on validation items (nats per token); none without validation users.
    pub validation_loss: Option<f64>,
    /// Step of the lowest validation loss.
    pub best_step: Option<u64>,
    /// The run over time.
    pub curve: Vec<CurvePoint>,
}

/// Trains a decoder from scratch (or from the newest resumable state in `out`) and writes checkpoint, tokenizer and report into
/// `out`. `progress` hears of every step.
pub fn train(
    settings: &GenerativeSettings,
    tokenizer: &TextTokenizer,
    sequences: &Sequences,
    out: &Path,
    progress: &mut (dyn FnMut(&TrainEvent) + Send),
) -> Result<GenerativeReport, GenerativeError> {
    settings.check()?;
    let threads = settings.threads;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| GenerativeError::Threads { threads, message: error.to_string() })?;
    pool.install(|| {
        let mut items = ItemSequences::prepare(settings, tokenizer.vocab_size(), sequences)?;
        let optimizer = AdamW::new(ParameterSet::all(&items.decoder), settings.optimizer());
        let run_id = items.run_id()?;
        let fitting = settings.fitting(items.steps());
        let fitted = fit::run(&mut items, optimizer, &fitting, &run_id, out, progress)?;
        save_checkpoint(&items.decoder, out)?;
        write_atomically(&out.join(TOKENIZER_FILE), tokenizer.to_json()?.as_bytes())?;
        let report = items.report(fitted);
        write_json(&out.join(REPORT_FILE), &report)?;
        fit::clear(out)?;
        Ok(report)
    })
}

/// The task.
struct ItemSequences<'a> {
    settings: &'a GenerativeSettings,
    windows: Vec<TokenExample>,
    validation: Vec<TokenExample>,
    /// Window numbers of every batch.
    plan: Vec<Vec<usize>>,
    decoder: Decoder,
}

impl<'a> ItemSequences<'a> {
    fn prepare(
        settings: &'a GenerativeSettings,
        vocabulary: usize,
        sequences: &Sequences,
    ) -> Result<Self, GenerativeError> {
        // The first token is given, all others are learned.
        let window = |tokens: &Vec<u32>| TokenExample { tokens: tokens.clone(), prompt_len: 1 };
        let windows: Vec<TokenExample> = sequences.train.iter().map(window).collect();
        let step = sequences.validation.len().div_ceil(settings.validation_users.max(1)).max(1);
        let shown = sequences.validation.iter().step_by(step).take(settings.validation_users);
        let epochs = 0..settings.epochs as u64;
        let plan = epochs.flat_map(|epoch| plan_epoch(&windows, settings.batch, settings.seed, epoch)).collect();
        let decoder = Decoder::random(&settings.decoder_config(vocabulary), settings.seed)?;
        Ok(Self { settings, windows, validation: shown.map(answered).collect(), plan, decoder })
    }

    /// Hash of everything that decides the result.
    fn run_id(&self) -> Result<String, GenerativeError> {
        let decisive = GenerativeSettings { threads: 0, checkpoint_every: 0, max_skipped: 0, ..self.settings.clone() };
        let text = serde_json::to_string(&decisive)
            .map_err(|error| GenerativeError::Settings { field: "settings", message: error.to_string() })?;
        let mut hash = Sha256::new();
        hash.update(text.as_bytes());
        hash.update((self.decoder.config().vocab_size as u64).to_le_bytes());
        hash_examples(&mut hash, self.windows.iter().chain(&self.validation));
        Ok(hex::encode(hash.finalize()))
    }

    fn report(self, fitted: Fitted) -> GenerativeReport {
        GenerativeReport {
            parameters: self.decoder.parameter_count(),
            vocabulary: self.decoder.config().vocab_size,
            sequences: self.windows.len(),
            steps: fitted.steps,
            skipped: fitted.skipped,
            stopped_early: fitted.stopped_early,
            tokens: fitted.tokens,
            seconds: fitted.seconds,
            tokens_per_s: fitted.tokens_per_s(),
            validation_loss: fitted.kept_loss(self.settings.keep_best),
            best_step: fitted.best.map(|(step, _)| step),
            curve: fitted.curve,
        }
    }
}

impl Task for ItemSequences<'_> {
    /// With its number, which decides what dropout drops.
    type Batch = (u64, TrainBatch);
    type Error = GenerativeError;

    fn steps(&self) -> u64 {
        self.plan.len() as u64
    }

    fn batches(&mut self, step: u64) -> Result<Vec<(u64, TrainBatch)>, GenerativeError> {
        let batch = self.plan.get(step as usize);
        Ok(batch.map(|chosen| (step, assemble(&self.windows, chosen, 1.0))).into_iter().collect())
    }

    fn evaluate(
        &mut self,
        (number, batch): &(u64, TrainBatch),
        set: &ParameterSet,
    ) -> Result<Evaluated, GenerativeError> {
        let GenerativeSettings { dropout: rate, attention_dropout: attention, seed, label_smoothing, .. } =
            *self.settings;
        let drops = rate > 0.0 || attention > 0.0;
        let dropout = drops.then_some(Dropout { rate, attention, seed, batch: *number });
        step::cross_entropy(&mut self.decoder, batch, dropout, label_smoothing, set)
    }

    fn epoch(&self, steps: u64) -> Option<f64> {
        let windows: usize = self.plan.iter().take(steps as usize).map(Vec::len).sum();
        Some(windows as f64 / self.windows.len() as f64)
    }

    /// Mean nll per token of the validation items.
    fn validate(&mut self) -> Result<Option<Validated>, GenerativeError> {
        Ok(step::validated(&self.decoder, &self.validation, VALIDATION_TOKENS)?)
    }
}

fn answered(case: &Case) -> TokenExample {
    TokenExample { tokens: [case.prompt.as_slice(), &case.answer].concat(), prompt_len: case.prompt.len() }
}

/// The batches of one epoch: shuffled by (seed, epoch), sequences of like length together, batches in random order.
pub(super) fn plan_epoch(windows: &[TokenExample], batch: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch + 1);
    let mut order: Vec<usize> = (0..windows.len()).collect();
    order.shuffle(&mut random);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for pool in order.chunks_mut(batch * POOL) {
        pool.sort_by_key(|&window| windows[window].tokens.len());
        batches.extend(pool.chunks(batch).map(<[usize]>::to_vec));
    }
    batches.shuffle(&mut random);
    batches
}
