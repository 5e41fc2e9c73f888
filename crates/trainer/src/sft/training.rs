//! The training loop: epochs of batches, validation, resumable states, report.
//!
//! Called by `pipeline`. Stops by epochs or steps, never by the clock, so a run can be repeated.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::packing::{TokenExample, assemble, fill, plan_epoch, tokenise};
use super::progress::TrainEvent;
use super::resume::{self, RunState};
use super::tokenizer::{TOKENIZER_FILE, TextTokenizer};
use super::{SftError, SftExample, SftSettings};
use crate::model::checkpoint::write_atomically;
use crate::model::{AdamW, Decoder, ModelError, Schedule, save_checkpoint};
use crate::objective::CrossEntropy;
use taiji::prompt::ANSWER_CLOSE;

/// Name of the report's file.
pub const REPORT_FILE: &str = "sft_report.json";

/// One entry of the loss curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Steps done.
    pub step: u64,
    /// Mean weighted training loss since the entry before (nats).
    pub train_loss: f64,
    /// Loss on validation completions (nats per token), where measured.
    pub validation_loss: Option<f64>,
}

/// What a run reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SftReport {
    /// Trainable values.
    pub parameters: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Examples trained on.
    pub examples: usize,
    /// Examples left out: longer than `max_len`, or empty on one side.
    pub left_out: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens trained on, all epochs.
    pub tokens: u64,
    /// Seconds, earlier attempts of a resumed run included.
    pub seconds: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Last loss on validation completions (nats per token); none without validation examples.
    pub validation_loss: Option<f64>,
    /// Loss over time.
    pub curve: Vec<LossPoint>,
}

/// Trains a decoder from scratch (or from the newest resumable state in `out`) and writes checkpoint, tokenizer and report
/// into `out`. `progress` hears of every step.
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
        let mut run = Run::prepare(settings, tokenizer, examples, validation, out)?;
        run.steps(progress)?;
        run.finish(tokenizer)
    })
}

struct Run<'a> {
    settings: &'a SftSettings,
    out: &'a Path,
    examples: Vec<TokenExample>,
    validation: Vec<TokenExample>,
    left_out: usize,
    vocab: usize,
    /// Example numbers of every step.
    plan: Vec<Vec<usize>>,
    schedule: Schedule,
    decoder: Decoder,
    optimizer: AdamW,
    state: RunState,
    earlier_seconds: f64,
    earlier_tokens: u64,
    started: Instant,
}

impl<'a> Run<'a> {
    fn prepare(
        settings: &'a SftSettings,
        tokenizer: &TextTokenizer,
        examples: &[SftExample],
        validation: &[SftExample],
        out: &'a Path,
    ) -> Result<Self, SftError> {
        let (examples, left_out) = tokenise(tokenizer, examples, settings.max_len)?;
        if examples.is_empty() {
            return Err(SftError::NoExamples(format!(
                "{left_out} were empty or longer than max_len {}",
                settings.max_len
            )));
        }
        let shown = validation.len().min(settings.validation_examples);
        let (validation, _) = tokenise(tokenizer, &validation[..shown], settings.max_len)?;
        let plan = plan_steps(settings, &examples);
        let vocab = tokenizer.vocab_size();
        let run_id = run_id(settings, vocab, &examples, &validation)?;
        let fresh = |decoder: &Decoder| AdamW::new(decoder.parameters(), settings.optimizer());
        let (decoder, optimizer, state) = match resume::newest(out, &run_id)? {
            Some((folder, state)) => {
                let (decoder, optimizer) = resume::load(&folder, fresh)?;
                (decoder, optimizer, state)
            }
            None => {
                let config = settings.decoder_config(vocab, tokenizer.token_id(ANSWER_CLOSE));
                let decoder = Decoder::random(&config, settings.seed)?;
                let optimizer = fresh(&decoder);
                (decoder, optimizer, RunState { run_id, ..RunState::default() })
            }
        };
        let schedule = settings.schedule(plan.len() as u64);
        let (earlier_seconds, earlier_tokens) = (state.seconds, state.tokens);
        let started = Instant::now();
        Ok(Self {
            settings,
            out,
            examples,
            validation,
            left_out,
            vocab,
            plan,
            schedule,
            decoder,
            optimizer,
            state,
            earlier_seconds,
            earlier_tokens,
            started,
        })
    }

