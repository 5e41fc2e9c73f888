//! `taiji backfill`: a file of events into the store, past HTTP and Kafka, with a progress bar and a checkpoint; `release`: those whom
//! it left behind become due.

use super::{CommandError, load_settings, opening};
use crate::bundle::Manifest;
use crate::clock::unix_ms;
use crate::config::Settings;
use crate::due::DuePolicy;
use crate::event::EventDecoder;
use crate::ingest::{
    Backfill, BackfillError, BackfillOptions, BackfillReport, Checkpoint, CheckpointError, Ingest, Progress, Rejection,
    Rows,
};
use crate::live::Spaces;
use crate::store::FeatureStore;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Commands beside the backfill itself.
#[derive(Debug, Subcommand)]
pub(crate) enum BackfillCommand {
    /// Mark users due whom earlier backfills left behind, so many a second.
    #[command(after_help = "Example:\n  taiji backfill release --config taiji.toml --rate 10")]
    Release(ReleaseArgs),
}

/// Where to: flags of both.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Settings file (TOML); see `taiji check-config --print-defaults`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store; an embedded one must not be in use by a service.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Folder that holds manifest.json: users become due in its space.
    #[arg(long, value_name = "DIR")]
    bundle: Option<String>,
}

impl Target {
    fn settings(&self) -> Result<Settings, CommandError> {
        load_settings(self.config.as_deref(), &[("store.url", &self.store), ("bundle.dir", &self.bundle)])
    }
}

/// Flags of `backfill release`.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    target: Target,
    /// Users that become due a second.
    #[arg(long, default_value_t = 10.0, value_name = "N")]
    rate: f64,
    /// Most users that become due; 0 = all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    users: usize,
}

/// Flags of `backfill`; store, space, actions and field map come from the configuration, as for `serve`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct BackfillArgs {
    #[command(subcommand)]
    command: Option<BackfillCommand>,
    // Not within `FillArgs`: clap takes optional flags with flattened ones among them for absent.
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    fill: Option<FillArgs>,
}

/// Flags of the backfill itself.
#[derive(Debug, Args)]
pub(crate) struct FillArgs {
    /// Events: one JSON object a line (.gz accepted), or .parquet with the events' fields as columns.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Events a second; 0 = as fast as they are taken.
    #[arg(long, default_value_t = 0, value_name = "N")]
    rate: u64,
    /// Events of one append.
    #[arg(long, default_value_t = 500, value_name = "N")]
    batch: usize,
    /// Appends under way at once.
    #[arg(long, default_value_t = 4, value_name = "N")]
    concurrency: usize,
    /// Users that become due a second when the file is read, the busiest first; 0 = none.
    #[arg(long, default_value_t = 10.0, value_name = "N")]
    refresh_rate: f64,
    /// Most users that become due; 0 = all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    refresh_users: usize,
    /// Where to go on after an interruption; FILE.checkpoint when not given.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Write refused rows there, one JSON object a line: row, field, reason.
    #[arg(long, value_name = "FILE")]
    rejected: Option<PathBuf>,
}

pub(super) fn run(args: BackfillArgs) -> Result<(), CommandError> {
    match (args.command, args.fill) {
        (Some(BackfillCommand::Release(release)), _) => run_release(&release),
        (None, Some(fill)) => run_fill(&args.target, &fill),
        (None, None) => Err(CommandError::Usage("backfill needs --file, or the command release".to_string())),
    }
}

fn run_release(args: &ReleaseArgs) -> Result<(), CommandError> {
    if !(args.rate.is_finite() && args.rate > 0.0) {
        return Err(CommandError::Usage("--rate must be a number above 0".to_string()));
    }
    let settings = args.target.settings()?;
    let marked = new_runtime()?.block_on(async {
        let manifest = Manifest::read(&settings.bundle.dir).map_err(|error| unavailable(error.to_string()))?;
        let (store, ingest) = open(&settings, &manifest).await?;
        let spaces = Spaces::only(&manifest.space);
        let marked = ingest
            .release_held(&spaces, args.rate, args.users)
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        store.flush().await.map_err(|error| unavailable(error.to_string()))?;
        Ok::<usize, CommandError>(marked)
    })?;
    println!(
        "{marked} users became due, {} a second, the last in {:.0} s",
        args.rate,
        (marked as f64 / args.rate).ceil()
    );
    Ok(())
}

fn unavailable(message: String) -> CommandError {
    CommandError::Unavailable(message)
}

fn new_runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|error| CommandError::Internal(format!("runtime: {error}")))
}

/// The store, and the way into it.
async fn open(settings: &Settings, manifest: &Manifest) -> Result<(Arc<dyn FeatureStore>, Ingest), CommandError> {
    let store = opening::open_store(settings).await?;
    store.note_space(&manifest.space).await.map_err(|error| unavailable(error.to_string()))?;
    let ingest = Ingest::new(store.clone(), settings.events.actions.clone(), DuePolicy::new(&settings.refresh));
    Ok((store, ingest))
}

