//! What load is put on a service, and what is made of the answers: one file a scenario.
//!
//! In: a [`Place`] and a [`Pace`]. Out: a [`Report`].

mod brownout;
mod mixed;
mod overload;
mod read;
mod requests;
mod soak;

pub(crate) use requests::Reads;

use crate::arrivals::Law;
use crate::load::LoadError;
use crate::load::open::OpenLoad;
use crate::load::tally::{Tally, quantile_ms};
use crate::process::ProcessError;
use crate::report::{RATIO, Report, Row};
use crate::rig::{Place, RigError};
use brownout::Fault;
use clap::{Args, ValueEnum};
use std::time::Duration;

/// Connections before the first call, as a load balancer keeps them.
const WARM: usize = 64;

/// How fast, how many, how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct Pace {
    /// Calls a second
    #[arg(long, default_value_t = 1000.0)]
    pub(crate) rate: f64,
    /// How they follow each other
    #[arg(long, value_enum, default_value_t = Law::Poisson)]
    pub(crate) law: Law,
    /// How long calls are sent
    #[arg(long, default_value_t = 30.0, value_parser = positive)]
    pub(crate) seconds: f64,
    /// Calls under way at most; those beyond are counted as failed to start
    #[arg(long, default_value_t = 2048)]
    pub(crate) bound: usize,
    /// Connections that are open before the first call; overload: as many as there may be calls under way, else 64
    #[arg(long)]
    pub(crate) warm: Option<usize>,
    /// A call is given up so long after its intended start
    #[arg(long, default_value_t = 5000)]
    pub(crate) timeout_ms: u64,
    /// Threads of the generator
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// Connections of a closed loop
    #[arg(long, default_value_t = 16)]
    pub(crate) connections: usize,
    /// Of times and users
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Of the Zipf law by which users come; 0 is the even law
    #[arg(long, default_value_t = 1.0)]
    pub(crate) exponent: f64,
    /// Users in one read
    #[arg(long, default_value_t = 1)]
    pub(crate) users_per_call: usize,
}

/// A day at most: longer times are slips of the hand.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "is no number".to_string())?;
    if seconds > 0.0 && seconds <= 86_400.0 {
        Ok(seconds)
    } else {
        Err("wanted is more than 0 and at most a day".into())
    }
}

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Reads at a rate
    Read,
    /// Reads, and events that come in meanwhile (--events)
    Mixed,
    /// The capacity, then 60 % of it, then more than that (--times)
    Overload,
    /// Redis goes away for the third quarter of the reads' time (--fault)
    Brownout,
    /// Reads and events for long (--seconds 1800 --events), and what memory becomes
    Soak,
}

/// What some of them need beside.
#[derive(Debug, Clone, Args)]
pub(crate) struct Extras {
    /// mixed, soak: share of the calls that bring an event
    #[arg(long, default_value_t = 0.2)]
    events: f64,
    /// overload: how many times the capacity
    #[arg(long, default_value_t = 3.0)]
    times: f64,
    /// brownout: how Redis goes away
    #[arg(long, value_enum, default_value_t = Fault::Pause)]
    fault: Fault,
    /// brownout --fault slow: how much later everything comes, each way
    #[arg(long, default_value_t = 50)]
    delay_ms: u64,
}

