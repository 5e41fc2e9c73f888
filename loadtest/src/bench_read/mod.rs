//! `bench-read`: reads of taiji beside the smallest handler that answers the same bytes and beside bare pipelined reads of Redis.
//!
//! In: a program, a bundle, how many rounds of how long. Out: one JSON object of all rounds, for `scripts/bench_read/run.py`. All ways are
//! measured in every round, in an order that turns, each with eight calls under way; then, open, ours and the smallest handler take turns at
//! 60 % of what the handler could do.

mod handler;
mod prepare;
mod ways;

use crate::arrivals::Law;
use crate::load::LoadError;
use crate::load::calls::Peer;
use crate::load::closed::{self, ClosedLoad};
use crate::load::open::{self, OpenLoad};
use crate::load::tally::quantile_ms;
use crate::process::{ProcessError, processor_s};
use crate::raw::{self, RawError, RawLoad};
use crate::rig::{Place, Rig, RigError, Roles, Started};
use clap::Args;
use handler::Handler;
use prepare::{Prepared, Ready};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use ways::{OURS_ONE, SMALLEST_ONE, Way, Who};

/// Calls under way, whoever makes them; of bare reads two connections, so that Redis never waits.
const CALLERS: usize = 8;
const RAW_CONNECTIONS: usize = 2;
/// Of the smallest handler's capacity.
const OPEN_LOAD: f64 = 0.6;
/// Calls under way of an open loop, and connections before the first.
const BOUND: usize = 1024;
const WARM: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_millis(500);

/// What is measured, and for how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct Bench {
    /// The taiji to start
    #[arg(long)]
    program: PathBuf,
    /// The bundle it serves
    #[arg(long, default_value = "models/demo/1")]
    bundle: PathBuf,
    /// On Valkey instead of Redis
    #[arg(long)]
    valkey: bool,
    /// Rounds of all ways
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Of each way in a round
    #[arg(long, default_value_t = 10.0, value_parser = crate::scenario::positive)]
    seconds: f64,
    /// Feast's own servers over a Redis of theirs, which know the users load-0, …: http://HOST:PORT, first the one with one worker, then two
    #[arg(long)]
    feast: Vec<String>,
    /// Users that are read, all alike
    #[arg(long, default_value_t = 1000)]
    users: usize,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The service did not come up.
    #[error(transparent)]
    Rig(#[from] RigError),
    /// No load was made.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Bare reads failed.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// A process is gone.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// What the smallest handler answers could not be stored.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// The smallest handler did not start.
    #[error("the smallest handler: {0}")]
    Handler(String),
    /// Two sides that are compared do different things, or one fails.
    #[error("{way}: {what}; nothing is compared that does not do the same")]
    Unequal {
        /// Which side.
        way: &'static str,
        /// What it did.
        what: String,
    },
    /// The two that there may be.
    #[error("--feast {0:?}: wanted are at most two, each http://HOST:PORT")]
    Feast(Vec<String>),
    /// Fewer than one call takes.
    #[error("--users {0}: a call asks for 100 different ones")]
    TooFewUsers(usize),
}

/// One way in one round.
struct Measured {
    rate: f64,
    /// Processor time of a call in µs: the service's, and Redis'.
    cpu_us: (Option<f64>, Option<f64>),
}

/// All parts of a bench that runs.
struct Field<'a> {
    bench: &'a Bench,
    rig: &'a Rig,
    started: &'a Started,
    handler: Handler,
    feast: Vec<Peer>,
    ways: Vec<&'static Way>,
    ready: Ready,
    redis_pid: u32,
}

/// Measures; the JSON of all rounds.
pub(crate) fn measure(bench: &Bench) -> Result<Value, BenchError> {
    if bench.users < ways::MANY {
        return Err(BenchError::TooFewUsers(bench.users));
    }
    let feast = bench.feast_peers()?;
    let rig = Rig::start(&bench.place(), Roles::Api, false)?;
    let started = rig.started("bench-read")?;
    let handler = Handler::start(&started.redis.url())?;
    let ways = ways::ways(feast.len());
    let ready = prepare::prepare((&rig, started), (&handler.address, &feast), bench.users, &ways)?;
    let redis_pid = started.redis_pid().ok_or(ProcessError::Field { pid: 0, field: "process_id of INFO server" })?;
    let field = Field { bench, rig: &rig, started, handler, feast, ways, ready, redis_pid };
    for way in &field.ways {
        field.run(way, WARM_UP)?;
    }
    let mut rounds = Vec::new();
    let mut smallest = Vec::new();
    for number in 0..bench.rounds {
        let round = field.round(number)?;
        smallest.push(round[SMALLEST_ONE].rate);
        let shown: Map<String, Value> =
            round.iter().map(|(way, measured)| (way.to_string(), measured.json())).collect();
        eprintln!("bench-read: round {} of {}: {}", number + 1, bench.rounds, json!(shown));
        rounds.push(Value::Object(shown));
    }
    smallest.sort_by(f64::total_cmp);
    let rate = smallest[smallest.len() / 2] * OPEN_LOAD;
    let open: Result<Vec<Value>, BenchError> = (0..bench.rounds).map(|number| field.open_round(number, rate)).collect();
    Ok(json!({
        "server": server(started),
        "users": bench.users,
        "seconds": bench.seconds,
        "callers": CALLERS,
        "bytes": field.ready.bytes(),
        "rounds": rounds,
        "open": {"rate": rate, "rounds": open?},
    }))
}

