//! How a simulator knew what it said: counts, by level.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a chance came from; the first that has anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The pair is in the table.
    Pair,
    /// Mean of the user's pairs in the item's third level of category.
    UserL3,
    /// Mean of the user's pairs in its second.
    UserL2,
    /// Mean of everybody's pairs in its third.
    L3,
    /// Mean of the whole table.
    Mean,
}

impl Level {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Pair => "pair",
            Level::UserL3 => "user_l3",
            Level::UserL2 => "user_l2",
            Level::L3 => "l3",
            Level::Mean => "mean",
        }
    }
}

/// Counts since the start. A rising share of anything but [`Level::Pair`] means that answers drift to what the table does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Answers.
    pub answers: u64,
    /// Answers that name no item of the catalogue: no chance is known.
    pub ungrounded: u64,
    /// The others, by where their chance came from.
    pub levels: BTreeMap<Level, u64>,
}

impl Telemetry {
    /// Counts an answer; `None` = it named no item.
    pub fn count(&mut self, level: Option<Level>) {
        self.answers += 1;
        match level {
            Some(level) => *self.levels.entry(level).or_default() += 1,
            None => self.ungrounded += 1,
        }
    }

    /// Counts since an earlier state of the same.
    pub fn since(&self, before: &Telemetry) -> Telemetry {
        let earlier = |level: &Level| before.levels.get(level).copied().unwrap_or(0);
        Telemetry {
            answers: self.answers - before.answers,
            ungrounded: self.ungrounded - before.ungrounded,
            levels: self.levels.iter().map(|(level, count)| (*level, count - earlier(level))).collect(),
        }
    }

    /// Share of the answers that name an item whose pair is in the table.
    pub fn hit_rate(&self) -> f64 {
        self.levels.get(&Level::Pair).copied().unwrap_or(0) as f64 / self.answers.max(1) as f64
    }

    /// Share of the answers that name no item.
    pub fn ungrounded_share(&self) -> f64 {
        self.ungrounded as f64 / self.answers.max(1) as f64
    }
}
