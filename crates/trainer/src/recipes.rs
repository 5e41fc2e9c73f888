//! The commands about recipes: `fetch`, `plan`, `run`.

use crate::workers::begin_without_candle_workers;
use crate::{Failure, unavailable};
use clap::Args;
use std::path::{Path, PathBuf};
use taiji_trainer::model::DeviceKind;
use taiji_trainer::progress::Console;
use taiji_trainer::recipe::{self, Choice, Given, Options, Ready, RunError, Which};
use taiji_trainer::stage::Work;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code after Ctrl-C, as shells have it: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Which recipe, and what it is given.
#[derive(Debug, Args)]
struct Source {
    /// Recipe file.
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Folder of events.jsonl and items.jsonl, for stages of kind `files` without a path.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where stages keep their output. Default: $XDG_CACHE_HOME/taiji/work, else ~/.cache/taiji/work.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// A number draws the seed of every stage that has one, and is added to the bundle's name; STAGE=NUMBER is the seed of that
    /// stage. May be repeated.
    #[arg(long, value_name = "SEED")]
    seed: Vec<String>,
    /// Where language models are trained, over what the recipe says. cuda needs a GPU and a build with --features cuda; plain is the
    /// CPU by the operations that a GPU would take.
    #[arg(long, value_enum)]
    device: Option<DeviceKind>,
}

/// A recipe, and which part of it.
#[derive(Debug, Args)]
pub(crate) struct Part {
    #[command(flatten)]
    source: Source,
    /// Only this stage and those that stand on it.
    #[arg(long, value_name = "STAGE", conflicts_with = "only")]
    from: Option<String>,
    /// Only this stage and those it stands on.
    #[arg(long, value_name = "STAGE", conflicts_with = "only")]
    until: Option<String>,
    /// Only what this stage stands on, without it.
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["only", "until"])]
    before: Option<String>,
    /// Only this stage.
    #[arg(long, value_name = "STAGE")]
    only: Option<String>,
    /// Only these arms of an experiment.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    arm: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    part: Part,
    /// The bundle goes to OUT/<name>/<epoch>, the report of a run without one to OUT/<name>.html. Default: models, for bundles.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Rows of an experiment go there. Default: docs/experiments/<name>.
    #[arg(long, value_name = "DIR")]
    rows: Option<PathBuf>,
    /// Stages run at once; with more than one, each has one thread.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Wait for a stage that another process writes, instead of ending.
    #[arg(long)]
    wait: bool,
}

impl Source {
    fn given(&self) -> Result<Given, Failure> {
        let mut given = Given { data: self.data.clone(), device: self.device, ..Given::default() };
        for text in &self.seed {
            let number = |digits: &str| {
                let wrong = |_| Failure(format!("--seed {text}: give a number, or STAGE=NUMBER"), 64);
                digits.parse::<u32>().map(u64::from).map_err(wrong)
            };
            match text.split_once('=') {
                Some((stage, digits)) => drop(given.seeds.insert(stage.to_string(), number(digits)?)),
                None => given.seed = Some(number(text)?),
            }
        }
        Ok(given)
    }

    fn work(&self, wait: bool) -> Work {
        Work::new(self.work.clone().unwrap_or_else(Work::default_root), wait)
    }

    /// Its words on a command line, but for the recipe.
    fn words(&self) -> String {
        let path = |flag: &str, path: &Option<PathBuf>| {
            path.as_ref().map(|path| format!(" --{flag} {}", path.display())).unwrap_or_default()
        };
        let device = self.device.map(|device| format!(" --device {}", device.name())).unwrap_or_default();
        let seeds: String = self.seed.iter().map(|seed| format!(" --seed {seed}")).collect();
        path("data", &self.data) + &path("work", &self.work) + &device + &seeds
    }
}

impl Part {
    fn given(&self) -> Result<Given, Failure> {
        if self.source.device == Some(DeviceKind::Cuda) && !cfg!(feature = "cuda") {
            return Err(Failure("--device cuda: this trainer was built without it (--features cuda)".into(), 64));
        }
        self.source.given()
    }

    fn choice(&self) -> Choice {
        let Part { from, until, before, only, arm, .. } = self;
        let [from, until, before, only] = [from, until, before, only].map(Clone::clone);
        Choice { from, until, before, only, arms: arm.clone() }
    }
}

/// One stage of a recipe; seeds and device are those that `run` was told.
#[derive(Debug, Args)]
pub(crate) struct Of {
    #[command(flatten)]
    source: Source,
    /// The stage; it may be left out where the recipe has one that suits.
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Arm of an experiment.
    #[arg(long, value_name = "NAME")]
    arm: Option<String>,
}

/// A stage of one of these kinds with what it is made from.
pub(crate) fn ready(of: &Of, kinds: &[&str]) -> Result<Ready, Failure> {
    let Of { source, stage, arm } = of;
    let named = arm.as_ref().map(|arm| format!(" --arm {arm}")).unwrap_or_default();
    let words = format!(" --recipe {}{named}{}", source.recipe.display(), source.words());
    let which = Which { stage: stage.clone(), arm: arm.clone(), words };
    recipe::ready(&source.recipe, &source.given()?, &which, kinds, &source.work(false), &Console::stderr())
        .map_err(failure)
}

fn failure(error: RunError) -> Failure {
    match error.is_usage() {
        true => Failure(error.to_string(), 64),
        false => unavailable(error),
    }
}

pub(crate) fn fetch(recipe: &Path, index: Option<&str>) -> Result<(), Failure> {
    for folder in recipe::fetch_encoders(recipe, index).map_err(failure)? {
        println!("encoder: {}", folder.display());
    }
    Ok(())
}

pub(crate) fn plan(part: &Part) -> Result<(), Failure> {
    let lines =
        recipe::plan(&part.source.recipe, &part.given()?, &part.choice(), &part.source.work(false)).map_err(failure)?;
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// Ctrl-C takes the bars away before the program ends. What is done is kept; a stage under way is gone on with or made anew.
fn end_on_interrupt(console: &Console) -> Result<(), Failure> {
    let failed = |error| unavailable(format!("interrupts cannot be heard: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let mut interrupts = {
        let _inside = runtime.enter();
        signal(SignalKind::interrupt()).map_err(failed)?
    };
    let console = console.clone();
    std::thread::spawn(move || {
        if runtime.block_on(interrupts.recv()).is_some() {
            console.end(|| {
                eprintln!("taiji-trainer: interrupted; the same command goes on from here");
                INTERRUPTED
            });
        }
    });
    Ok(())
}

pub(crate) fn run(arguments: RunArguments) -> Result<(), Failure> {
    begin_without_candle_workers();
    let RunArguments { part, out, rows, jobs, wait } = arguments;
    let options = Options {
        given: part.given()?,
        choice: part.choice(),
        out,
        rows,
        jobs: usize::from(jobs),
        work: part.source.work(wait),
        console: Console::stderr(),
    };
    end_on_interrupt(&options.console)?;
    for made in recipe::run(&part.source.recipe, &options).map_err(failure)? {
        println!("made: {}", made.display());
    }
    Ok(())
}
