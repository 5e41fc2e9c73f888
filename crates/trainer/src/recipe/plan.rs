//! What a run would do, and why.

use super::graph::Graph;
use super::ledger::Ledger;
use super::run::{Choice, chosen, graphs};
use super::{Given, Recipe, RunError};
use crate::stage::{State, Work};
use std::fmt;
use std::path::Path;

/// One stage of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// With arm and seed before it.
    pub stage: String,
    /// What it does.
    pub kind: String,
    /// Of everything that decides it.
    pub hash: String,
    /// `None`: nothing is to do.
    pub why: Option<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.why.as_ref().map_or("done".to_string(), |why| format!("run: {why}"));
        write!(out, "{:24} {:12} {}  {what}", self.stage, self.kind, self.hash)
    }
}

/// The stages that a run with the same options would look at, in order. Nothing is written.
pub fn plan(recipe: &Path, given: &Given, choice: &Choice, work: &Work) -> Result<Vec<Line>, RunError> {
    let recipe = Recipe::read(recipe)?;
    let ledger = Ledger::open(work, &recipe.name)?;
    let mut lines: Vec<Line> = Vec::new();
    for (variant, graph) in graphs(&recipe, given, choice)? {
        let takes = chosen(&recipe, &graph, choice)?;
        for (place, node) in graph.nodes.iter().enumerate().filter(|(place, _)| takes[*place]) {
            // Shared by arms: said once.
            if lines.iter().any(|line| line.hash == node.hash && line.kind == node.fingerprint.kind) {
                continue;
            }
            let stage = format!("{}{}", variant.label(), node.name);
            let why = why(work, &ledger, &stage, &graph, place);
            lines.push(Line { stage, kind: node.fingerprint.kind.clone(), hash: node.hash.clone(), why });
        }
    }
    Ok(lines)
}

fn why(work: &Work, ledger: &Ledger, stage: &str, graph: &Graph, place: usize) -> Option<String> {
    let fingerprint = &graph.nodes[place].fingerprint;
    match work.state(fingerprint) {
        State::Done => None,
        State::Partial => Some("was interrupted".to_string()),
        State::Absent => {
            let Some(last) = ledger.last(stage) else { return Some("new".to_string()) };
            Some(fingerprint.difference(&last).unwrap_or_else(|| "its folder was removed".to_string()))
        }
    }
}
