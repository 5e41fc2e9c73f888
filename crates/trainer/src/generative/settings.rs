//! Settings of training: those of a stage of kind `generative`.

use super::GenerativeError;
use crate::fit::{AdamWSettings, LoopSettings, Schedule, is_default};
use crate::model::DecoderConfig;
use crate::semantic_ids::BOS;
use serde::{Deserialize, Serialize};

/// Defaults are those of the recipe for Amazon Instruments: .9 M parameters for 1,025 tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerativeSettings {
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
    /// Longest prompt with all tokens of a beam search behind it; the model's `max_position_embeddings`.
    pub positions: usize,
    /// Passes over the sequences.
    pub epochs: usize,
    /// Sequences of one batch, which is one step.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Last learning rate, at the end of the cosine.
    pub last_lr: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Weight decay per step is this × learning rate; matrices only.
    pub weight_decay: f64,
    /// Longest gradient (L2).
    pub clip_norm: f64,
    /// Share of the values of the embedding and of what each block adds that are set to 0 at random while training.
    pub dropout: f64,
    /// Share of the attention's probabilities that are set to 0 at random while training.
    #[serde(skip_serializing_if = "is_default")]
    pub attention_dropout: f64,
    /// Standard deviation of the initial weights; 0 = 1/√d_model.
    #[serde(skip_serializing_if = "is_default")]
    pub initializer_range: f64,
    /// Part of the wanted probability that is spread evenly over all tokens; validation goes without.
    pub label_smoothing: f64,
    /// Decay of the weights' moving average, which is then what is validated and kept; 0 = none.
    pub ema: f64,
    /// Keep the weights of the lowest validation loss, not the last ones.
    pub keep_best: bool,
    /// Stop after this many validations without a new lowest loss, 0 = never.
    pub patience: u64,
    /// Most steps that may be skipped because the loss or the gradient is not finite.
    pub max_skipped: u64,
    /// Seed of weights, order and dropout.
    pub seed: u64,
    /// Threads, 0 = all cores.
    pub threads: usize,
    /// Steps between entries of the loss curve.
    pub log_every: u64,
    /// Steps between validations, 0 = only at the end.
    pub validate_every: u64,
    /// Most users validated on, evenly over all.
    pub validation_users: usize,
    /// Steps between resumable states, 0 = none.
    pub checkpoint_every: u64,
}

impl Default for GenerativeSettings {
    fn default() -> Self {
        Self {
            d_model: 128,
            layers: 4,
            heads: 4,
            kv_heads: 4,
            ffn: 320,
            positions: 256,
            epochs: 28,
            batch: 256,
            lr: 2e-3,
            last_lr: 1e-5,
            warmup: 200,
            weight_decay: 0.05,
            clip_norm: 1.0,
            dropout: 0.2,
            attention_dropout: 0.0,
            initializer_range: 0.0,
            label_smoothing: 0.1,
            ema: 0.0,
            keep_best: false,
            patience: 0,
            max_skipped: 10,
            seed: 7,
            threads: 0,
            log_every: 50,
            validate_every: 400,
            validation_users: 1_000,
            checkpoint_every: 50,
        }
    }
}

impl GenerativeSettings {
    /// Refuses what cannot be trained, naming the setting.
    pub fn check(&self) -> Result<(), GenerativeError> {
        let fail = |field, message: String| Err(GenerativeError::Settings { field, message });
        if let Some((field, _)) =
            [("epochs", self.epochs), ("batch", self.batch), ("log_every", self.log_every as usize)]
                .into_iter()
                .find(|(_, value)| *value == 0)
        {
            return fail(field, "must be positive".into());
        }
        for (field, value) in [
            ("ema", self.ema),
            ("dropout", self.dropout),
            ("attention_dropout", self.attention_dropout),
            ("label_smoothing", self.label_smoothing),
            ("initializer_range", self.initializer_range),
        ] {
            if !(0.0..1.0).contains(&value) {
                return fail(field, format!("must be at least 0 and below 1, got {value}"));
            }
        }
        for (field, value) in [("lr", self.lr), ("clip_norm", self.clip_norm)] {
            if !(value > 0.0 && value.is_finite()) {
                return fail(field, format!("must be positive, got {value}"));
            }
        }
        if !(0.0..=self.lr).contains(&self.last_lr) {
            return fail("last_lr", format!("must be from 0 to lr {}, got {}", self.lr, self.last_lr));
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return fail("weight_decay", format!("must not be negative, got {}", self.weight_decay));
        }
        if self.patience > 0 && self.validate_every == 0 {
            return fail("patience", "counts validations: set validate_every".into());
        }
        // Of a vocabulary of one code a level, which no shape depends on.
        self.decoder_config(2).check().or_else(|error| fail("the decoder", format!("cannot be: {error}")))
    }

    /// Shape of the decoder for a vocabulary.
    pub fn decoder_config(&self, vocabulary: usize) -> DecoderConfig {
        let small = DecoderConfig::small(vocabulary, self.d_model, self.layers, self.heads, self.kv_heads, self.ffn);
        DecoderConfig { max_position_embeddings: self.positions, bos_token_id: Some(BOS), ..small }
            .with_initializer_range(self.initializer_range)
    }

    /// Optimizer settings.
    pub fn optimizer(&self) -> AdamWSettings {
        AdamWSettings { weight_decay: self.weight_decay, clip_norm: self.clip_norm, ..AdamWSettings::default() }
    }

    /// The loop over `total` steps.
    pub fn fitting(&self, total: u64) -> LoopSettings {
        let floor = self.last_lr / self.lr;
        LoopSettings {
            schedule: Schedule { peak: self.lr, warmup: self.warmup.min(total / 4), total, floor },
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
