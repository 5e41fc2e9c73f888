//! `taiji dlq`: what is in the dead-letter topic and why; sending it back once the cause is gone.

use super::{CommandError, load_settings};
use crate::config::KafkaSettings;
use crate::event::BadReason;
use crate::ingest::kafka::dlq::{Letter, LetterFilter, read_letters, replay};
use crate::kafka::KafkaError;
use clap::{Args, Subcommand};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// Show dead letters, oldest first within a partition, and their number by reason.
    #[command(after_help = "Example:\n  taiji dlq list --kafka localhost:9092 --reason field --limit 20")]
    List {
        #[command(flatten)]
        letters: LetterArgs,
        /// One JSON object a line, with key and value.
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters back to the topic they came from. An event that is stored already counts as a duplicate.
    #[command(
        after_help = "Example:\n  taiji dlq replay --kafka localhost:9092 --reason field --from 2026-11-01T00:00:00Z --dry-run"
    )]
    Replay {
        #[command(flatten)]
        letters: LetterArgs,
        /// Only count what would be sent.
        #[arg(long)]
        dry_run: bool,
        /// Leave out records that were replayed this often; kafka.max_replays where not given.
        #[arg(long, value_name = "N")]
        max_replays: Option<u32>,
    },
}

/// Which letters, and where.
#[derive(Debug, Args)]
pub(super) struct LetterArgs {
    /// Settings file (TOML); `[kafka]` counts.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kafka brokers, "host:port,…".
    #[arg(long, value_name = "BROKERS")]
    kafka: Option<String>,
    /// Dead-letter topic.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Records with this timestamp or a later one: RFC 3339, or Unix milliseconds.
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<i64>,
    /// Records with an earlier timestamp.
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<i64>,
    /// Only this reason.
    #[arg(long, value_name = "REASON", value_parser = BadReason::ALL.map(BadReason::as_str))]
    reason: Option<String>,
    /// At most this many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl LetterArgs {
    fn settings(&self) -> Result<KafkaSettings, CommandError> {
        let flags = [("kafka.brokers", &self.kafka), ("kafka.dead_letter_topic", &self.topic)];
        kafka_settings(&self.config, &flags)
    }

    fn filter(&self) -> LetterFilter {
        LetterFilter { from_ms: self.from, to_ms: self.to, reason: self.reason.clone(), limit: self.limit }
    }
}

/// `[kafka]` of file, environment and flags; a broker must be named.
pub(super) fn kafka_settings(
    file: &Option<PathBuf>,
    flags: &[(&str, &Option<String>)],
) -> Result<KafkaSettings, CommandError> {
    let settings = load_settings(file.as_deref(), flags)?;
    if !settings.kafka.is_on() {
        return Err(CommandError::Usage("no broker is named: give --kafka host:port".to_string()));
    }
    Ok(settings.kafka)
}

impl From<KafkaError> for CommandError {
    fn from(error: KafkaError) -> CommandError {
        match error {
            KafkaError::Client { .. } => CommandError::Usage(error.to_string()),
            KafkaError::Call { .. } => CommandError::Unavailable(error.to_string()),
        }
    }
}

pub(super) fn run(command: DlqCommand) -> Result<(), CommandError> {
    match command {
        DlqCommand::List { letters, json } => list(&letters.settings()?, &letters.filter(), json),
        DlqCommand::Replay { letters, dry_run, max_replays } => {
            let settings = letters.settings()?;
            let cap = max_replays.unwrap_or(settings.max_replays);
            let done = replay(&settings, &letters.filter(), cap, dry_run)?;
            let verb = if dry_run { "would be sent back" } else { "sent back" };
            println!(
                "{} {verb}; left out: {} replayed {cap} times already, {} superseded by the letter of a later failure, \
                 {} without value, {} without source",
                done.sent, done.capped, done.superseded, done.without_value, done.without_source
            );
            Ok(())
        }
    }
}

fn list(settings: &KafkaSettings, filter: &LetterFilter, as_json: bool) -> Result<(), CommandError> {
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let mut out = std::io::stdout().lock();
    let mut written = Ok(());
    read_letters(settings, filter, |letter| {
        written = writeln!(out, "{}", if as_json { as_object(&letter) } else { as_line(&letter) });
        *reasons.entry(letter.reason).or_default() += 1;
        // Nobody reads on (a closed pipe).
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if written.is_ok() && !as_json {
        let counts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        println!("{} dead letters: {}", reasons.values().sum::<u64>(), counts.join(", "));
    }
    Ok(())
}

fn as_line(letter: &Letter) -> String {
    let (topic, partition, offset) = &letter.source;
    format!(
        "{}  {}  {}  replays {}  from {topic}/{partition}/{offset}  {}",
        letter.name(),
        letter.timestamp_ms.map(rfc3339).unwrap_or_default(),
        letter.reason,
        letter.replays,
        letter.message
    )
}

fn as_object(letter: &Letter) -> String {
    let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let (topic, partition, offset) = &letter.source;
    json!({
        "partition": letter.partition, "offset": letter.offset, "timestamp_ms": letter.timestamp_ms,
        "reason": letter.reason, "message": letter.message, "replays": letter.replays,
        "source": {"topic": topic, "partition": partition, "offset": offset},
        "value_dropped": letter.is_value_dropped, "key": text(letter.key()), "value": text(letter.value()),
    })
    .to_string()
}

pub(super) fn rfc3339(unix_ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(unix_ms)
        .map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
        .unwrap_or_default()
}

/// RFC 3339, or Unix milliseconds.
pub(super) fn time(text: &str) -> Result<i64, String> {
    if let Ok(unix_ms) = text.parse() {
        return Ok(unix_ms);
    }
    chrono::DateTime::parse_from_rfc3339(text)
        .map(|time| time.timestamp_millis())
        .map_err(|error| format!("neither RFC 3339 (2026-11-01T00:00:00Z) nor Unix milliseconds: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_both_forms() {
        assert_eq!(time("1700000000000"), Ok(1_700_000_000_000));
        assert_eq!(time("2023-11-14T22:13:20Z"), Ok(1_700_000_000_000));
        assert!(time("yesterday").expect_err("no time").contains("RFC 3339"));
        assert_eq!(rfc3339(1_700_000_000_000), "2023-11-14T22:13:20.000Z");
    }
}