fn run_fill(target: &Target, args: &FillArgs) -> Result<(), CommandError> {
    if args.batch == 0 || args.concurrency == 0 {
        return Err(CommandError::Usage("--batch and --concurrency must be at least 1".to_string()));
    }
    if !(args.refresh_rate.is_finite() && args.refresh_rate >= 0.0) {
        return Err(CommandError::Usage("--refresh-rate must be a number from 0 on".to_string()));
    }
    let settings = target.settings()?;
    let started = Instant::now();
    let report = new_runtime()?.block_on(fill(args, &settings))?;
    println!("{}", summary(args, &report, started.elapsed()));
    Ok(())
}

async fn fill(args: &FillArgs, settings: &Settings) -> Result<BackfillReport, CommandError> {
    let manifest = Manifest::read(&settings.bundle.dir).map_err(|error| unavailable(error.to_string()))?;
    let rows = Rows::open(&args.file).map_err(|error| unavailable(error.to_string()))?;
    let target = format!("{} {} {}", address(&settings.store.url), settings.store.namespace, manifest.space);
    let path = args.checkpoint.clone().unwrap_or_else(|| with_suffix(&args.file, ".checkpoint"));
    let mut checkpoint = Checkpoint::open(&path, &args.file, &target).map_err(|error| ended(error.into()))?;
    let mut rejected = args.rejected.as_deref().map(open_rejected).transpose().map_err(unavailable)?;

    let (store, ingest) = open(settings, &manifest).await?;
    let spaces = Spaces::only(&manifest.space);
    let decoder = EventDecoder::new(settings.events.actions.clone(), settings.events.field_map.clone());
    let options = BackfillOptions {
        batch: args.batch,
        concurrency: args.concurrency,
        rate: args.rate,
        refresh_rate: args.refresh_rate,
        refresh_users: args.refresh_users,
    };
    let backfill = Backfill { ingest: &ingest, decoder: &decoder, spaces: &spaces, options };
    let bar = Bar::new(rows.total());
    let reject = |rejection: &Rejection| {
        let Some(file) = &mut rejected else { return Ok(()) };
        let line = serde_json::to_string(rejection).map_err(|error| error.to_string())?;
        writeln!(file, "{line}").map_err(|error| error.to_string())
    };
    let result = backfill.run(rows, &mut checkpoint, unix_ms(), |progress| bar.show(progress), reject).await;
    bar.bar.finish_and_clear();
    if let Some(mut file) = rejected {
        file.flush().map_err(|error| unavailable(format!("rejected rows cannot be written: {error}")))?;
    }
    let report = result.map_err(ended)?;
    store.flush().await.map_err(|error| unavailable(error.to_string()))?;
    Ok(report)
}

/// The bar of both parts.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new(total: u64) -> Bar {
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent} % eta {eta}") {
            bar.set_style(style);
        }
        bar.set_message("events");
        Bar { bar }
    }

    fn show(&self, progress: Progress) {
        match progress {
            Progress::Read(position) => self.bar.set_position(position),
            Progress::Marked(users, of) => {
                self.bar.set_message("users");
                self.bar.set_length(of as u64);
                self.bar.set_position(users as u64);
            }
        }
    }
}

fn summary(args: &FillArgs, report: &BackfillReport, elapsed: Duration) -> String {
    let (seconds, counts) = (elapsed.as_secs_f64(), &report.counts);
    let done = counts.accepted + counts.duplicates;
    let mut line = format!(
        "{}: {} rows in {seconds:.1} s, {} accepted ({:.0} events/s), {} duplicates, {} rejected",
        args.file.display(),
        report.rows,
        counts.accepted,
        done as f64 / seconds.max(1e-9),
        counts.duplicates,
        report.rejected,
    );
    if report.unreadable > 0 {
        line.push_str(&format!(" ({} of them because the store cannot read their users)", report.unreadable));
    }
    if report.done_before > 0 {
        line.push_str(&format!("; the first {} rows were done before", report.done_before));
    }
    line.push_str(&format!("\nusers: {} in the file, {} became due", report.users, report.marked));
    if report.marked > 0 {
        let last = (report.marked as f64 / args.refresh_rate).ceil();
        line.push_str(&format!(", {} a second, the last in {last:.0} s", args.refresh_rate));
    }
    line
}

fn ended(error: BackfillError) -> CommandError {
    match error {
        BackfillError::Checkpoint(CheckpointError::Foreign { .. }) => CommandError::Usage(error.to_string()),
        _ => CommandError::Unavailable(error.to_string()),
    }
}

fn open_rejected(path: &Path) -> Result<BufWriter<File>, String> {
    // An interrupted run's rejections stay.
    let file = File::options().create(true).append(true).open(path);
    file.map(BufWriter::new).map_err(|error| format!("{}: {error}", path.display()))
}

/// A store's address without user and password.
fn address(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, address)| address)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
