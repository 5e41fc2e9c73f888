//! Settings of a ranker: those of a stage of kind `rank`.

use super::RankError;
use super::mixer::MixerSettings;
use super::model::PLACES;
use super::onepiece::OnePieceSettings;
use crate::fit::{AdamWSettings, LoopSettings, Schedule, is_default};
use serde::{Deserialize, Serialize};

/// What makes chances of all that is known of an impression.
#[derive(Debug, Clone, PartialEq)]
pub enum Arch {
    /// DIN's layers, by a factor wider.
    Din {
        /// Of the layers' widths.
        width: f64,
    },
    /// A token mixer.
    Tokenmixer(MixerSettings),
    /// A transformer over everything.
    OnePiece(OnePieceSettings),
}

impl Arch {
    /// DIN, unless one of the others is named.
    pub(super) fn of(width: f64, tokenmixer: Option<MixerSettings>, onepiece: Option<OnePieceSettings>) -> Self {
        match (tokenmixer, onepiece) {
            (Some(settings), _) => Arch::Tokenmixer(settings),
            (None, Some(settings)) => Arch::OnePiece(settings),
            (None, None) => Arch::Din { width },
        }
    }
}

/// Defaults fit a hundred thousand points with some two thousand items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RankSettings {
    /// Engagements looked at, newest first.
    pub history: usize,
    /// Items of a cross-user sequence looked at.
    pub cross: usize,
    /// Share of the points, the newest, that the figures are of.
    pub test_share: f64,
    /// Share of the points before them that is validated on.
    pub validation_share: f64,
    /// Passes over the training points.
    pub epochs: usize,
    /// Points of one batch, which is one step.
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
    /// Chance that a training point lacks its `intra` codes, and that it lacks its `cross` sequence: what is missing when served is then
    /// something the ranker has seen.
    pub feature_dropout: f64,
    /// Test points with a click for which the whole catalogue is ranked, too; 0 = none.
    #[serde(skip_serializing_if = "is_default")]
    pub catalogue_points: usize,
    /// Whether how often an item was clicked in training is put back in there: for labels whose items were drawn by it.
    #[serde(skip_serializing_if = "is_default")]
    pub catalogue_popularity: bool,
    /// Factor of the width of DIN's layers.
    pub width: f64,
    /// A token mixer in the place of DIN's layers.
    #[serde(skip_serializing_if = "is_default")]
    pub tokenmixer: Option<MixerSettings>,
    /// A transformer over everything in the place of DIN.
    #[serde(skip_serializing_if = "is_default")]
    pub onepiece: Option<OnePieceSettings>,
    /// Seed of weights, order and dropout.
    pub seed: u64,
    /// Threads, 0 = all cores.
    pub threads: usize,
    /// Steps between entries of the loss curve.
    pub log_every: u64,
    /// Steps between validations.
    pub validate_every: u64,
    /// Steps between resumable states, 0 = none.
    pub checkpoint_every: u64,
}

impl Default for RankSettings {
    fn default() -> Self {
        Self {
            history: 50,
            cross: 20,
            test_share: 0.1,
            validation_share: 0.05,
            epochs: 2,
            batch: 64,
            lr: 2e-3,
            last_lr: 1e-5,
            warmup: 100,
            weight_decay: 0.01,
            clip_norm: 1.0,
            feature_dropout: 0.1,
            catalogue_points: 0,
            catalogue_popularity: false,
            width: 1.0,
            tokenmixer: None,
            onepiece: None,
            seed: 7,
            threads: 0,
            log_every: 50,
            validate_every: 200,
            checkpoint_every: 200,
        }
    }
}

impl RankSettings {
    /// Refuses what cannot be trained, naming the setting.
    pub fn check(&self) -> Result<(), RankError> {
        let fail = |field, message: String| Err(RankError::Settings { field, message });
        let counts = [
            ("history", self.history),
            ("cross", self.cross),
            ("epochs", self.epochs),
            ("batch", self.batch),
            ("log_every", self.log_every as usize),
            ("validate_every", self.validate_every as usize),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return fail(field, "must be positive".into());
        }
        if let Some((field, value)) = counts[..2].iter().find(|(_, value)| *value > PLACES) {
            return fail(field, format!("must be at most {PLACES}, got {value}"));
        }
        for (field, value) in [("test_share", self.test_share), ("validation_share", self.validation_share)] {
            if !(value > 0.0 && value < 0.5) {
                return fail(field, format!("must be above 0 and below 0.5, got {value}"));
            }
        }
        if !(0.0..1.0).contains(&self.feature_dropout) {
            return fail("feature_dropout", format!("must be at least 0 and below 1, got {}", self.feature_dropout));
        }
        for (field, value) in [("lr", self.lr), ("clip_norm", self.clip_norm), ("width", self.width)] {
            if !(value > 0.0 && value.is_finite()) {
                return fail(field, format!("must be positive, got {value}"));
            }
        }
        let others = [
            self.tokenmixer.as_ref().map(|settings| ("tokenmixer", settings.check())),
            self.onepiece.as_ref().map(|settings| ("onepiece", settings.check())),
        ];
        for (arch, checked) in others.into_iter().flatten() {
            checked.map_err(|(field, message)| RankError::Settings { field, message })?;
            if self.width != 1.0 {
                return fail("width", format!("is of DIN's layers: leave it out beside {arch}, which has its own"));
            }
        }
        if self.tokenmixer.is_some() && self.onepiece.is_some() {
            return fail("onepiece", "and tokenmixer are both there: leave one out".into());
        }
        if self.onepiece.is_some() && self.catalogue_points > 0 {
            let message = "needs a ranker that looks at a candidate by itself: leave it out beside onepiece";
            return fail("catalogue_points", message.into());
        }
        match (0.0..=self.lr).contains(&self.last_lr) {
            true => Ok(()),
            false => fail("last_lr", format!("must be from 0 to lr {}, got {}", self.lr, self.last_lr)),
        }
    }

    /// What the settings make.
    pub(super) fn arch(&self) -> Arch {
        Arch::of(self.width, self.tokenmixer.clone(), self.onepiece.clone())
    }

    pub(super) fn optimizer(&self) -> AdamWSettings {
        AdamWSettings { weight_decay: self.weight_decay, clip_norm: self.clip_norm, ..AdamWSettings::default() }
    }

    pub(super) fn fitting(&self, steps: u64) -> LoopSettings {
        LoopSettings {
            schedule: Schedule { peak: self.lr, warmup: self.warmup, total: steps, floor: self.last_lr / self.lr },
            log_every: self.log_every,
            validate_every: self.validate_every,
            checkpoint_every: self.checkpoint_every,
            max_skipped: 0,
            ema: 0.0,
            keep_best: true,
            patience: 0,
        }
    }
}
