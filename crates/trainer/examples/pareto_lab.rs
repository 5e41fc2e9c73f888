//! `make pareto-lab`: the lab of rules that combine rewards, as declared, into the page and beside its declaration.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use taiji_trainer::pareto_lab::{LabError, Outcome, Plan, run};
use taiji_trainer::stats::Experiment;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [declaration, page] = arguments.as_slice() else {
        eprintln!("pareto_lab: give the declaration and the page that the tables go into");
        return ExitCode::from(64);
    };
    match lab(declaration, page) {
        Ok(outcome) => {
            print!("{}", outcome.markdown);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pareto_lab: {error}");
            ExitCode::from(69)
        }
    }
}

fn lab(declaration: &Path, page: &Path) -> Result<Outcome, LabError> {
    let experiment = Experiment::read(declaration)?;
    let commit = std::env::var("TAIJI_COMMIT").unwrap_or_else(|_| "unknown".to_string());
    let outcome = run(&Plan::DECLARED, &experiment, &commit, &|what| eprintln!("{what}"))?;
    outcome.write(&declaration.with_extension(""), page)?;
    Ok(outcome)
}
