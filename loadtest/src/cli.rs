//! The command line. In: arguments. Out: an exit code, 0 done, 64 bad usage or figures, 69 something needed is not there.

use crate::figures::{Figures, FiguresError, read_folder};
use clap::{Parser, Subcommand};
use std::io::Read;
use std::path::PathBuf;
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
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            CliError::Figures(_) | CliError::BadFiles(_) => 64,
            CliError::Smallest(_) | CliError::Io(_) => 69,
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
        Command::Smallest { listen, redis } => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            Ok(runtime.block_on(crate::smallest::serve(&listen, &redis))?)
        }
    }
}

/// Names each file that is wrong, then fails if there is one.
fn check(folder: &std::path::Path) -> Result<(), CliError> {
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
