//! The command line. In: arguments. Out: an exit code, 0 done, 1 a bound was missed, 64 bad usage or figures, 69 something needed is not there.

use crate::bench_read::{Bench, BenchError, measure};
use crate::figures::{Figures, FiguresError, read_folder};
use crate::raw_command::{self, Raw, RawCommandError};
use crate::report::{Report, ReportError};
use crate::rig::Place;
use crate::scenario::{Extras, Pace, Scenario, ScenarioError, play};
use clap::{Parser, Subcommand};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Load on a running taiji, and the figures that benches keep.
#[derive(Parser)]
#[command(name = "taiji-loadtest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Figures that a bench measured, as they are kept in docs/measured
    #[command(subcommand)]
    Figures(FiguresCommand),
    /// Load on a service by a scenario, and a page about it
    Scenario {
        #[arg(value_enum)]
        scenario: Scenario,
        #[command(flatten)]
        extras: Extras,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        pace: Pace,
        /// The page's folder
        #[arg(long, default_value = ".cache/loadtest")]
        out: PathBuf,
        /// Ends with 1 where the service did not keep to what it is held to
        #[arg(long)]
        strict: bool,
    },
    /// Reads of taiji, of the smallest handler and of Redis itself, round by round, as JSON (`make bench-read`)
    BenchRead(Bench),
    /// Bare pipelined reads of a Redis that a taiji has filled: the limit of a read
    Raw(Raw),
    /// The smallest handler: one GET of Redis, its bytes as the answer
    Smallest {
        /// Where it listens; port 0 is any
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
        /// The server that holds the answers
        #[arg(long)]
        redis: String,
    },
}

#[derive(Subcommand)]
enum FiguresCommand {
    /// Reads every file of a folder
    Check { folder: PathBuf },
    /// Writes the JSON of standard input into a file, if it is good
    Write { file: PathBuf },
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Figures(#[from] FiguresError),
    #[error("{0} of the files are not as they should be")]
    BadFiles(usize),
    #[error(transparent)]
    Smallest(#[from] crate::smallest::SmallestError),
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error(transparent)]
    Raw(#[from] RawCommandError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("not kept: {0}")]
    Missed(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            CliError::Figures(_) | CliError::BadFiles(_) => 64,
            CliError::Missed(_) => 1,
            CliError::Smallest(_)
            | CliError::Scenario(_)
            | CliError::Bench(_)
            | CliError::Raw(_)
            | CliError::Report(_)
            | CliError::Io(_) => 69,
        }
    }
}

/// Does what the arguments say.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody reads it where standard output is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match execute(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taiji-loadtest: {error}");
            ExitCode::from(error.code())
        }
    }
}

fn execute(command: Command) -> Result<(), CliError> {
    match command {
        Command::Figures(FiguresCommand::Check { folder }) => check(&folder),
        Command::Figures(FiguresCommand::Write { file }) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            Ok(Figures::parse(&file, &text)?.write(&file)?)
        }
        Command::Scenario { scenario, extras, place, pace, out, strict } => {
            let report = play(scenario, &place, &pace, &extras)?;
            show(&report, &out, strict)
        }
        Command::Raw(options) => {
            println!("{}", raw_command::run(&options)?);
            Ok(())
        }
        Command::BenchRead(bench) => {
            println!("{}", measure(&bench)?);
            Ok(())
        }
        Command::Smallest { listen, redis } => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            Ok(runtime.block_on(crate::smallest::serve(&listen, &redis))?)
        }
    }
}

/// Writes the page, and says on standard output what stands in it.
fn show(report: &Report, out: &Path, strict: bool) -> Result<(), CliError> {
    let program = "taiji-loadtest".to_string();
    let command: Vec<String> = std::iter::once(program).chain(std::env::args().skip(1)).collect();
    let command = command.join(" ");
    let page = report.write(out, &command)?;
    println!(
        "{}
{}",
        report.markdown(&command),
        page.display()
    );
    let missed: Vec<&str> = report.missed().iter().map(|row| row.what.as_str()).collect();
    if strict && !missed.is_empty() {
        return Err(CliError::Missed(missed.join("; ")));
    }
    Ok(())
}

/// Names each file that is wrong, then fails if there is one.
fn check(folder: &Path) -> Result<(), CliError> {
    let all = read_folder(folder)?;
    let wrong: Vec<&FiguresError> = all.iter().filter_map(|figures| figures.as_ref().err()).collect();
    for error in &wrong {
        eprintln!("taiji-loadtest: {error}");
    }
    if !wrong.is_empty() {
        return Err(CliError::BadFiles(wrong.len()));
    }
    println!("{} files of figures are good", all.len());
    Ok(())
}
