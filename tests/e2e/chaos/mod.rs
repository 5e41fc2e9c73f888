//! The chaos suite: what may happen to the data plane, and what must come out of it all the same (DESIGN 9, safety).
//!
//! For a seed: a stream of events whose end is known goes, half of it through Apache Kafka and half over HTTP by clients that
//! repeat what was not answered, into a fleet of `taiji serve` on one Redis or on a cluster, beside items and erasures, while
//! processes are killed, stopped and frozen, Redis and the broker go away and come back, masters are replaced, and the
//! network between them is cut. In the end nothing may be lost, doubled or out of order, nothing erased shown, and while it
//! lasts no reader may see versions go back. What Redis itself may lose under `store.ack = "applied"` is counted apart.
//!
//! | file | job |
//! |---|---|
//! | `stream` | the events of a seed, and what every history must be |
//! | `feeder`, `poster` | send them at a rate, by Kafka and over HTTP; items and erasures |
//! | `site`, `cluster` | Redis behind a network that can be cut, or a cluster; the broker; what was disturbed when (`calm`) |
//! | `fleet` | our processes and their supervisor |
//! | `faults` | the schedule of a seed, and how each fault is done |
//! | `reader` | reads features all the time; versions must not go back |
//! | `gather` | the end: waits until everything is done, and records what is found |
//! | `check` | judges the record: a pure function, tested on planted damage |
//! | `run` | one seed from start to end |
//!
//! `make chaos` runs [`suite`]; `make test` its short form.

mod calm;
mod check;
mod cluster;
mod faults;
mod feeder;
mod fleet;
mod gather;
mod poster;
mod reader;
mod run;
mod site;
mod stream;

use run::{Length, run};
use std::io::Write;
use std::time::Duration;
use testkit::kafka::Broker;

/// A number of the environment, which `make chaos` sets.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")),
        _ => default,
    }
}

/// A line that is seen while the test runs.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn audit_20_nothing_is_lost_or_doubled_in_ten_seconds_of_faults() {
    let Some(broker) = Broker::start_if_real() else { return };
    let report = run(1, Length::SHORT, &site::shared(broker));
    say(&report.line());
    assert_eq!(report.violations, Vec::<String>::new());
}

#[test]
fn audit_20_nothing_is_lost_or_doubled_on_a_cluster_whose_masters_are_killed() {
    let Some(broker) = Broker::start_if_real() else { return };
    let report = run(2, Length::SHORT, &site::shared(broker));
    say(&report.line());
    assert_eq!(report.violations, Vec::<String>::new());
}

/// SEEDS seeds, or SEED alone, of SECONDS at RATE events a second.
#[test]
#[ignore = "half an hour; `make chaos` runs it"]
fn suite() {
    let broker = Broker::start_if_real().expect("Apache Kafka");
    let broker = site::shared(broker);
    let sweep = match setting("TAIJI_CHAOS_SWEEP", 0) {
        0 => None,
        seconds => Some(Duration::from_secs(seconds)),
    };
    let length = Length { seconds: setting("TAIJI_CHAOS_SECONDS", 60), rate: setting("TAIJI_CHAOS_RATE", 1000), sweep };
    let seeds = match setting("TAIJI_CHAOS_SEED", 0) {
        0 => 1..=setting("TAIJI_CHAOS_SEEDS", 10),
        seed => seed..=seed,
    };
    let mut violations = 0;
    for seed in seeds {
        let report = run(seed, length, &broker);
        say(&report.line());
        for violation in report.violations.iter().take(20) {
            say(&format!("  {violation}"));
        }
        violations += report.violations.len();
        if let Ok(path) = std::env::var("TAIJI_CHAOS_OUT") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
            writeln!(file.expect("the report's file"), "{}", report.json()).expect("the report");
        }
    }
    assert_eq!(violations, 0, "violations; run the seed alone: make chaos SEED=…");
}
