//! `taiji feed`: replays a file of events over HTTP (or Kafka, `feed_kafka`), at a rate, with retries, and says how it went.

use super::CommandError;
use clap::Args;
use flate2::read::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Times a batch is sent again when the service is busy or not there yet.
const MAX_ATTEMPTS: u32 = 10;

/// Flags of `feed`.
#[derive(Debug, Args)]
pub struct FeedArgs {
    /// Events, one JSON object a line (.gz accepted).
    #[arg(long, value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Items to post first, one JSON object a line (.gz accepted).
    #[arg(long, value_name = "FILE")]
    pub(super) items: Option<PathBuf>,
    /// Events a second; 0 = as fast as they are taken.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) rate: u64,
    /// Address of the service's public port.
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    http: String,
    /// Kafka brokers, "host:port,…": produce records instead of posting.
    #[arg(long, value_name = "BROKERS", conflicts_with_all = ["http", "key"])]
    pub(super) kafka: Option<String>,
    /// With --kafka: topic of the events; kafka.events_topic where not given.
    #[arg(long, value_name = "TOPIC", requires = "kafka")]
    pub(super) topic: Option<String>,
    /// With --kafka: settings file (TOML), whose `[kafka]` counts.
    #[arg(long, value_name = "FILE", requires = "kafka")]
    pub(super) config: Option<PathBuf>,
    /// Bearer key with write scope, where the service has keys.
    #[arg(long, value_name = "KEY", env = "TAIJI_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Events in one call.
    #[arg(long, default_value_t = 200, value_name = "N")]
    batch: usize,
    /// Calls under way at once.
    #[arg(long, default_value_t = 4, value_name = "N")]
    concurrency: usize,
}

/// What the service answered to one batch.
#[derive(Debug, Default, Deserialize)]
struct BatchAnswer {
    accepted: u64,
    #[serde(default)]
    duplicates: u64,
    rejected: Vec<serde_json::Value>,
}

/// Sums over the whole file.
#[derive(Debug, Default)]
struct Totals {
    sent: u64,
    accepted: u64,
    duplicates: u64,
    rejected: u64,
    retries: u64,
    latencies_ms: Vec<f64>,
    first_rejection: Option<String>,
}

pub(super) fn run(args: FeedArgs) -> Result<(), CommandError> {
    if args.batch == 0 || args.concurrency == 0 {
        return Err(CommandError::Usage("--batch and --concurrency must be at least 1".to_string()));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CommandError::Internal(format!("runtime: {error}")))?;
    runtime.block_on(async {
        if args.kafka.is_some() {
            return super::feed_kafka::run(&args).await;
        }
        if let Some(items) = &args.items {
            let totals = replay(&args, items, "/v1/items", 0).await?;
            println!("items: {} sent, {} accepted, {} rejected", totals.sent, totals.accepted, totals.rejected);
        }
        let started = Instant::now();
        let totals = replay(&args, &args.file, "/v1/events", args.rate).await?;
        println!("{}", summary(totals, started.elapsed()));
        Ok(())
    })
}

/// Sends every line of a file in batches; the order of batches is kept at the start of each call.
async fn replay(args: &FeedArgs, path: &Path, route: &str, rate: u64) -> Result<Totals, CommandError> {
    let lines = count_lines(path)?;
    let bar = progress_bar(lines);
    crate::tls::choose_provider();
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .build()
        .map_err(|error| CommandError::Internal(format!("http client: {error}")))?;
    let url = format!("{}{route}", args.http.trim_end_matches('/'));
    let started = Instant::now();
    let mut totals = Totals::default();
    let mut running = JoinSet::new();
    let mut lines = open(path)?.lines();
    loop {
        let batch = next_batch(&mut lines, args.batch, path)?;
        if batch.is_empty() {
            break;
        }
        if rate > 0 {
            // A schedule, not a pause after each call: a slow answer does not lower the rate.
            tokio::time::sleep_until((started + Duration::from_secs_f64(totals.sent as f64 / rate as f64)).into())
                .await;
        }
        totals.sent += batch.len() as u64;
        while running.len() >= args.concurrency {
            take(running.join_next().await, &mut totals, &bar)?;
        }
        running.spawn(send(client.clone(), url.clone(), args.key.clone(), batch));
    }
    while !running.is_empty() {
        take(running.join_next().await, &mut totals, &bar)?;
    }
    bar.finish_and_clear();
    Ok(totals)
}

struct Sent {
    lines: u64,
    answer: BatchAnswer,
    retries: u64,
    latency_ms: f64,
}

