//! The commands for who trains elsewhere: `data export`, `rewards serve`.

use crate::recipes::{self, Of};
use crate::{Failure, unavailable};
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use taiji_trainer::data_export::{self, Format, KINDS};
use taiji_trainer::rewards::{self, ServeSettings};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Write the data of a recipe's stage as TRL, verl or LLaMA-Factory read it: of a stage of kind sft its examples; of one of kind align
    /// its prompts, and pairs of answers of the policy of the start where the stage has its roll-outs. The stage's parents must be made.
    #[command(
        after_help = "Examples:\n  taiji-trainer data export --recipe models/demo.toml --stage sft --format trl --out data/trl\n  taiji-trainer data export --recipe models/align.toml --stage align --arm gdpo --format verl --out data/verl"
    )]
    Export(ExportArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    of: Of,
    /// Whose form.
    #[arg(long, value_enum)]
    format: Format,
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rewards {
    /// Serve what answers are worth by the rewards of a recipe's stage of kind align, until Ctrl-C or SIGTERM. The stage's parents must be
    /// made.
    #[command(
        after_help = "Examples:\n  taiji-trainer run --recipe models/align.toml --arm gdpo --before align\n  taiji-trainer rewards serve --recipe models/align.toml --arm gdpo --listen 127.0.0.1:8095\n  curl -s 127.0.0.1:8095/v1/rewards\n\nWithout --keys-file anybody who reaches the port may ask; it has no TLS: keep it inside."
    )]
    Serve(ServeArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    of: Of,
    /// Address and port.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8095")]
    listen: SocketAddr,
    /// Bearer keys, one a line.
    #[arg(long, value_name = "FILE")]
    keys_file: Option<PathBuf>,
    /// Most answers of a call.
    #[arg(long, default_value_t = 4096)]
    max_answers: usize,
    /// Most calls waiting.
    #[arg(long, default_value_t = 64)]
    max_waiting: usize,
    /// Largest body, bytes.
    #[arg(long, default_value_t = 32 << 20)]
    max_body_bytes: usize,
    /// Threads of the encoder. Default: as many as it takes by itself.
    #[arg(long)]
    threads: Option<usize>,
}

pub(crate) fn data(command: Data) -> Result<(), Failure> {
    let Data::Export(ExportArguments { of, format, out }) = command;
    let ready = recipes::ready(&of, &KINDS)?;
    let exported = data_export::export(&ready, format, None, &out).map_err(unavailable)?;
    println!(
        "{}: {} examples, {} for validation, {} prompts, {} pairs",
        out.display(),
        exported.sft[0],
        exported.sft[1],
        exported.rl,
        exported.preference
    );
    Ok(())
}

pub(crate) fn rewards(command: Rewards) -> Result<(), Failure> {
    let Rewards::Serve(ServeArguments { of, listen, keys_file, max_answers, max_waiting, max_body_bytes, threads }) =
        command;
    let keys = match &keys_file {
        None => Vec::new(),
        Some(path) => read_keys(path)?,
    };
    let ready = recipes::ready(&of, &["align"])?;
    if keys.is_empty() && !listen.ip().is_loopback() {
        eprintln!(
            "taiji-trainer: {listen} is open to whoever reaches it, and rewards tell what people bought: give --keys-file"
        );
    }
    let settings = ServeSettings { listen, keys, max_answers, max_waiting, max_body_bytes, threads };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| unavailable(format!("threads cannot be started: {error}")))?;
    runtime.block_on(async {
        let failed = |error| unavailable(format!("signals cannot be heard: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let stop = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let told = |address| println!("rewards of stage {} on http://{address}/v1/rewards", ready.name);
        rewards::serve(&ready, &settings, told, stop).await.map_err(unavailable)
    })
}

fn read_keys(path: &std::path::Path) -> Result<Vec<String>, Failure> {
    let refuse = |why: String| Failure(format!("--keys-file {}: {why}", path.display()), 64);
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    let keys: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_string).collect();
    match keys.is_empty() {
        true => Err(refuse("has no key: write one a line".into())),
        false => Ok(keys),
    }
}
