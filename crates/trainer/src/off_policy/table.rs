//! The random policy's value out of a log, as a table.
//!
//! In: files. Out: Markdown. Caller: the command line.

use super::{Log, OffPolicyError, Record, estimate};
use crate::stats::{Interval, Sample, interval};
use std::fmt::Write;
use std::path::Path;

/// What showing each of `items` with the same chance would have earned a record; `random`: the log of a policy that did.
pub fn random_policy(log: &Path, items: usize, random: Option<&Path>) -> Result<String, OffPolicyError> {
    let logged = Log::read(log, items)?;
    let found = estimate(&logged, &|_: &Record, _| 1.0 / items as f64)?;
    let mut table = String::from("| value of the random policy | clicks a record | 95 % interval |\n|---|---|---|\n");
    let mut row = |name: &str, value: Interval| {
        let Interval { estimate, low, high, .. } = value;
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {name} | {estimate:.5} | {low:.5} to {high:.5} |");
    };
    if let Some(random) = random {
        let earned = Log::read(random, items)?;
        row("its own log", interval(&Sample::of_users(&earned.rewards())?, 0.95)?);
    }
    row("IPS", found.ips);
    row("SNIPS", found.snips);
    row("DR", found.dr);
    row("the logging policy's own", interval(&Sample::of_users(&logged.rewards())?, 0.95)?);
    let _ = write!(
        table,
        "\n{} records, {} items, {} positions; mean weight {:.3}, largest {:.1}, effective size {:.0}",
        logged.records.len(),
        logged.shape.items,
        logged.shape.positions,
        found.mean_weight,
        found.largest_weight,
        found.effective_size
    );
    Ok(table)
}
