//! One stage of a recipe with what it is made from, for programs that do with it something else than running it.
//!
//! In: a recipe, a kind of stage. Out: its settings and its parents' folders, which must be made. Callers: `rewards`, `data_export`.

use super::read::Given;
use super::run::{Choice, graphs};
use super::{Recipe, RunError};
use crate::progress::Console;
use crate::stage::{Inputs, State, Work};
use std::path::Path;

/// Which stage.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// By name; without one the recipe must have one stage of the kind.
    pub stage: Option<String>,
    /// Of an experiment: this arm, at its first seed.
    pub arm: Option<String>,
    /// As a command line for `run` says it, for messages.
    pub words: String,
}

/// A stage as the recipe says it.
pub struct Ready {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Its settings, those of the arm among them.
    pub settings: toml::Table,
    /// Its parents.
    pub inputs: Inputs,
}

/// The stage of one of these kinds; its parents must have been made.
pub fn ready(
    path: &Path,
    given: &Given,
    which: &Which,
    kinds: &[&str],
    work: &Work,
    console: &Console,
) -> Result<Ready, RunError> {
    let recipe = Recipe::read(path)?;
    let usage = |message: String| Err(RunError::Usage(message));
    if recipe.experiment.is_some() && which.arm.is_none() {
        let arms: Vec<&str> = recipe.arms.keys().map(String::as_str).collect();
        return usage(format!("--arm is missing: the recipe is an experiment with the arms {}", arms.join(", ")));
    }
    let choice = Choice { arms: which.arm.iter().cloned().collect(), ..Choice::default() };
    let Some((variant, graph)) = graphs(&recipe, given, &choice)?.into_iter().next() else {
        return usage("the recipe has no stages".to_string());
    };
    let wanted = |kind: &str, name: &str| match &which.stage {
        Some(stage) => name == stage,
        None => kinds.contains(&kind),
    };
    let mut found = variant.entries.iter().filter(|entry| wanted(&entry.kind, &entry.name));
    let entry = match (found.next(), found.next(), &which.stage) {
        (Some(entry), None, _) if kinds.contains(&entry.kind.as_str()) => entry,
        (Some(entry), None, _) => {
            return usage(format!("--stage {}: is of kind {}, not {}", entry.name, entry.kind, kinds.join(" or ")));
        }
        (Some(one), Some(other), _) => {
            return usage(format!("--stage is missing: {} and {} could both be meant", one.name, other.name));
        }
        (None, _, Some(stage)) => return usage(format!("--stage {stage}: the recipe has no stage of this name")),
        (None, _, None) => return usage(format!("the recipe has no stage of kind {}", kinds.join(" or "))),
    };
    let Some(node) = graph.place(&entry.name).map(|place| &graph.nodes[place]) else {
        return usage(format!("--stage {}: the recipe has no stage of this name", entry.name));
    };
    for parent in node.parents.iter().map(|parent| &graph.nodes[*parent]) {
        if work.state(&parent.fingerprint) != State::Done {
            let (parent, own, words) = (&parent.name, &entry.name, &which.words);
            let makes = format!("taiji-trainer run{words} --before {own}");
            return usage(format!("stage {parent} is not made yet: {makes} makes all that {own} needs"));
        }
    }
    let inputs = graph.inputs(node, work, console.stage(&entry.name));
    Ok(Ready { name: entry.name.clone(), kind: entry.kind.clone(), settings: entry.settings.clone(), inputs })
}
