//! Running a recipe: which stages, several at once, rows and bundles as they become ready.

use super::arms::{Trial, Variant};
use super::graph::{Graph, Node};
use super::ledger::Ledger;
use super::schedule::{Task, schedule};
use super::{Given, Recipe, RecipeError, RunError, publish, report, rows};
use crate::progress::Console;
use crate::stage::{Artefact, FileSums, Inputs, StageError, State, Work, check_files};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where bundles go unless told otherwise.
const DEFAULT_OUT: &str = "models";

/// Which part of a recipe is meant.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// This stage and what stands on it.
    pub from: Option<String>,
    /// This stage and what it stands on.
    pub until: Option<String>,
    /// What this stage stands on, without it.
    pub before: Option<String>,
    /// This stage alone.
    pub only: Option<String>,
    /// These arms; empty = all.
    pub arms: Vec<String>,
}

/// What the command line says beside the recipe.
#[derive(Debug, Clone)]
pub struct Options {
    /// Data and seeds.
    pub given: Given,
    /// The part to run.
    pub choice: Choice,
    /// Bundles go to `<out>/<name>/<epoch>`, by default in `models`.
    pub out: Option<PathBuf>,
    /// Rows of an experiment go here; by default below `docs/experiments`.
    pub rows: Option<PathBuf>,
    /// Stages run at once; with more than one each has one thread.
    pub jobs: usize,
    /// Where stages lie.
    pub work: Work,
    /// Where progress is told.
    pub console: Console,
}

/// One variant on its way.
struct Running {
    variant: Variant,
    graph: Graph,
    takes: Vec<bool>,
    /// Its stages as tasks; `None` for those that are not taken.
    tasks: Vec<Option<usize>>,
}

/// Runs a recipe; returns the rows and bundles that are there now, and the report.
pub fn run(recipe: &Path, options: &Options) -> Result<Vec<PathBuf>, RunError> {
    let recipe = Recipe::read(recipe)?;
    let work = &options.work;
    let ledger = Ledger::open(work, &recipe.name)?;
    let mut made = Vec::new();
    let mut tasks: Vec<Task> = Vec::new();
    let mut running: Vec<Running> = Vec::new();
    for (variant, graph) in graphs(&recipe, &options.given, &options.choice)? {
        let takes = chosen(&recipe, &graph, &options.choice)?;
        if let Some(path) = row_path(&recipe, &variant, options)
            && rows::is_there(&path, &rows::hashes(&graph, &takes))?
        {
            options.console.say(&format!("{}: its row is there", path.display()));
            made.push(path);
            continue;
        }
        let own = add_tasks(&mut tasks, &variant, &graph, &takes, options)?;
        running.push(Running { variant, graph, takes, tasks: own });
    }
    let commit = recipe.experiment.as_ref().and_then(|_| rows::commit(&recipe));
    let threads = (options.jobs > 1).then_some(1);
    let before = report::Before::of(&recipe, &tasks, work);
    let mut folders: Vec<Option<PathBuf>> = vec![None; tasks.len()];
    let mut bundles = Vec::new();
    let ended = schedule(
        &tasks,
        options.jobs.max(1),
        |task| make(&task.node, &task.inputs, work, threads),
        |place, folder| {
            folders[place] = Some(folder);
            for one in running.iter().filter(|one| one.tasks.contains(&Some(place))) {
                note(&ledger, one, place)?;
                if one.tasks.iter().flatten().all(|task| folders[*task].is_some()) {
                    let finished = finish(&recipe, one, &folders, commit.clone(), options)?;
                    bundles.extend(finished.bundles);
                    made.extend(finished.rows);
                }
            }
            Ok(())
        },
    );
    if tasks.is_empty() {
        return ended.map(|()| made);
    }
    let page = report::write(&recipe, &tasks, &before, work, ended.as_ref().err());
    // Why the run ended early matters more than why that could not be written down.
    ended?;
    let page = page?;
    for copy in report_copies(&recipe, &bundles, options) {
        report::copy(&page, &copy)?;
    }
    made.extend(bundles);
    made.push(page);
    Ok(made)
}

