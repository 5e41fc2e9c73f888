//! Rewards as a recipe names them.

use super::{Category, Format, Length, Reward, RewardError, RewardSet, Scale, Semantic, Simulated};
use crate::simulate::{CategoryGrounder, Simulator};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use taiji::encode::Encoder;
use taiji::event::Item;

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardKind {
    /// [`Semantic`]
    Semantic,
    /// [`Simulated`]
    Simulated,
    /// [`Category`]
    Category,
    /// [`Format`]
    Format,
    /// [`Length`]
    Length,
}

impl RewardKind {
    fn name(self) -> &'static str {
        match self {
            Self::Semantic => "semantic",
            Self::Simulated => "simulated",
            Self::Category => "category",
            Self::Format => "format",
            Self::Length => "length",
        }
    }
}

/// Another reward that an answer needs: `gate = { by = "category", least = 1.0 }`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// `category` or `format`: what costs nothing.
    pub by: RewardKind,
    /// An answer of which it says less is worth 0.
    pub least: f64,
}

/// Recipe block `[[stage.reward]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardSettings {
    /// Which.
    pub kind: RewardKind,
    /// An answer without the exact format is worth 0, whatever it says. By default so for `semantic` and `simulated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gated: Option<bool>,
    /// What an answer needs beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// No value below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    /// No value above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<f64>,
    /// Of `simulated`.
    #[serde(default)]
    pub scale: Scale,
    /// Of `length`: tokens that cost nothing, and from which the reward is -1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<[usize; 2]>,
}

/// What rewards are made of; what none of them reads need not be there.
pub struct Sources<'a> {
    /// Catalogue.
    pub items: &'a [Item],
    /// The encoder that serves.
    pub encoder: Option<Arc<dyn Encoder>>,
    /// Loaded with that catalogue.
    pub simulator: Option<Simulator>,
    /// Of the prompts' schema.
    pub max_title_chars: usize,
}

impl RewardSettings {
    /// A reward of a kind, as it is where nothing else is said.
    pub fn of(kind: RewardKind) -> Self {
        Self { kind, gated: None, gate: None, floor: None, cap: None, scale: Scale::default(), tokens: None }
    }

    /// Refuses what cannot be.
    pub fn check(&self) -> Result<(), RewardError> {
        let wrong = |message: &str| {
            Err(RewardError::Setting { reward: self.kind.name().to_string(), message: message.to_string() })
        };
        if self.floor.zip(self.cap).is_some_and(|(floor, cap)| floor >= cap) {
            return wrong("floor must be below cap");
        }
        let given = [self.floor, self.cap, self.gate.map(|gate| gate.least)];
        if given.iter().flatten().any(|value| !value.is_finite()) {
            return wrong("floor, cap and gate.least must be numbers");
        }
        if self.kind == RewardKind::Length && (self.gate.is_some() || self.gated == Some(true)) {
            return wrong("is below 0: an answer that a gate shuts out, worth 0, would be worth more");
        }
        if self.gate.is_some_and(|gate| !matches!(gate.by, RewardKind::Category | RewardKind::Format)) {
            return wrong("gate.by must be category or format");
        }
        if self.kind != RewardKind::Simulated && self.scale != Scale::default() {
            return wrong("scale belongs to simulated alone");
        }
        match (self.kind, self.tokens) {
            (RewardKind::Length, None) => wrong("give tokens = [free, most]"),
            (RewardKind::Length, Some([free, most])) if free >= most => wrong("tokens must be [free, most], rising"),
            (RewardKind::Length, Some(_)) | (_, None) => Ok(()),
            (_, Some(_)) => wrong("tokens belong to length alone"),
        }
    }
}

impl RewardSet {
    /// Rewards in the order of their settings.
    pub fn new(settings: &[RewardSettings], sources: Sources<'_>) -> Result<Self, RewardError> {
        let Sources { items, encoder, mut simulator, max_title_chars } = sources;
        let mut set = RewardSet::default();
        for settings in settings {
            settings.check()?;
            let name = settings.kind.name().to_string();
            if set.names().contains(&name.as_str()) {
                return Err(RewardError::Setting { reward: name, message: "is named twice".into() });
            }
            let missing = |what| RewardError::Missing { reward: name.clone(), what };
            let reward: Box<dyn Reward> = match settings.kind {
                RewardKind::Semantic => {
                    let encoder = encoder.clone().ok_or_else(|| missing("an encoder"))?;
                    Box::new(Semantic::new(encoder, max_title_chars))
                }
                RewardKind::Simulated => {
                    let simulator = simulator.take().ok_or_else(|| missing("a simulator"))?;
                    Box::new(Simulated::new(simulator, CategoryGrounder::new(items), settings.scale)?)
                }
                RewardKind::Category => Box::new(Category),
                RewardKind::Format => Box::new(Format),
                RewardKind::Length => {
                    let [free, most] = settings.tokens.unwrap_or_default();
                    Box::new(Length { free, most })
                }
            };
            let bounds = [settings.floor.unwrap_or(f64::NEG_INFINITY), settings.cap.unwrap_or(f64::INFINITY)];
            let gated = matches!(settings.kind, RewardKind::Semantic | RewardKind::Simulated);
            set = set.with(name, reward, settings.gated.unwrap_or(gated), bounds);
            set = match settings.gate {
                None => set,
                Some(Gate { by: RewardKind::Category, least }) => set.behind(Box::new(Category), least),
                Some(Gate { least, .. }) => set.behind(Box::new(Format), least),
            };
        }
        Ok(set)
    }
}
