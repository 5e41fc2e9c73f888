//! The commands of `taiji` and how they end.
//!
//! In: the command line. Out: an exit code (DESIGN 5.7). Callers: `main`.

mod backfill;
mod bundle;
mod bundle_fetch;
mod check_config;
mod dlq;
mod doctor;
pub mod feed;
mod feed_kafka;
mod key_watch;
mod log_id;
mod migrate;
mod opening;
mod ports;
mod presence;
pub mod program;
mod restore;
mod runtime;
mod secrets;
mod serve;
mod wiring;

use crate::config::{self, Settings};
use crate::packages::Source;
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use thiserror::Error;

/// How a command failed; the exit code follows from it.
#[derive(Debug, Error)]
pub enum CommandError {
    /// Bad configuration or usage: exit code 64.
    #[error("{0}")]
    Usage(String),
    /// Something needed is not there (bundle, runtime, port, folder): exit code 69.
    #[error("{0}")]
    Unavailable(String),
    /// Our fault: exit code 70.
    #[error("{0}")]
    Internal(String),
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            CommandError::Usage(_) => 64,
            CommandError::Unavailable(_) => 69,
            CommandError::Internal(_) => 70,
        }
    }
}

/// taiji: users' behaviour in, LLM-made ranking features out.
#[derive(Debug, Parser)]
#[command(name = "taiji", about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: take events, refresh users, answer reads.
    #[command(
        after_help = "Examples:\n  taiji serve --bundle models/demo/1 --store embedded:data --listen 0.0.0.0:8080\n  taiji serve --roles infer --store redis://localhost:6379 --bundle models/demo/1"
    )]
    Serve(ServeArgs),
    /// Replay a file of events (and items) over HTTP, or into Kafka.
    #[command(
        after_help = "Examples:\n  taiji feed --file events.jsonl --items items.jsonl --rate 500 --http http://127.0.0.1:8080\n  taiji feed --file events.jsonl --kafka localhost:9092"
    )]
    Feed(feed::FeedArgs),
    /// Bring a Redis namespace to this program's layout.
    #[command(
        after_help = "Examples:\n  taiji migrate --store redis://127.0.0.1:6379 plan\n  taiji migrate --store redis+cluster://a:7000,b:7000 apply\n  taiji migrate --store redis://127.0.0.1:6379 clean --no-0.1.0-left"
    )]
    Migrate(migrate::MigrateArgs),
    /// Take bulk history from a file into the store, then refresh its users by a budget, the busiest first.
    #[command(
        after_help = "Example:\n  taiji backfill --file events.parquet --config taiji.toml --rate 5000 --refresh-rate 10"
    )]
    Backfill(backfill::BackfillArgs),
    /// Look at dead letters, and send them back.
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// After a Redis was set back to a backup: have the consumer group read again what the backup lacks.
    #[command(subcommand)]
    Restore(restore::RestoreCommand),
    /// Check, complete or convert a bundle.
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
    /// Fetch ONNX Runtime.
    #[command(subcommand)]
    Runtime(runtime::RuntimeCommand),
    /// Print what stands for a user in the log.
    #[command(after_help = "Example:\n  taiji log-id --config taiji.toml user-17")]
    LogId(log_id::LogIdArgs),
    /// Check everything a service stands on: settings, keys, certificate, bundle, store, clocks, Kafka.
    #[command(
        after_help = "Examples:\n  taiji doctor --config taiji.toml\n  taiji doctor --store redis://localhost:6379 --roles api --json"
    )]
    Doctor(doctor::DoctorArgs),
    /// Check a configuration, and print the commented defaults.
    #[command(
        after_help = "Examples:\n  taiji check-config --config taiji.toml\n  taiji check-config --print-defaults > taiji.toml"
    )]
    CheckConfig(check_config::CheckConfigArgs),
}

/// Flags of `serve`; each wins over environment and file.
#[derive(Debug, Args, Default)]
pub(crate) struct ServeArgs {
    /// Settings file (TOML); see `taiji check-config --print-defaults`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Public address, e.g. 127.0.0.1:8080.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Operators' address, e.g. 127.0.0.1:9090.
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
    /// Address of the OpenAI-compatible port, e.g. 127.0.0.1:8000; off when not given.
    #[arg(long, value_name = "ADDR")]
    openai_listen: Option<String>,
    /// embedded:DIR, redis://…, rediss://…, redis+cluster://… or rediss+cluster://….
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Folder that holds manifest.json.
    #[arg(long, value_name = "DIR")]
    bundle: Option<String>,
    /// What this process does: api, ingest, infer, or a mix such as api,infer; all when not given.
    #[arg(long, value_name = "LIST")]
    roles: Option<String>,
    /// Kafka brokers to read events from, "host:port,…"; off when not given.
    #[arg(long, value_name = "BROKERS")]
    kafka: Option<String>,
    /// onnx, or null for canned answers (measuring the data plane).
    #[arg(long, value_name = "KIND")]
    engine: Option<String>,
}

/// Where packages come from.
#[derive(Debug, Args)]
struct IndexArgs {
    /// Package index (PEP 503). Default: TAIJI_INDEX_URL, PIP_INDEX_URL, pip's configuration, or what pip finds.
    #[arg(long, value_name = "URL")]
    index: Option<String>,
}

impl IndexArgs {
    fn source(&self) -> Result<Source, CommandError> {
        Source::resolve(self.index.as_deref()).map_err(|error| CommandError::Usage(error.to_string()))
    }
}

/// The settings of a command: flags win over environment and file. Flags that were not given are `None`.
fn load_settings(file: Option<&Path>, flags: &[(&str, &Option<String>)]) -> Result<Settings, CommandError> {
    let given: Vec<(&str, String)> =
        flags.iter().filter_map(|(key, value)| (*value).clone().map(|value| (*key, value))).collect();
    config::load(file, std::env::vars(), &given).map_err(|errors| CommandError::Usage(errors.to_string()))
}

/// Parses the command line, runs the command, and turns its end into an exit code. `commit`: see [`program::parse`].
pub fn run(commit: Option<&'static str>) -> ExitCode {
    let cli: Cli = match program::parse(commit) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Feed(args) => feed::run(args),
        Command::Migrate(args) => migrate::run(args),
        Command::Backfill(args) => backfill::run(args),
        Command::Dlq(command) => dlq::run(command),
        Command::Restore(command) => restore::run(command),
        Command::Bundle(command) => bundle::run(command),
        Command::Runtime(command) => runtime::run(command),
        Command::LogId(args) => log_id::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::CheckConfig(args) => check_config::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taiji: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
