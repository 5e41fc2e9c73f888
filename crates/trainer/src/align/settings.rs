//! Settings of the stage `align`: presets, and what may be said beside them.

use super::AlignError;
use crate::fit::{AdamWSettings, GroupSettings, LoopSettings, Schedule, is_default};
use crate::model::lora::with_adapter_groups;
use crate::model::{DeviceKind, LoraSettings};
use crate::objective::{Clip, Correction, KlEstimator, Normaliser, RatioLevel, Surrogate};
use crate::reward::{RewardKind, RewardSettings};
use crate::weighting::WeightingSettings;
use serde::{Deserialize, Serialize};

/// Where settings that are not given come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// As engineers set it in 2026: groups of 8, every token counts the same (DAPO), clip-higher, no divergence, groups without a
    /// difference drawn again.
    #[default]
    Modern,
    /// As Taiji publishes it: groups of 4, every response counts the same, divergence from SFT (.001, k2), symmetrical clip.
    Paper,
}

/// Form of the objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Every response counts the same.
    Grpo,
    /// Every token counts the same.
    Dapo,
    /// Divided by the longest that a response may be.
    DrGrpo,
    /// One ratio a response.
    Gspo,
    /// The ratio is cut, the gradient is not.
    Cispo,
}

/// What becomes of answers that did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncated {
    /// They are not learned from, and count in no denominator. Where all of a step did not end, it learns nothing.
    #[default]
    Mask,
    /// They are answers without the format.
    Score,
}

/// Two computations in bf16 differ by about .01 nats a token.
const LEAST_GAP_ON_A_GPU: f64 = 0.02;

/// How what the sampler's engine says otherwise than the trainer is made up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CorrectionBy {
    /// Each token counts min(trainer/sampler, cap).
    #[default]
    Token,
    /// Each response counts min(Π trainer/sampler, cap).
    Response,
}

/// Recipe stage of kind `align`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignSettings {
    /// Where the settings below that are missing come from.
    pub preset: Preset,
    /// Steps.
    pub steps: u64,
    /// Prompts of a step.
    pub prompts: usize,
    /// Answers of a prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Form of the objective.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossKind>,
    /// Bounds of the ratio: below 1 and above. Of CISPO the highest ratio is 1 + the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<[f64; 2]>,
    /// Factor of the divergence from the policy of the start (k2); 0 = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Times that prompts are drawn anew for groups in which no reward differs (DAPO's dynamic sampling).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resample: Option<usize>,
    /// What becomes of answers that did not end.
    pub truncated: Truncated,
    /// The policy that is trained is the start's at this temperature; what is kept has its logits back. Served greedily both answer alike, but
    /// roll-outs at 1 spend their steps on becoming as sure as greedy decoding is already.
    pub temperature: f64,
    /// Of tokens or of whole responses.
    #[serde(skip_serializing_if = "is_default")]
    pub correction: CorrectionBy,
    /// Highest weight for what the sampler's engine says otherwise than the trainer.
    pub correction_cap: f64,
    /// Steps between two syncs of the sampler; with more than one, roll-outs are of older weights and the clip has something to do.
    pub sync_every: u64,
    /// Highest mean difference of log-probabilities between sampler and trainer, nats, right after a sync.
    pub max_gap: f64,
    /// Rewards, in the order of the weights.
    pub reward: Vec<RewardSettings>,
    /// How they are combined.
    pub weighting: WeightingSettings,
    /// Adapters to train instead of the checkpoint's own weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSettings>,
    /// Highest learning rate.
    pub lr: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Learning rate at the end, as a share of the highest.
    pub lr_floor: f64,
    /// Weight decay per step is this × learning rate; matrices only.
    pub weight_decay: f64,
    /// Longest gradient (L2).
    pub clip_norm: f64,
    /// Parameters that are frozen, or have a learning rate of their own.
    pub param_group: Vec<GroupSettings>,
    /// Tokens of one backward pass.
    pub batch_tokens: usize,
    /// Most steps that may be skipped because the loss or the gradient is not finite.
    pub max_skipped: u64,
    /// Decides prompts and draws.
    pub seed: u64,
    /// Steps whose weights are kept: for fronts over time.
    pub keep_at: Vec<u64>,
    /// Threads, where the run does not decide alone.
    pub threads: usize,
    /// Where it is trained and rolled out; `--device` of a run says it for all stages. On a GPU both compute in bf16, each in its own order: a
    /// [`Self::max_gap`] for f32 is refused there.
    #[serde(skip_serializing_if = "is_default")]
    pub device: DeviceKind,
    /// Steps between entries of the curve and samples.
    pub log_every: u64,
    /// Steps between resumable states, 0 = none; a multiple of `sync_every`.
    pub checkpoint_every: u64,
}

