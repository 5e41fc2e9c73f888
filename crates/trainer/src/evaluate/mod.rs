//! Measuring what the model writes and what its features are worth; pure functions on plain data.
//!
//! In: generations beside the truth, PQ codes, neighbours, histories, the dataset that rules are counted on. Out: [`EvaluationReport`] (`report.json`);
//! of an experiment's rows its tables and its page ([`Rows`]). Callers: `judge`, the stage `answers`, `taiji-trainer evaluate` and `contrasts`.

mod comparison;
mod contrasts;
#[cfg(test)]
mod contrasts_tests;
mod counting;
mod experiment_page;
mod features;
mod generations;
mod looks;
mod ranking;
mod rules;

pub use comparison::{Comparison, Figure, Written, compare_with_rules};
pub use contrasts::Rows;
pub use counting::Counting;
pub use features::{
    Agreement, CodeHealth, JaccardComparison, code_health, distinct_tuple_share, jaccard_with_neighbours,
    neighbour_agreement, slot_entropy_bits,
};
pub use generations::{CaseHits, GenerationCase, GenerationMetrics, best_constant, score_generations};
pub use looks::{Calibration, Hits, LookFigures, PerUser, Values};
pub use ranking::{ndcg, rank_by_score, rank_in_list, recall};
pub use rules::{RuleFigure, compare_with_fitted};

use crate::data::Protocol;
use serde::{Deserialize, Serialize};

/// All offline metrics of a bundle. Parts that were not measured are absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Who was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// What the LLM wrote for held-out targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generations: Option<GenerationMetrics>,
    /// The same beside rules that learn nothing, with lists and intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// The same beside rules that were fitted to a generated world whose prompts they can read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fitted_rules: Vec<RuleFigure>,
    /// Whether the sparse IDs carry information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<CodeHealth>,
    /// Whether the retrieved neighbour wants the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<Agreement>,
    /// Whether the neighbour's history overlaps more than a stranger's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histories: Option<JaccardComparison>,
}