/// Posts one batch; retries while the service is busy, unreachable or failing, with growing pauses.
async fn send(client: reqwest::Client, url: String, key: Option<String>, batch: Vec<String>) -> Result<Sent, String> {
    let mut pause = Duration::from_millis(100);
    let mut last_error = String::new();
    for attempt in 0..MAX_ATTEMPTS {
        let mut request = client.post(&url).header("content-type", "application/x-ndjson").body(batch.join("\n"));
        if let Some(key) = &key {
            request = request.bearer_auth(key);
        }
        let started = Instant::now();
        match request.send().await {
            Ok(response) if response.status().is_success() || response.status().as_u16() == 400 => {
                let status = response.status();
                let body = response.text().await.map_err(|error| format!("{url}: {error}"))?;
                let answer = serde_json::from_str(&body).map_err(|_| format!("{url} answered {status}: {body}"))?;
                let latency_ms = started.elapsed().as_secs_f64() * 1000.0;
                return Ok(Sent { lines: batch.len() as u64, answer, retries: u64::from(attempt), latency_ms });
            }
            Ok(response) if response.status().as_u16() != 429 && !response.status().is_server_error() => {
                let status = response.status();
                return Err(format!("{url} answered {status}: {}", response.text().await.unwrap_or_default()));
            }
            Ok(response) => last_error = format!("{url} answered {}", response.status()),
            Err(error) => last_error = format!("{url}: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
    Err(format!("{last_error} ({MAX_ATTEMPTS} attempts)"))
}

type Joined = Option<Result<Result<Sent, String>, tokio::task::JoinError>>;

fn take(joined: Joined, totals: &mut Totals, bar: &ProgressBar) -> Result<(), CommandError> {
    let Some(joined) = joined else { return Ok(()) };
    let sent = joined.map_err(|error| CommandError::Internal(error.to_string()))?.map_err(CommandError::Unavailable)?;
    bar.inc(sent.lines);
    totals.accepted += sent.answer.accepted;
    totals.duplicates += sent.answer.duplicates;
    totals.rejected += sent.answer.rejected.len() as u64;
    totals.retries += sent.retries;
    totals.latencies_ms.push(sent.latency_ms);
    if let Some(first) = sent.answer.rejected.first().filter(|_| totals.first_rejection.is_none()) {
        totals.first_rejection = Some(first.to_string());
    }
    Ok(())
}

fn summary(mut totals: Totals, elapsed: Duration) -> String {
    totals.latencies_ms.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = totals.latencies_ms.len().saturating_sub(1);
        totals.latencies_ms.get((last as f64 * share).round() as usize).copied().unwrap_or(0.0)
    };
    let seconds = elapsed.as_secs_f64();
    let mut line = format!(
        "events: {} sent in {seconds:.1} s ({:.0}/s), {} accepted, {} duplicates, {} rejected, {} retries; \
         call latency p50 {:.1} ms, p99 {:.1} ms",
        totals.sent,
        totals.sent as f64 / seconds.max(1e-9),
        totals.accepted,
        totals.duplicates,
        totals.rejected,
        totals.retries,
        at(0.5),
        at(0.99),
    );
    if let Some(first) = totals.first_rejection {
        line.push_str(&format!("\nfirst rejection: {first}"));
    }
    line
}

/// A bar over so many lines.
pub(super) fn progress_bar(lines: u64) -> ProgressBar {
    let bar = ProgressBar::new(lines);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} eta {eta}") {
        bar.set_style(style);
    }
    bar
}

pub(super) fn open(path: &Path) -> Result<BufReader<Box<dyn Read>>, CommandError> {
    let file = File::open(path).map_err(|error| CommandError::Unavailable(format!("{}: {error}", path.display())))?;
    let gz = path.extension().is_some_and(|extension| extension == "gz");
    Ok(BufReader::with_capacity(1 << 20, if gz { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) }))
}

pub(super) fn count_lines(path: &Path) -> Result<u64, CommandError> {
    let mut count = 0;
    for line in open(path)?.lines() {
        line.map_err(|error| CommandError::Usage(format!("{}: {error}", path.display())))?;
        count += 1;
    }
    Ok(count)
}

fn next_batch(
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
    size: usize,
    path: &Path,
) -> Result<Vec<String>, CommandError> {
    let mut batch = Vec::with_capacity(size);
    for line in lines {
        let line = line.map_err(|error| CommandError::Usage(format!("{}: {error}", path.display())))?;
        if !line.trim().is_empty() {
            batch.push(line);
        }
        if batch.len() == size {
            break;
        }
    }
    Ok(batch)
}