/// Beside each bundle; without one, in the folder that was asked for.
fn report_copies(recipe: &Recipe, bundles: &[PathBuf], options: &Options) -> Vec<PathBuf> {
    let asked = options.out.as_ref().filter(|_| bundles.is_empty());
    let beside = bundles.iter().map(|bundle| bundle.with_extension("html"));
    beside.chain(asked.map(|out| out.join(format!("{}.html", recipe.name)))).collect()
}

/// What a variant has come to.
#[derive(Default)]
struct Finished {
    bundles: Vec<PathBuf>,
    rows: Vec<PathBuf>,
}

/// The variants of a recipe that are meant, with their graphs.
pub(super) fn graphs(recipe: &Recipe, given: &Given, choice: &Choice) -> Result<Vec<(Variant, Graph)>, RunError> {
    let mut made = Vec::new();
    let mut sums = FileSums::new();
    for variant in recipe.variants(given, &choice.arms)? {
        let graph = Graph::new(recipe, &variant, given, &mut sums)?;
        if let Some(experiment) = &recipe.experiment {
            check_result(recipe, &graph, &experiment.result)?;
        }
        made.push((variant, graph));
    }
    Ok(made)
}

/// Rows hold figures, so the stage they come from must make some.
fn check_result(recipe: &Recipe, graph: &Graph, result: &str) -> Result<(), RecipeError> {
    let output = graph.place(result).map(|place| graph.nodes[place].stage.output());
    if matches!(output, Some(Artefact::Judgement | Artefact::Ranker)) {
        return Ok(());
    }
    let makes = output.map_or("nothing", Artefact::name);
    let message = format!("experiment.result: {result} makes {makes}; name a stage that makes judgement or ranker");
    Err(RecipeError::File { file: recipe.file.clone(), message })
}

/// The stages of a graph that are meant.
pub(super) fn chosen(recipe: &Recipe, graph: &Graph, choice: &Choice) -> Result<Vec<bool>, RunError> {
    let place = |flag: &str, name: &str| {
        let unknown = || RunError::Usage(format!("{flag} {name}: the recipe has no stage of this name"));
        graph.place(name).ok_or_else(unknown)
    };
    let mut takes = vec![true; graph.nodes.len()];
    let mut keep = |these: Vec<bool>| takes.iter_mut().zip(these).for_each(|(takes, this)| *takes &= this);
    if let Some(experiment) = &recipe.experiment {
        keep(graph.ancestors(place("experiment.result", &experiment.result)?));
    }
    if let Some(name) = &choice.from {
        keep(graph.descendants(place("--from", name)?));
    }
    if let Some(name) = &choice.until {
        keep(graph.ancestors(place("--until", name)?));
    }
    if let Some(name) = &choice.before {
        let before = place("--before", name)?;
        keep(graph.ancestors(before).into_iter().enumerate().map(|(place, needs)| needs && place != before).collect());
    }
    if let Some(name) = &choice.only {
        let only = place("--only", name)?;
        keep((0..graph.nodes.len()).map(|place| place == only).collect());
    }
    Ok(takes)
}

