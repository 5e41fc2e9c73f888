//! Entries → stages in an order in which parents come first, with types checked and hashes computed.

use super::arms::Variant;
use super::read::{Entry, Given};
use super::{Recipe, RecipeError, RunError};
use crate::progress::Progress;
use crate::stage::{Artefact, FileSums, Fingerprint, Inputs, Stage, Work};
use crate::stages::{self, Context};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One stage in its place.
#[derive(Clone)]
pub struct Node {
    /// Of the stage in the recipe.
    pub name: String,
    /// With its settings.
    pub stage: Arc<dyn Stage>,
    /// Places of the parents, which are lower.
    pub parents: Vec<usize>,
    /// What its hash is of.
    pub fingerprint: Fingerprint,
    /// Its hash.
    pub hash: String,
}

/// The stages of a variant; parents first, else in the order of the file.
#[derive(Clone)]
pub struct Graph {
    /// The stages.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// Makes and checks all stages; reads the bytes of their input files.
    pub fn new(recipe: &Recipe, variant: &Variant, given: &Given, sums: &mut FileSums) -> Result<Graph, RunError> {
        let order = order(recipe, &variant.entries)?;
        let context = Context {
            folder: recipe.folder.clone(),
            data: given.data.clone(),
            name: variant.name.clone(),
            epoch: recipe.epoch,
        };
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut graph = Graph { nodes: Vec::new() };
        for entry in order {
            let made = stages::make(&entry.kind, entry.settings.clone(), &context);
            let stage = made.map_err(|wrong| recipe.key_error(&entry.name, wrong))?;
            let parents: Vec<usize> = entry.from.iter().filter_map(|name| places.get(name.as_str()).copied()).collect();
            graph.check_types(recipe, entry, &*stage, &parents)?;
            let inputs: Vec<(Artefact, String)> = parents.iter().map(|place| graph.input(*place)).collect();
            let failed = |source| RunError::stage(&entry.name, source);
            let fingerprint = Fingerprint::new(&*stage, &inputs, sums).map_err(failed)?;
            places.insert(&entry.name, graph.nodes.len());
            let (name, hash) = (entry.name.clone(), fingerprint.hash());
            graph.nodes.push(Node { name, stage, parents, fingerprint, hash });
        }
        Ok(graph)
    }

    fn input(&self, place: usize) -> (Artefact, String) {
        (self.nodes[place].stage.output(), self.nodes[place].hash.clone())
    }

    /// Every parent is of a type that the stage takes, no type comes twice, and none is missing.
    fn check_types(
        &self,
        recipe: &Recipe,
        entry: &Entry,
        stage: &dyn Stage,
        parents: &[usize],
    ) -> Result<(), RecipeError> {
        let wrong = |message: String| Err(recipe.key(&entry.name, "from", message));
        let mut given: BTreeMap<Artefact, &str> = BTreeMap::new();
        for place in parents {
            let (name, artefact) = (self.nodes[*place].name.as_str(), self.nodes[*place].stage.output());
            if !stage.inputs().iter().any(|input| input.artefact == artefact) {
                let takes: Vec<&str> = stage.inputs().iter().map(|input| input.artefact.name()).collect();
                let takes = if takes.is_empty() { "nothing".to_string() } else { takes.join(", ") };
                return wrong(format!(
                    "{name} makes {}; a stage of kind {} takes {takes}",
                    artefact.name(),
                    entry.kind
                ));
            }
            if let Some(other) = given.insert(artefact, name) {
                return wrong(format!("{other} and {name} both make {}; give one", artefact.name()));
            }
        }
        match stage.inputs().iter().find(|input| !input.optional && !given.contains_key(&input.artefact)) {
            Some(missing) => wrong(format!("lacks a stage that makes {}", missing.artefact.name())),
            None => Ok(()),
        }
    }

    /// What a stage is given: its parents as they lie in the work folder.
    pub fn inputs(&self, node: &Node, work: &Work, progress: Progress) -> Inputs {
        let mut inputs = Inputs::new(progress);
        for parent in node.parents.iter().map(|parent| &self.nodes[*parent]) {
            inputs.add(parent.stage.output(), work.folder(&parent.fingerprint), parent.hash.clone());
        }
        inputs
    }

    /// The place of a stage.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// A stage and everything it stands on.
    pub fn ancestors(&self, place: usize) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        needed[place] = true;
        for child in (0..=place).rev() {
            if needed[child] {
                self.nodes[child].parents.iter().for_each(|parent| needed[*parent] = true);
            }
        }
        needed
    }

    /// A stage and everything that stands on it.
    pub fn descendants(&self, place: usize) -> Vec<bool> {
        let mut reached = vec![false; self.nodes.len()];
        for (child, node) in self.nodes.iter().enumerate() {
            reached[child] = child == place || node.parents.iter().any(|parent| reached[*parent]);
        }
        reached
    }
}

/// Parents before children, else as in the file. Refuses unknown parents and cycles.
fn order<'a>(recipe: &Recipe, entries: &'a [Entry]) -> Result<Vec<&'a Entry>, RecipeError> {
    for entry in entries {
        let unknown = entry.from.iter().find(|parent| !entries.iter().any(|other| other.name == **parent));
        if let Some(parent) = unknown {
            return Err(recipe.key(&entry.name, "from", format!("there is no stage {parent}")));
        }
    }
    let mut ordered: Vec<&Entry> = Vec::new();
    while ordered.len() < entries.len() {
        let has = |name: &String| ordered.iter().any(|entry| entry.name == *name);
        let next = entries.iter().find(|entry| !has(&entry.name) && entry.from.iter().all(has));
        match next {
            Some(entry) => ordered.push(entry),
            None => return Err(cycle(recipe, entries, &ordered)),
        }
    }
    Ok(ordered)
}

/// Walks from parent to parent among what cannot be ordered until a stage comes twice.
fn cycle(recipe: &Recipe, entries: &[Entry], ordered: &[&Entry]) -> RecipeError {
    let stuck = |name: &str| entries.iter().find(|e| e.name == name && !ordered.iter().any(|other| other.name == name));
    let mut path: Vec<&str> = Vec::new();
    let mut at = entries.iter().find(|entry| stuck(&entry.name).is_some());
    while let Some(entry) = at {
        if let Some(begin) = path.iter().position(|name| *name == entry.name) {
            let mut round = path.split_off(begin);
            round.push(&entry.name);
            return recipe.key(&entry.name, "from", format!("stages stand on each other: {}", round.join(" from ")));
        }
        path.push(&entry.name);
        at = entry.from.iter().find_map(|parent| stuck(parent));
    }
    recipe.stage_error(path.first().copied().unwrap_or_default(), "its parents cannot be ordered")
}
