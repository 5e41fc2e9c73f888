//! The lab: every rule of `weighting` as the only difference between policies that are trained on two rewards.
//!
//! In: seeds. Out: each arm's gains over greedy SFT in each cell ([`Figures`]), by which step lengths and weights are chosen, and a
//! judgement on fresh seeds by `docs/experiments/pareto.toml`, as Markdown and charts. Caller: `make pareto-lab`.
//!
//! ```text
//! world `reason` ─► Tables ─► SFT ─► Start (cell) ─► Run (arm, setting, step) ─► Figures ─► Choice (24 seeds) ─► Judged (24 others)
//! ```
//!
//! The policy is a linear softmax over 120 items a user; its similarity to the item bought next and its click-and-conversion rate are
//! the world's own. All arms take equally many roll-outs and steps. It says how rules differ, not what an LLM will do.

mod arm;
mod cell;
mod choose;
mod figures;
mod gains;
mod judge;
mod lab;
mod plots;
mod policy;
mod report;
#[cfg(test)]
mod tests;
mod train;
mod world;

pub use arm::{ARMS, Arm, Role};
pub use cell::{CELLS, Cell};
pub use lab::{Outcome, Plan, run};

use crate::stats::StatsError;
use crate::weighting::WeightingError;
use thiserror::Error;

/// The rewards' names.
pub const OBJECTIVES: [&str; 2] = ["similarity", "ctcvr"];
/// Roll-outs of a step.
pub const ROLLOUTS: usize = 64;
/// Factors of the step length that are tried.
pub const FACTORS: [f64; 3] = [0.5, 1.0, 2.0];

/// How much is trained and judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Users of the prompts.
    pub trained: usize,
    /// Users that gains are measured on.
    pub judged: usize,
    /// Steps of a run.
    pub steps: usize,
}

/// Why the lab cannot say anything.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LabError {
    #[error(transparent)]
    Weighting(#[from] WeightingError),
    #[error(transparent)]
    Stats(#[from] StatsError),
    #[error("there is no arm {0}: name one of `ARMS`")]
    NoArm(String),
    #[error("there is no metric {0}: balanced, smallest, sum or volume")]
    NoMetric(String),
    #[error("no cell can be judged: in each a gain that is divided by may be 0; take more seeds or longer runs")]
    NoCell,
    #[error("{path}: {message}")]
    File { path: String, message: String },
}