/// `Redis 7.0.15`.
fn server(started: &Started) -> String {
    let info = started.redis.command(&["INFO", "server"]);
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    // Valkey says which Redis it is compatible with, too.
    match (field("valkey_version:"), field("redis_version:")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, version) => format!("Redis {}", version.unwrap_or("?")),
    }
}

impl Bench {
    fn feast_peers(&self) -> Result<Vec<Peer>, BenchError> {
        let addresses: Option<Vec<&str>> = self.feast.iter().map(|url| url.strip_prefix("http://")).collect();
        let refused = || BenchError::Feast(self.feast.clone());
        let addresses = addresses.filter(|all| all.len() <= 2).ok_or_else(refused)?;
        Ok(addresses.into_iter().map(|address| Peer { address: address.to_string(), key: None }).collect())
    }

    fn place(&self) -> Place {
        Place {
            url: None,
            key: None,
            pid: None,
            fill: false,
            program: Some(self.program.clone()),
            bundle: self.bundle.clone(),
            valkey: self.valkey,
            split_cores: false,
            users: self.users,
        }
    }
}

impl Measured {
    fn json(&self) -> Value {
        json!({"rate": self.rate, "service_us": self.cpu_us.0, "redis_us": self.cpu_us.1})
    }
}

impl Field<'_> {
    /// All ways; which is first turns.
    fn round(&self, number: usize) -> Result<BTreeMap<&'static str, Measured>, BenchError> {
        let time = Duration::from_secs_f64(self.bench.seconds);
        let turned = (0..self.ways.len()).map(|place| self.ways[(place + number) % self.ways.len()]);
        turned.map(|way| Ok((way.name, self.run(way, time)?))).collect()
    }

    fn run(&self, way: &Way, time: Duration) -> Result<Measured, BenchError> {
        let service = match way.who {
            Who::Ours => self.rig.pid,
            Who::Smallest => Some(self.handler.pid()),
            Who::Raw | Who::Feast(_) => None,
        };
        // Feast's servers are processes of somebody else, on another Redis.
        let redis = (!matches!(way.who, Who::Feast(_))).then_some(self.redis_pid);
        let used = || -> Result<_, ProcessError> {
            Ok((service.map(processor_s).transpose()?, redis.map(processor_s).transpose()?))
        };
        let before = used()?;
        let (calls, rate) = match &self.ready.of[way.name] {
            Prepared::Requests(_) => self.http(way, time)?,
            Prepared::Commands(calls) => {
                let found = raw::run(&self.raw_load(time), calls)?;
                (found.calls, found.rate)
            }
        };
        let after = used()?;
        let a_call = 1e6 / calls.max(1) as f64;
        let between = |(after, before): (f64, f64)| (after - before) * a_call;
        let cpu_us = (after.0.zip(before.0).map(between), after.1.zip(before.1).map(between));
        Ok(Measured { rate, cpu_us })
    }

    /// Calls that were answered, and how many a second.
    fn http(&self, way: &Way, time: Duration) -> Result<(u64, f64), BenchError> {
        let address = self.address(way);
        let load = ClosedLoad { address, connections: CALLERS, time, timeout: TIMEOUT, threads: 1 };
        let found = closed::run(&load, 1, |thread| self.ready.source(way.name, thread))?;
        let tally = &found.tallies[0];
        if tally.good() != tally.sent || tally.sent == 0 {
            let what = format!("{} of {} calls were answered 2xx ({:?})", tally.good(), tally.sent, tally.statuses);
            return Err(BenchError::Unequal { way: way.name, what });
        }
        Ok((tally.good(), found.rate()))
    }

    fn address(&self, way: &Way) -> String {
        match way.who {
            Who::Ours => self.rig.peer.address.clone(),
            Who::Feast(number) => self.feast[number].address.clone(),
            Who::Smallest | Who::Raw => self.handler.address.clone(),
        }
    }

    fn raw_load(&self, time: Duration) -> RawLoad {
        RawLoad {
            address: format!("127.0.0.1:{}", self.started.redis.port),
            login: Some(prepare::LOGIN.map(str::to_string).into()),
            connections: RAW_CONNECTIONS,
            depth: CALLERS / RAW_CONNECTIONS,
            time,
        }
    }

    /// One user's read at the same rate from both, one after the other; which is first alternates.
    fn open_round(&self, number: usize, rate: f64) -> Result<Value, BenchError> {
        let mut pair = [("ours", OURS_ONE), ("smallest", SMALLEST_ONE)];
        pair.rotate_left(number % 2);
        let mut round = Map::new();
        for (name, way) in pair {
            let Some(known) = self.ways.iter().find(|known| known.name == way) else { continue };
            let load = OpenLoad {
                address: self.address(known),
                law: Law::Poisson,
                rate,
                time: Duration::from_secs_f64(self.bench.seconds),
                bound: BOUND,
                warm: WARM,
                timeout: TIMEOUT,
                threads: 1,
                seed: number as u64,
                phases: Vec::new(),
            };
            let tally = open::run(&load, 1, |thread| self.ready.source(way, thread))?.remove(0);
            // Refusals are quick: they stand in the share that was answered, and not here.
            let quantile = |quantile| quantile_ms(&tally.accepted, quantile);
            round.insert(
                name.to_string(),
                json!({
                    "p50_ms": quantile(0.5), "p99_ms": quantile(0.99), "late_p99_ms": quantile_ms(&tally.late, 0.99),
                    "answered": tally.good() as f64 / tally.meant().max(1) as f64,
                }),
            );
        }
        eprintln!("bench-read: open round {}: {}", number + 1, json!(round));
        Ok(Value::Object(round))
    }
}
