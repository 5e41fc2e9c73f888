//! Settings of the stage: recipe section `[sft]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SftError;
use crate::fit::{AdamWSettings, GroupSettings, LoopSettings, Schedule, is_default};
use crate::model::{DecoderConfig, DeviceKind, LoraSettings};

/// Recipe section `[sft]`; every field has a default that trains the demo in minutes on two cores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftSettings {
    /// Folder of the checkpoint to begin from; shape, vocabulary and tokenizer are then the checkpoint's. None = random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// Adapters to train instead of the checkpoint's own weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSettings>,
    /// Width of the residual stream; d_model / heads is a multiple of 16.
    pub d_model: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Standard deviation of the initial weights; 0 = 1/√d_model.
    #[serde(skip_serializing_if = "is_default")]
    pub initializer_range: f64,
    /// Tokens of the vocabulary, special ones included.
    pub vocab: usize,
    /// Longest prompt + completion, tokens; also the model's `max_position_embeddings`. Longer examples are left out.
    pub max_len: usize,
    /// Passes over the examples.
    pub epochs: usize,
    /// Most optimizer steps, 0 = as many as the epochs have. The learning rate falls to its floor at the last step.
    pub max_steps: u64,
    /// Tokens of one batch.
    pub batch_tokens: usize,
    /// Most examples of one batch, 0 = as many as its tokens allow. With it and room for them, arms whose examples differ in length
    /// take equal steps.
    #[serde(skip_serializing_if = "is_default")]
    pub batch_examples: usize,
    /// Batches whose gradients make one step, from 1: a step as of one batch this many times as large.
    pub accumulate: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Weight decay per step is this × learning rate; matrices only.
    pub weight_decay: f64,
    /// Longest gradient (L2).
    pub clip_norm: f64,
    /// Share of the values of the embedding and of what each block adds that are set to 0 at random while training.
    pub dropout: f64,
    /// Part of the wanted probability that is spread evenly over all tokens; validation goes without.
    pub label_smoothing: f64,
    /// Most steps that may be skipped because the loss or the gradient is not finite.
    pub max_skipped: u64,
    /// Decay of the weights' moving average, which is then what is validated and kept; 0 = none.
    pub ema: f64,
    /// Keep the weights of the lowest validation loss, not the last ones.
    pub keep_best: bool,
    /// Stop after this many validations without a new lowest loss, 0 = never.
    pub patience: u64,
    /// Weight of a prompt token's loss; completion tokens have 1.
    pub prompt_loss_weight: f64,
    /// Seed of weights and order.
    pub seed: u64,
    /// Threads, 0 = all cores.
    pub threads: usize,
    /// Where it is trained; `--device` of a run says it for all stages.
    #[serde(skip_serializing_if = "is_default")]
    pub device: DeviceKind,
    /// Steps between entries of the loss curve.
    pub log_every: u64,
    /// Steps between validations, 0 = only at the end.
    pub validate_every: u64,
    /// Most validation examples looked at.
    pub validation_examples: usize,
    /// Validation prompts to which the model writes before training and after, for the report.
    pub samples: usize,
    /// Steps between resumable states, 0 = none.
    pub checkpoint_every: u64,
    /// Steps whose weights are kept, too, as checkpoints in `at/step-<n>`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep_at: Vec<u64>,
    /// Groups of parameters that are frozen or have settings of their own; the first that fits a name counts.
    pub group: Vec<GroupSettings>,
}

impl Default for SftSettings {
    fn default() -> Self {
        Self {
            checkpoint: None,
            lora: None,
            d_model: 128,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            ffn: 384,
            initializer_range: 0.0,
            vocab: 2048,
            max_len: 512,
            epochs: 3,
            max_steps: 0,
            batch_tokens: 2048,
            batch_examples: 0,
            accumulate: 1,
            lr: 3e-3,
            warmup: 100,
            weight_decay: 0.05,
            clip_norm: 1.0,
            dropout: 0.0,
            label_smoothing: 0.0,
            max_skipped: 10,
            ema: 0.0,
            keep_best: false,
            patience: 0,
            prompt_loss_weight: 0.2,
            seed: 7,
            threads: 0,
            device: DeviceKind::Cpu,
            log_every: 50,
            validate_every: 400,
            validation_examples: 256,
            samples: 2,
            checkpoint_every: 400,
            keep_at: Vec::new(),
            group: Vec::new(),
        }
    }
}

impl SftSettings {
    /// Refuses what cannot be trained, naming the setting.
    pub fn check(&self) -> Result<(), SftError> {
        let fail = |field, message: String| Err(SftError::Settings { field, message });
        for (field, value) in [("epochs", self.epochs), ("accumulate", self.accumulate)] {
            if value == 0 {
                return fail(field, "must be positive".into());
            }
        }
        for (field, value) in [
            ("ema", self.ema),
            ("dropout", self.dropout),
            ("label_smoothing", self.label_smoothing),
            ("initializer_range", self.initializer_range),
        ] {
            if !(0.0..1.0).contains(&value) {
                return fail(field, format!("must be at least 0 and below 1, got {value}"));
            }
        }
        if let Some(lora) = &self.lora {
            lora.check()?;
            if self.checkpoint.is_none() {
                return fail("lora", "trains beside a checkpoint's weights: name a checkpoint in from".into());
            }
        }
        if self.patience > 0 && self.validate_every == 0 {
            return fail("patience", "counts validations: set validate_every".into());
        }
        if self.batch_tokens < self.max_len {
            return fail("batch_tokens", format!("must be at least max_len {}", self.max_len));
        }
        if self.lora.is_some() && !self.keep_at.is_empty() {
            return fail(
                "keep_at",
                "keeps whole weights, which adapters are no part of before the end: leave it out".into(),
            );
        }
        if self.log_every == 0 {
            return fail("log_every", "must be positive".into());
        }
        for (field, value) in [("lr", self.lr), ("clip_norm", self.clip_norm)] {
            if !(value > 0.0 && value.is_finite()) {
                return fail(field, format!("must be positive, got {value}"));
            }
        }
        for (field, value) in [("weight_decay", self.weight_decay), ("prompt_loss_weight", self.prompt_loss_weight)] {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(field, format!("must not be negative, got {value}"));
            }
        }
        Ok(())
    }

    /// Shape of the decoder for a tokenizer of `vocab` tokens that stops at `end`.
    pub fn decoder_config(&self, vocab: usize, end: Option<u32>) -> DecoderConfig {
        DecoderConfig {
            max_position_embeddings: self.max_len,
            eos_token_id: end,
            ..DecoderConfig::small(vocab, self.d_model, self.layers, self.heads, self.kv_heads, self.ffn)
        }
        .with_initializer_range(self.initializer_range)
    }

    /// Optimizer settings.
    pub fn optimizer(&self) -> AdamWSettings {
        AdamWSettings { weight_decay: self.weight_decay, clip_norm: self.clip_norm, ..AdamWSettings::default() }
    }

    /// The loop over `total` steps.
    pub fn fitting(&self, total: u64) -> LoopSettings {
        LoopSettings {
            schedule: Schedule { peak: self.lr, warmup: self.warmup.min(total / 4), total, floor: 0.02 },
            log_every: self.log_every,
            validate_every: self.validate_every,
            checkpoint_every: self.checkpoint_every,
            max_skipped: self.max_skipped,
            ema: self.ema,
            keep_best: self.keep_best,
            patience: self.patience,
        }
    }
}
