//! `taiji doctor`: everything that a start and the first hours need, looked at in one call, with a remedy beside what is wrong.
//!
//! In: the settings of `serve`. Out: a table or JSON; exit code 0 where all that is on was checked and nothing failed. It goes through
//! what a start goes through (`opening`, `secrets`) and changes nothing. What could not be checked says so.

mod kafka;
mod local;
mod redis;
mod report;

use super::{CommandError, load_settings};
use crate::config::Settings;
use clap::Args;
use report::{Finding, Report};
use std::path::PathBuf;

/// Flags of `doctor`; those that `serve` has mean the same.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// embedded:DIR or redis://….
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Folder that holds manifest.json.
    #[arg(long = "bundle", value_name = "DIR")]
    folder: Option<String>,
    /// Whose needs are checked: api, ingest, infer, or a mix; all when not given.
    #[arg(long, value_name = "LIST")]
    roles: Option<String>,
    /// Kafka brokers, "host:port,…".
    #[arg(long, value_name = "BROKERS")]
    kafka: Option<String>,
    /// Load the models, too: takes the memory and the time of a start.
    #[arg(long)]
    models: bool,
    /// One JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: DoctorArgs) -> Result<(), CommandError> {
    let flags = [
        ("store.url", &args.store),
        ("bundle.dir", &args.folder),
        ("server.roles", &args.roles),
        ("kafka.brokers", &args.kafka),
    ];
    let mut report = Report::default();
    match load_settings(args.config.as_deref(), &flags) {
        Ok(settings) => {
            let from = args.config.as_ref().map_or("defaults".to_string(), |file| file.display().to_string());
            report.add(Finding::ok("configuration", format!("{from}, environment, flags")));
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|error| CommandError::Internal(format!("runtime: {error}")))?;
            runtime.block_on(check(&settings, args.models, &mut report))?;
        }
        Err(error) => {
            report.add(Finding::refused(
                "configuration",
                &error,
                "taiji check-config --print-defaults shows every setting",
            ));
        }
    }
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.table());
    }
    report.verdict()
}

async fn check(settings: &Settings, with_models: bool, report: &mut Report) -> Result<(), CommandError> {
    report.add(local::keys(settings));
    report.add(local::certificate(settings));
    local::bundle(settings, with_models, report).await?;
    redis::check(settings, report).await;
    kafka::check(settings, report).await
}