/// Why a scenario has no report.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// There is nothing to put load on.
    #[error(transparent)]
    Rig(#[from] RigError),
    /// No load was made.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A process cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nothing to divide by.
    #[error("{0}: no call was answered 2xx; look at the service's log")]
    NoAnswer(&'static str),
    /// Memory was to be watched.
    #[error("{0} watches memory: say which process with --pid, or start one with --program")]
    NoProcess(&'static str),
}

/// Plays one.
pub(crate) fn play(scenario: Scenario, place: &Place, pace: &Pace, extras: &Extras) -> Result<Report, ScenarioError> {
    match scenario {
        Scenario::Read => read::play(place, pace),
        Scenario::Mixed => mixed::play(place, pace, extras.events),
        Scenario::Overload => overload::play(place, pace, extras.times),
        Scenario::Brownout => brownout::play(place, pace, (extras.fault, Duration::from_millis(extras.delay_ms))),
        Scenario::Soak => soak::play(place, pace, extras.events),
    }
}

impl Pace {
    /// This pace on an address.
    fn open(&self, address: &str) -> OpenLoad {
        OpenLoad {
            address: address.to_string(),
            law: self.law,
            rate: self.rate,
            time: self.time(),
            bound: self.bound,
            warm: self.warm.unwrap_or(WARM),
            timeout: self.timeout(),
            threads: self.threads,
            seed: self.seed,
            phases: Vec::new(),
        }
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn says(&self, users: usize) -> String {
        let (rate, law, per_call) = (self.rate, format!("{:?}", self.law).to_lowercase(), self.users_per_call);
        format!(
            "{rate} calls/s ({law}) for {} s, {per_call} of {users} users a read (Zipf, exponent {}), at most {} under way, {} ms each, {} threads, seed {}",
            self.seconds, self.exponent, self.bound, self.timeout_ms, self.threads, self.seed
        )
    }
}

/// What every scenario says of calls of one kind.
fn rows_of(kind: &str, tally: &Tally, seconds: f64) -> Vec<Row> {
    let mut rows = vec![
        Row::new(format!("{kind}: meant"), tally.meant() as f64, "calls"),
        Row::new(format!("{kind}: goodput (2xx)"), tally.good() as f64 / seconds, "1/s"),
        Row::new(format!("{kind}: share answered 2xx"), tally.good() as f64 / tally.meant().max(1) as f64, RATIO),
    ];
    rows.extend(
        tally
            .statuses
            .iter()
            .map(|(status, count)| Row::new(format!("{kind}: status {status}"), *count as f64, "calls")),
    );
    for (what, count) in
        [("failed to start", tally.failed_to_start), ("given up", tally.timed_out), ("connection broke", tally.broken)]
    {
        rows.push(Row::new(format!("{kind}: {what}"), count as f64, "calls"));
    }
    if !tally.accepted.is_empty() {
        for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("longest", 1.0)] {
            rows.push(Row::new(format!("{kind}: {name} of answers 2xx"), quantile_ms(&tally.accepted, quantile), "ms"));
        }
    }
    if !tally.late.is_empty() {
        // Where this is not small the generator had no core, and the latencies are its own.
        rows.push(Row::new(format!("{kind}: sent late, p99"), quantile_ms(&tally.late, 0.99), "ms"));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tally::Outcome;

    #[test]
    fn rows_say_what_became_of_every_call() {
        let mut tally = Tally::default();
        for (status, ms) in [(200, 1), (200, 3), (429, 1)] {
            tally.note_sent(Duration::ZERO);
            tally.note(Duration::ZERO, Duration::from_millis(ms), Outcome::Answered(status));
        }
        tally.note_failed_to_start(Duration::ZERO);
        let rows = rows_of("reads", &tally, 2.0);
        let value = |what: &str| rows.iter().find(|row| row.what == format!("reads: {what}")).map(|row| row.value);
        assert_eq!(value("meant"), Some(4.0));
        assert_eq!(value("goodput (2xx)"), Some(1.0));
        assert_eq!(value("share answered 2xx"), Some(0.5));
        assert_eq!((value("status 200"), value("status 429")), (Some(2.0), Some(1.0)));
        assert_eq!((value("failed to start"), value("given up")), (Some(1.0), Some(0.0)));
        assert!(value("longest of answers 2xx").is_some_and(|ms| (ms - 3.0).abs() < 0.01));
        assert_eq!(
            rows_of("reads", &Tally::default(), 1.0).len(),
            6,
            "nothing is said of latencies that there are not"
        );
    }

    #[test]
    fn times_are_positive_and_short_enough() {
        assert_eq!(positive("0.5"), Ok(0.5));
        for text in ["0", "-1", "nan", "inf", "1e9", "x"] {
            assert!(positive(text).is_err(), "{text}");
        }
    }
}
