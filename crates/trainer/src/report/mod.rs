//! One page about a run: stages, curves, figures, samples; one about an experiment: contrasts, arms, fronts; and single charts ([`picture`]).
//!
//! In: a [`Report`], which `recipe` gathers from the folders of the stages, or an [`ExperimentReport`], which `evaluate` gathers from rows. Out:
//! one HTML file that needs nothing beside it: no script, no outside resource, light and dark as the reader's system is. Whatever comes from data is escaped, and the
//! page's own policy forbids scripts on top.
//!
//! ```text
//! stage_graph (boxes and lines) ─┐
//! figures (JSON → tables) ───────┼─► page ───────┬─► file
//! chart (curves)  ───────────────┴─► experiment ─┘
//! interval_chart, front ─────────────┘
//! ```

mod chart;
mod experiment;
mod figures;
mod front;
mod html;
mod interval_chart;
mod page;
mod stage_graph;
mod style;
#[cfg(test)]
mod tests;

pub use chart::{COLOURS, Series, picture};
pub use experiment::{ExperimentReport, experiment_page};
pub use front::FrontPoint;
pub use interval_chart::IntervalRow;
pub use page::page;

use crate::sft::SftReport;
use serde_json::Value;

/// What is told of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Of the recipe.
    pub name: String,
    /// Beneath the title: what, and its value.
    pub facts: Vec<(String, String)>,
    /// Why the run ended before its end.
    pub failed: Option<String>,
    /// Stages; parents first.
    pub stages: Vec<StageEntry>,
    /// What was trained: the stage's name, and what it noted.
    pub trainings: Vec<(String, SftReport)>,
    /// What was judged: the stage's name, and the figures.
    pub judgements: Vec<(String, Value)>,
}

/// One stage of a run.
#[derive(Debug, Clone)]
pub struct StageEntry {
    /// With arm and seed before it.
    pub label: String,
    /// Of the stage.
    pub kind: String,
    /// Of everything that decides it.
    pub hash: String,
    /// How long it took, if that was noted.
    pub seconds: Option<f64>,
    /// What became of it.
    pub state: StageState,
    /// Places of its parents in the list.
    pub parents: Vec<usize>,
}

/// What became of a stage in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageState {
    /// Made in this run.
    Made,
    /// There before.
    Before,
    /// Not made: the run ended before it, or with it.
    Missing,
}

impl StageState {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            StageState::Made => "made now",
            StageState::Before => "done before",
            StageState::Missing => "not made",
        }
    }
}
