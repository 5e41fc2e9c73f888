//! One row an arm and seed of an experiment: figures, and what they were made from.

use super::arms::Trial;
use super::graph::Graph;
use super::{Recipe, RunError};
use crate::stage::{StageError, read_json, seconds, write_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `<rows>/<arm>-<seed>.json`, or `<rows>/<arm>-<seed>.<run>.json` where a seed has several runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Of the recipe.
    pub experiment: String,
    /// Of the recipe.
    pub arm: String,
    /// Of the stages that take one.
    pub seed: u64,
    /// From 1; none where each seed runs once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u64>,
    /// Of the checkout that held the recipe, with `-dirty` where files differed from it; none outside of a checkout.
    pub commit: Option<String>,
    /// Stage → its hash.
    pub stages: BTreeMap<String, String>,
    /// Stage → how long it took (s), on as many threads as its run had: one with `--jobs` 2 or more. Of a stage that went on after a kill,
    /// only the last part; of one that several arms share, all of it in each row.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seconds: BTreeMap<String, f64>,
    /// The figures of the experiment's stage.
    pub result: Value,
}

/// Where the rows of an experiment lie unless told otherwise.
pub fn default_folder(experiment: &str) -> PathBuf {
    Path::new("docs/experiments").join(experiment)
}

/// The file of a row.
pub fn path(folder: &Path, trial: &Trial) -> PathBuf {
    folder.join(format!("{trial}.json"))
}

/// The hashes of the stages that a row stands on.
pub fn hashes(graph: &Graph, takes: &[bool]) -> BTreeMap<String, String> {
    let nodes = graph.nodes.iter().zip(takes).filter(|(_, takes)| **takes);
    nodes.map(|(node, _)| (node.name.clone(), node.hash.clone())).collect()
}

/// How long each of the stages took; `folder_of` knows the folder of a stage that is there.
pub fn stage_seconds<'a>(
    graph: &Graph,
    folder_of: impl Fn(usize) -> Option<&'a Path>,
) -> Result<BTreeMap<String, f64>, StageError> {
    let mut all = BTreeMap::new();
    for (place, node) in graph.nodes.iter().enumerate() {
        if let Some(took) = folder_of(place).map(seconds).transpose()?.flatten() {
            all.insert(node.name.clone(), (took * 10.0).round() / 10.0);
        }
    }
    Ok(all)
}

/// Whether a row is there already, made from the same stages.
pub fn is_there(path: &Path, stages: &BTreeMap<String, String>) -> Result<bool, RunError> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        read => read.map_err(StageError::io(path))?,
    };
    let row: Row = serde_json::from_slice(&text).map_err(|error| StageError::File {
        path: path.display().to_string(),
        message: format!("is no row: {error}; remove it to have it made anew"),
    })?;
    Ok(row.stages == *stages)
}

/// Writes a row whole or not at all.
pub fn write(path: &Path, row: &Row) -> Result<(), StageError> {
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(StageError::io(folder))?;
    }
    write_json(&fresh, row)?;
    std::fs::rename(&fresh, path).map_err(StageError::io(path))
}

/// The figures a stage left: `judged.json`.
pub fn result(folder: &Path) -> Result<Value, StageError> {
    read_json(&folder.join(crate::stages::JUDGED_FILE))
}

/// The commit a recipe was run at.
pub fn commit(recipe: &Recipe) -> Option<String> {
    let folder = if recipe.folder.as_os_str().is_empty() { Path::new(".") } else { &recipe.folder };
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let head = git(&["rev-parse", "HEAD"])?;
    let clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if clean { head } else { format!("{head}-dirty") })
}