    fn steps(&mut self, progress: &mut (dyn FnMut(&TrainEvent) + Send)) -> Result<(), SftError> {
        while (self.state.step as usize) < self.plan.len() {
            let event = self.step()?;
            progress(&event);
            let every = self.settings.checkpoint_every;
            let last = self.state.step as usize == self.plan.len();
            if every > 0 && self.state.step.is_multiple_of(every) && !last {
                resume::save(self.out, &self.decoder, &self.optimizer, &self.state)?;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<TrainEvent, SftError> {
        let chosen = &self.plan[self.state.step as usize];
        let batch = assemble(&self.examples, chosen, self.settings.prompt_loss_weight as f32);
        let lr = self.schedule.rate(self.state.step + 1);
        let objective = CrossEntropy::mean(&batch.weights).map_err(ModelError::from)?;
        let loss = self.decoder.loss(&batch, &objective)?;
        let gradients = loss.backward().map_err(ModelError::from)?;
        let gradient_norm = self.optimizer.update(&gradients, lr)?;
        let value = loss.to_scalar::<f32>().map_err(ModelError::from)?;

        let state = &mut self.state;
        state.step += 1;
        state.tokens += batch.input.tokens.len() as u64;
        state.pending_loss += f64::from(value);
        state.pending_steps += 1;
        let this_attempt = self.started.elapsed().as_secs_f64();
        state.seconds = self.earlier_seconds + this_attempt;
        let mut event = TrainEvent {
            stage: "sft",
            step: state.step,
            steps: self.plan.len() as u64,
            train_loss: state.pending_loss / state.pending_steps as f64,
            validation_loss: None,
            lr,
            gradient_norm,
            tokens_per_s: (state.tokens - self.earlier_tokens) as f64 / this_attempt.max(1e-9),
            curve: false,
        };
        self.enter_curve(&mut event)?;
        Ok(event)
    }

    /// Validates and adds to the loss curve where this step asks for it.
    fn enter_curve(&mut self, event: &mut TrainEvent) -> Result<(), SftError> {
        let last = event.step == event.steps;
        let validate = self.settings.validate_every;
        let validates = last || (validate > 0 && event.step.is_multiple_of(validate));
        if validates && !self.validation.is_empty() {
            event.validation_loss = Some(self.validation_loss()?);
        }
        event.curve = validates || event.step.is_multiple_of(self.settings.log_every);
        if event.curve {
            let point =
                LossPoint { step: event.step, train_loss: event.train_loss, validation_loss: event.validation_loss };
            self.state.curve.push(point);
            self.state.pending_loss = 0.0;
            self.state.pending_steps = 0;
        }
        Ok(())
    }

    /// Mean nll per completion token.
    fn validation_loss(&self) -> Result<f64, SftError> {
        let (mut total, mut count) = (0.0, 0.0);
        for chosen in fill(&self.validation, 0..self.validation.len(), self.settings.batch_tokens) {
            let batch = assemble(&self.validation, &chosen, 0.0);
            let likelihoods = self.decoder.log_likelihoods(&batch)?;
            total -= likelihoods.iter().sum::<f64>();
            count += likelihoods.len() as f64;
        }
        Ok(total / count)
    }

    fn finish(self, tokenizer: &TextTokenizer) -> Result<SftReport, SftError> {
        save_checkpoint(&self.decoder, self.out)?;
        write_atomically(&self.out.join(TOKENIZER_FILE), tokenizer.to_json()?.as_bytes())?;
        let seconds = self.earlier_seconds + self.started.elapsed().as_secs_f64();
        let report = SftReport {
            parameters: self.decoder.parameter_count(),
            vocab: self.vocab,
            examples: self.examples.len(),
            left_out: self.left_out,
            steps: self.state.step,
            tokens: self.state.tokens,
            seconds,
            tokens_per_s: self.state.tokens as f64 / seconds.max(1e-9),
            validation_loss: self.state.curve.iter().rev().find_map(|point| point.validation_loss),
            curve: self.state.curve,
        };
        let path = self.out.join(REPORT_FILE);
        let text = serde_json::to_vec_pretty(&report)
            .map_err(|error| SftError::File { path: path.clone(), message: error.to_string() })?;
        write_atomically(&path, &text)?;
        resume::clear(self.out)?;
        Ok(report)
    }
}

fn plan_steps(settings: &SftSettings, examples: &[TokenExample]) -> Vec<Vec<usize>> {
    let epochs = 0..settings.epochs as u64;
    let all = epochs.flat_map(|epoch| plan_epoch(examples, settings.batch_tokens, settings.seed, epoch));
    match settings.max_steps {
        0 => all.collect(),
        limit => all.take(limit as usize).collect(),
    }
}

/// Hash of everything that decides the result, so that a state is only continued by the run that made it.
fn run_id(
    settings: &SftSettings,
    vocab: usize,
    examples: &[TokenExample],
    validation: &[TokenExample],
) -> Result<String, SftError> {
    // The number of threads and how often states are written do not change the result.
    let decisive = SftSettings { threads: 0, checkpoint_every: 0, ..settings.clone() };
    let text = serde_json::to_string(&decisive)
        .map_err(|error| SftError::Settings { field: "settings", message: error.to_string() })?;
    let mut hash = Sha256::new();
    hash.update(text.as_bytes());
    hash.update((vocab as u64).to_le_bytes());
    for example in examples.iter().chain(validation) {
        hash.update((example.tokens.len() as u64).to_le_bytes());
        hash.update((example.prompt_len as u64).to_le_bytes());
        for token in &example.tokens {
            hash.update(token.to_le_bytes());
        }
    }
    Ok(hex::encode(hash.finalize()))
}