/// Adds what a variant needs to the tasks, where no other variant has added the same.
fn add_tasks(
    tasks: &mut Vec<Task>,
    variant: &Variant,
    graph: &Graph,
    takes: &[bool],
    Options { work, console, .. }: &Options,
) -> Result<Vec<Option<usize>>, RunError> {
    let mut own: Vec<Option<usize>> = Vec::new();
    for (place, node) in graph.nodes.iter().enumerate() {
        if !takes[place] {
            own.push(None);
            continue;
        }
        let folder = work.folder(&node.fingerprint);
        if let Some(known) = tasks.iter().position(|task| task.folder == folder) {
            own.push(Some(known));
            continue;
        }
        let label = format!("{}{}", variant.label(), node.name);
        let inputs = graph.inputs(node, work, console.stage(&label));
        for parent in node.parents.iter().filter(|parent| own[**parent].is_none()) {
            let parent = &graph.nodes[*parent];
            if work.state(&parent.fingerprint) != State::Done {
                return Err(RunError::NotMade { stage: format!("{}{}", variant.label(), parent.name) });
            }
        }
        let after = node.parents.iter().filter_map(|parent| own[*parent]).collect();
        own.push(Some(tasks.len()));
        tasks.push(Task { label, node: node.clone(), inputs, folder, after });
    }
    Ok(own)
}

fn make(node: &Node, inputs: &Inputs, work: &Work, threads: Option<usize>) -> Result<PathBuf, StageError> {
    work.make(inputs.progress(), &node.fingerprint, node.stage.resumes(), |folder| {
        // What a stage computes on rayon stays within its threads, too.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build()?;
        pool.install(|| node.stage.run(inputs, folder, threads))?;
        check_files(&*node.stage, &node.fingerprint)
    })
}

fn note(ledger: &Ledger, running: &Running, task: usize) -> Result<(), RunError> {
    let own = running.tasks.iter().position(|own| *own == Some(task));
    let Some(node) = own.map(|place| &running.graph.nodes[place]) else { return Ok(()) };
    Ok(ledger.note(&format!("{}{}", running.variant.label(), node.name), &node.fingerprint)?)
}

/// A variant's stages are all there: its row, or its bundles.
fn finish(
    recipe: &Recipe,
    running: &Running,
    folders: &[Option<PathBuf>],
    commit: Option<String>,
    options: &Options,
) -> Result<Finished, RunError> {
    let folder_of = |place: usize| running.tasks[place].and_then(|task| folders[task].as_deref());
    if let (Some(experiment), Some(trial)) = (&recipe.experiment, &running.variant.trial) {
        let result = running.graph.place(&experiment.result).and_then(folder_of);
        // Without it, --until has left the row's own stage out.
        let (Some(folder), Some(path)) = (result, row_path(recipe, &running.variant, options)) else {
            return Ok(Finished::default());
        };
        let stages: BTreeMap<String, String> = rows::hashes(&running.graph, &running.takes);
        let seconds = rows::stage_seconds(&running.graph, folder_of)?;
        let (experiment, Trial { arm, seed, run }) = (experiment.name.clone(), trial.clone());
        let result = rows::result(folder)?;
        rows::write(&path, &rows::Row { experiment, arm, seed, run, commit, stages, seconds, result })?;
        return Ok(Finished { rows: vec![path], ..Finished::default() });
    }
    let bundles =
        (0..running.graph.nodes.len()).filter(|place| is_bundle(&running.graph, *place)).filter_map(folder_of);
    let out = options.out.as_deref().unwrap_or(Path::new(DEFAULT_OUT));
    let bundles = bundles.map(|bundle| publish::publish(bundle, out)).collect::<Result<_, _>>()?;
    Ok(Finished { bundles, ..Finished::default() })
}

fn is_bundle(graph: &Graph, place: usize) -> bool {
    graph.nodes[place].stage.output() == Artefact::Bundle
}

/// The row of a variant of an experiment that is run whole.
fn row_path(recipe: &Recipe, variant: &Variant, options: &Options) -> Option<PathBuf> {
    let (experiment, trial) = (recipe.experiment.as_ref()?, variant.trial.as_ref()?);
    let folder = options.rows.clone().unwrap_or_else(|| rows::default_folder(&experiment.name));
    let Choice { from, until, before, only, .. } = &options.choice;
    let is_part = [from, until, before, only].into_iter().any(Option::is_some);
    (!is_part).then(|| rows::path(&folder, trial))
}
