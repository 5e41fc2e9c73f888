//! `taiji restore`: what is to be done beside Redis' own files when a Redis is set back to a backup of an earlier time.

use super::CommandError;
use super::dlq::{kafka_settings, rfc3339, time};
use crate::clock::unix_ms;
use crate::ingest::kafka::rewind::{Partition, Plan, RewindError, Rewinder};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Whoever gives an earlier time means seconds.
const YEAR_2000_MS: i64 = 946_684_800_000;

/// What to do after the restore.
#[derive(Debug, Subcommand)]
pub(super) enum RestoreCommand {
    /// Seek every partition of the service's topics back to the first record of the backup's time, less a margin. Events that
    /// are stored already count as duplicates. Refused while the group has members.
    #[command(
        after_help = "Examples:\n  taiji restore rewind --config taiji.toml --to 2026-11-28T07:00:00Z --dry-run\n  taiji restore rewind --kafka localhost:9092 --to 1795849200000 --margin 300"
    )]
    Rewind(RewindArgs),
}

/// Flags of `restore rewind`.
#[derive(Debug, Args)]
pub(super) struct RewindArgs {
    /// Settings file (TOML); `[kafka]` counts: group, topics, properties.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kafka brokers, "host:port,…".
    #[arg(long, value_name = "BROKERS")]
    kafka: Option<String>,
    /// When the backup was begun: RFC 3339, or Unix milliseconds.
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: i64,
    /// Seconds before that from which records are read again: by so much the clocks of Redis, brokers and producers may differ.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    margin: u32,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

impl From<RewindError> for CommandError {
    fn from(error: RewindError) -> CommandError {
        match error {
            RewindError::Kafka(error) => error.into(),
            other => CommandError::Unavailable(other.to_string()),
        }
    }
}

pub(super) fn run(command: RestoreCommand) -> Result<(), CommandError> {
    let RestoreCommand::Rewind(args) = command;
    let since_ms = since(args.to, args.margin, unix_ms())?;
    let settings = kafka_settings(&args.config, &[("kafka.brokers", &args.kafka)])?;
    let rewinder = Rewinder::new(&settings)?;
    let plan = rewinder.plan(since_ms)?;
    for line in table(&plan).iter().chain(&remarks(&plan)) {
        println!("{line}");
    }
    if args.dry_run {
        println!("dry run: nothing was changed");
        return Ok(());
    }
    rewinder.apply(&plan)?;
    println!("done: the next start of the ingest reads from there");
    Ok(())
}

/// From when on records are read again, unix ms.
fn since(to_ms: i64, margin_s: u32, now_ms: i64) -> Result<i64, CommandError> {
    if to_ms < YEAR_2000_MS {
        return Err(CommandError::Usage(format!(
            "--to {to_ms} is before the year 2000; is it in seconds? Milliseconds are meant"
        )));
    }
    if to_ms > now_ms {
        return Err(CommandError::Usage(format!(
            "--to {} lies in the future (it is {}): give the time at which the backup was begun",
            rfc3339(to_ms),
            rfc3339(now_ms)
        )));
    }
    Ok(to_ms - i64::from(margin_s) * 1000)
}

/// One line a partition.
fn table(plan: &Plan) -> Vec<String> {
    let number = |offset: Option<i64>| offset.map_or("-".to_string(), |offset| offset.to_string());
    let row = |part: &Partition| {
        [
            part.topic.clone(),
            part.partition.to_string(),
            number(part.committed),
            number(part.target),
            part.records().to_string(),
        ]
    };
    let head = ["topic", "partition", "committed", "new", "read again"].map(String::from);
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(plan.partitions.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let numbers: Vec<String> =
            (1..5).map(|column| format!("{:>width$}", row[column], width = widths[column])).collect();
        format!("{:<width$}  {}", row[0], numbers.join("  "), width = widths[0])
    };
    let mut lines = vec![format!("group {}: back to the records of {} and later", plan.group, rfc3339(plan.since_ms))];
    lines.extend(rows.iter().map(line));
    lines
}

/// The sum, and what is not as it should be.
fn remarks(plan: &Plan) -> Vec<String> {
    let all = plan.partitions.len();
    let mut lines = vec![format!(
        "{} of {all} partitions seek back; at most {} records are read again",
        plan.moving(),
        plan.records()
    )];
    for part in &plan.partitions {
        let name = format!("{}, partition {}", part.topic, part.partition);
        if part.may_lack {
            lines.push(format!(
                "retention: {name} begins at offset {}: what stood before it is deleted, and some of that may be of {} or later; \
                 take it from where it came, with `taiji backfill`",
                part.low,
                rfc3339(plan.since_ms)
            ));
        }
        if part.committed.is_none() {
            lines.push(format!("{name}: nothing is committed, so it is read from offset {} on anyway", part.low));
        }
        if part.is_beyond_end() {
            lines.push(format!(
                "{name}: its end is {}, before what is committed: the topic was made anew, or cut",
                part.high
            ));
        }
    }
    for topic in &plan.by_producers {
        lines.push(format!(
            "{topic}: records bear their producers' times (or message.timestamp.type may not be read): where a producer stamps \
             them more than the margin too early, give an earlier --to"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn plan() -> Plan {
        let part = |partition, committed, target, low, may_lack| Partition {
            topic: "taiji.events".to_string(),
            partition,
            committed,
            target,
            low,
            high: 2000,
            may_lack,
        };
        let partitions = vec![
            part(0, Some(1000), Some(900), 0, false),
            part(1, None, None, 7, false),
            part(2, Some(500), Some(40), 40, true),
            part(3, Some(3000), Some(2000), 0, false),
        ];
        Plan {
            group: "taiji".to_string(),
            since_ms: 1_700_000_000_000,
            partitions,
            by_producers: vec!["taiji.items".to_string()],
        }
    }

    #[test]
    fn a_plan_is_said_in_a_table_with_what_is_odd_below() {
        let lines = table(&plan());
        assert_eq!(lines[0], "group taiji: back to the records of 2023-11-14T22:13:20.000Z and later");
        assert_eq!(lines[1], "topic         partition  committed   new  read again");
        assert_eq!(lines[2], "taiji.events          0       1000   900         100");
        assert_eq!(lines[3], "taiji.events          1          -     -           0");
        let said = remarks(&plan()).join("\n");
        for part in [
            "3 of 4 partitions seek back; at most 560 records",
            "retention: taiji.events, partition 2 begins at offset 40",
            "partition 1: nothing is committed, so it is read from offset 7",
            "partition 3: its end is 2000",
            "taiji.items: records bear their producers' times",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn times_that_cannot_be_meant_are_refused() {
        let now = 1_800_000_000_000;
        assert_eq!(since(1_700_000_000_000, 60, now).unwrap(), 1_699_999_940_000);
        assert_eq!(since(1_700_000_000_000, 0, now).unwrap(), 1_700_000_000_000);
        for (to, part) in [(1_700_000_000, "is it in seconds?"), (now + 1, "in the future")] {
            assert!(since(to, 60, now).unwrap_err().to_string().contains(part), "{to}");
        }
    }
}
