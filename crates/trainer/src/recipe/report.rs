//! What a run tells in the end: the stages with what became of them, what was trained, what was judged → one page.

use super::schedule::Task;
use super::{Recipe, RunError, rows};
use crate::report::{Report, StageEntry, StageState, page};
use crate::sft::training::REPORT_FILE;
use crate::stage::{Artefact, StageError, State, Work, read_json, seconds};
use crate::stages::JUDGED_FILE;
use std::path::{Path, PathBuf};

/// The folder of pages in the work folder.
const FOLDER: &str = "reports";

/// What was there before a run began.
pub struct Before {
    done: Vec<bool>,
    commit: Option<String>,
}

impl Before {
    /// Of the tasks of a run.
    pub fn of(recipe: &Recipe, tasks: &[Task], work: &Work) -> Before {
        let done = tasks.iter().map(|task| work.state(&task.node.fingerprint) == State::Done).collect();
        Before { done, commit: rows::commit(recipe) }
    }
}

/// Writes the page of a run that has ended, with what it has come to; returns its path.
pub fn write(
    recipe: &Recipe,
    tasks: &[Task],
    before: &Before,
    work: &Work,
    failed: Option<&RunError>,
) -> Result<PathBuf, StageError> {
    let mut report = Report {
        name: recipe.name.clone(),
        facts: facts(recipe, before),
        failed: failed.map(RunError::to_string),
        ..Report::default()
    };
    for (task, was_done) in tasks.iter().zip(&before.done) {
        let is_done = work.state(&task.node.fingerprint) == State::Done;
        let state = match (was_done, is_done) {
            (true, _) => StageState::Before,
            (false, true) => StageState::Made,
            (false, false) => StageState::Missing,
        };
        report.stages.push(StageEntry {
            label: task.label.clone(),
            kind: task.node.fingerprint.kind.clone(),
            hash: task.node.hash.clone(),
            seconds: if is_done { seconds(&task.folder)? } else { None },
            state,
            parents: task.after.clone(),
        });
        if is_done {
            read_figures(&mut report, task)?;
        }
    }
    let path = work.root().join(FOLDER).join(format!("{}.html", recipe.name));
    place(&path, &page(&report))?;
    Ok(path)
}

fn facts(recipe: &Recipe, before: &Before) -> Vec<(String, String)> {
    let fact = |what: &str, value: String| (what.to_string(), value);
    let mut facts = vec![fact("recipe", recipe.file.clone()), fact("epoch", recipe.epoch.to_string())];
    facts.extend(before.commit.clone().map(|commit| fact("commit", commit)));
    facts.push(fact("program", format!("taiji-trainer {}", env!("CARGO_PKG_VERSION"))));
    facts
}

/// What a finished stage noted of its training or judging.
fn read_figures(report: &mut Report, task: &Task) -> Result<(), StageError> {
    let trained = task.folder.join(REPORT_FILE);
    if task.node.stage.output() == Artefact::Checkpoint && trained.is_file() {
        report.trainings.push((task.label.clone(), read_json(&trained)?));
    }
    if task.node.stage.output() == Artefact::Judgement {
        report.judgements.push((task.label.clone(), read_json(&task.folder.join(JUDGED_FILE))?));
    }
    Ok(())
}

/// Copies a page beside what a run made.
pub fn copy(page: &Path, to: &Path) -> Result<(), StageError> {
    let text = std::fs::read_to_string(page).map_err(StageError::io(page))?;
    place(to, &text)
}

/// Writes a page whole or not at all.
fn place(path: &Path, text: &str) -> Result<(), StageError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(StageError::io(folder))?;
    }
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let written = std::fs::write(&fresh, text).map_err(StageError::io(&fresh));
    written.and_then(|()| std::fs::rename(&fresh, path).map_err(StageError::io(path))).inspect_err(|_| {
        // The error of writing is the one to tell.
        let _ = std::fs::remove_file(&fresh);
    })
}