impl Default for AlignSettings {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            steps: 200,
            prompts: 8,
            group: None,
            loss: None,
            clip: None,
            kl: None,
            resample: None,
            truncated: Truncated::default(),
            temperature: 1.0,
            correction: CorrectionBy::default(),
            correction_cap: 2.0,
            sync_every: 1,
            max_gap: 1e-3,
            reward: vec![RewardSettings::of(RewardKind::Semantic), RewardSettings::of(RewardKind::Simulated)],
            weighting: WeightingSettings::default(),
            lora: None,
            lr: 3e-4,
            warmup: 10,
            lr_floor: 0.1,
            weight_decay: 0.0,
            clip_norm: 1.0,
            param_group: Vec::new(),
            batch_tokens: 8192,
            max_skipped: 5,
            seed: 7,
            keep_at: Vec::new(),
            threads: 2,
            device: DeviceKind::Cpu,
            log_every: 10,
            checkpoint_every: 20,
        }
    }
}

impl AlignSettings {
    /// Refuses what cannot be, naming the setting.
    pub fn check(&self) -> Result<(), AlignError> {
        let fail = |field, message: String| Err(AlignError::Settings { field, message });
        for (field, value) in [
            ("steps", self.steps),
            ("prompts", self.prompts as u64),
            ("sync_every", self.sync_every),
            ("log_every", self.log_every),
            ("batch_tokens", self.batch_tokens as u64),
        ] {
            if value == 0 {
                return fail(field, "must be positive".into());
            }
        }
        if self.group() < 2 {
            return fail("group", "must be at least 2: an answer is judged beside others to its prompt".into());
        }
        let positive = [
            ("lr", self.lr),
            ("clip_norm", self.clip_norm),
            ("max_gap", self.max_gap),
            ("temperature", self.temperature),
        ];
        for (field, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return fail(field, format!("must be positive, got {value}"));
            }
        }
        let [low, high] = self.clip();
        if !((0.0..1.0).contains(&low) && high > 0.0 && high.is_finite()) {
            return fail("clip", format!("must be [0 to 1, above 0], got [{low}, {high}]"));
        }
        if self.kl() < 0.0 || !self.kl().is_finite() {
            return fail("kl", format!("must not be negative, got {}", self.kl()));
        }
        if self.device == DeviceKind::Cuda && self.max_gap < LEAST_GAP_ON_A_GPU {
            let message = format!(
                "{} is for f32: on a GPU sampler and trainer compute in bf16; give {LEAST_GAP_ON_A_GPU} or above",
                self.max_gap
            );
            return fail("max_gap", message);
        }
        if self.correction_cap < 1.0 || self.correction_cap.is_nan() {
            return fail("correction_cap", format!("must be at least 1, got {}", self.correction_cap));
        }
        if !(0.0..=1.0).contains(&self.lr_floor) {
            return fail("lr_floor", format!("must be from 0 to 1, got {}", self.lr_floor));
        }
        if !self.checkpoint_every.is_multiple_of(self.sync_every) {
            return fail("checkpoint_every", format!("must be a multiple of sync_every, {}", self.sync_every));
        }
        if self.reward.is_empty() {
            return fail("reward", "is empty: name one".into());
        }
        self.reward.iter().try_for_each(RewardSettings::check)?;
        self.lora.iter().try_for_each(LoraSettings::check)?;
        // Whether the rule can be made is seen here, not after the roll-outs.
        let rule = self.weighting.build(self.reward.len(), &vec![1.0; self.reward.len()], self.seed)?;
        if rule.probe().is_some() && self.prompts % 2 == 1 {
            return fail("prompts", "must be even: the rule compares gradients of two halves".into());
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return fail("weight_decay", format!("must not be negative, got {}", self.weight_decay));
        }
        if let Some(step) = self.keep_at.iter().find(|step| **step == 0 || **step > self.steps) {
            return fail("keep_at", format!("must be from 1 to steps {}, got {step}", self.steps));
        }
        Ok(())
    }

    /// Answers of a prompt.
    pub fn group(&self) -> usize {
        self.group.unwrap_or(if self.preset == Preset::Modern { 8 } else { 4 })
    }

    /// Form of the objective.
    pub fn loss(&self) -> LossKind {
        self.loss.unwrap_or(if self.preset == Preset::Modern { LossKind::Dapo } else { LossKind::Grpo })
    }

    /// Bounds of the ratio.
    pub fn clip(&self) -> [f64; 2] {
        let of_loss = match self.loss() {
            // Ratios of whole responses lie far closer to 1 (arXiv 2507.18071, section 5.1).
            LossKind::Gspo => [3e-4, 4e-4],
            LossKind::Cispo => [0.2, 4.0],
            _ if self.preset == Preset::Modern => [0.2, 0.28],
            _ => [0.2, 0.2],
        };
        self.clip.unwrap_or(of_loss)
    }

    /// Factor of the divergence.
    pub fn kl(&self) -> f64 {
        self.kl.unwrap_or(if self.preset == Preset::Modern { 0.0 } else { 1e-3 })
    }

    /// Rounds of drawing anew.
    pub fn resample(&self) -> usize {
        self.resample.unwrap_or(if self.preset == Preset::Modern { 2 } else { 0 })
    }

    /// What is trained.
    pub(super) fn groups(&self) -> Vec<GroupSettings> {
        with_adapter_groups(&self.param_group, self.lora.as_ref())
    }

    pub(super) fn surrogate(&self) -> Surrogate {
        let [low, high] = self.clip();
        match self.loss() {
            LossKind::Cispo => Surrogate::Truncated { most: 1.0 + high },
            _ => Surrogate::Clipped(Clip { low, high }),
        }
    }

    pub(super) fn level(&self) -> RatioLevel {
        if self.loss() == LossKind::Gspo { RatioLevel::Response } else { RatioLevel::Token }
    }

    /// `longest`: most tokens of an answer.
    pub(super) fn normaliser(&self, longest: usize) -> Normaliser {
        match self.loss() {
            LossKind::Grpo | LossKind::Gspo => Normaliser::Responses,
            LossKind::Dapo | LossKind::Cispo => Normaliser::Tokens,
            LossKind::DrGrpo => Normaliser::Longest { longest },
        }
    }

    /// Estimator of the divergence: as a loss k2 has the gradient of KL(policy ‖ reference) (arXiv 2506.09477).
    pub(super) fn estimator(&self) -> KlEstimator {
        KlEstimator::K2
    }

    /// Of the sampler's engine, where its roll-outs are of the present weights; older ones have their own ratio.
    pub(super) fn correction(&self) -> Option<Correction> {
        let correction = match self.correction {
            CorrectionBy::Token => Correction::TokenTruncated(self.correction_cap),
            CorrectionBy::Response => Correction::ResponseTruncated(self.correction_cap),
        };
        (self.sync_every == 1).then_some(correction)
    }

    /// Optimizer settings.
    pub(super) fn optimizer(&self) -> AdamWSettings {
        AdamWSettings { weight_decay: self.weight_decay, clip_norm: self.clip_norm, ..AdamWSettings::default() }
    }

    /// The loop.
    pub(super) fn fitting(&self) -> LoopSettings {
        let warmup = self.warmup.min(self.steps / 4);
        LoopSettings {
            schedule: Schedule { peak: self.lr, warmup, total: self.steps, floor: self.lr_floor },
            log_every: self.log_every,
            validate_every: 0,
            checkpoint_every: self.checkpoint_every,
            max_skipped: self.max_skipped,
            ema: 0.0,
            keep_best: false,
            patience: 0,
        }
    }

    /// What decides the result: not the threads, nor what is shown, nor how often a state is kept.
    pub(super) fn decisive(&self) -> AlignSettings {
        AlignSettings { threads: 0, log_every: 1, checkpoint_every: 0, max_skipped: 0, ..self.clone() }
    }
}
