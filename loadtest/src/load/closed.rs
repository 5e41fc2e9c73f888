//! A closed loop: so many connections, each of which sends its next call when the one before was answered.
//!
//! In: a [`ClosedLoad`]. Out: a tally for each kind, and how many calls a second were answered. That is a capacity; its latencies are
//! those of callers who wait for each other, and say nothing of what users would see (`open` does).

use super::calls::Source;
use super::http::{Connection, HttpError};
use super::tally::{Outcome, Tally, together};
use super::{LoadError, on_threads, runtime, share};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;

/// Before a connection that was refused is tried again, so that a service that is away costs no core.
const PAUSE: Duration = Duration::from_millis(10);

/// What is sent, and how.
#[derive(Debug, Clone)]
pub struct ClosedLoad {
    /// `host:port`.
    pub address: String,
    /// Each with one call under way.
    pub connections: usize,
    /// No call begins after that.
    pub time: Duration,
    /// A call is given up after so long.
    pub timeout: Duration,
    /// Of the generator.
    pub threads: usize,
}

/// What a closed loop found.
pub struct Capacity {
    /// By kind.
    pub tallies: Vec<Tally>,
    /// From the first call to the last answer.
    pub seconds: f64,
}

impl Capacity {
    /// Answers 2xx a second.
    pub fn rate(&self) -> f64 {
        self.tallies.iter().map(Tally::good).sum::<u64>() as f64 / self.seconds
    }
}

/// Runs it; `source` makes a thread's calls.
pub fn run(
    load: &ClosedLoad,
    kinds: usize,
    source: impl Fn(usize) -> Result<Box<dyn Source>, LoadError> + Sync,
) -> Result<Capacity, LoadError> {
    if load.threads == 0 || load.connections < load.threads {
        return Err(LoadError::Setting { setting: "--connections", what: "at least one for each thread" });
    }
    let began = Instant::now();
    let tallies = on_threads(load.threads, |number| {
        let shared = Rc::new((RefCell::new(source(number)?), RefCell::new(vec![Tally::default(); kinds])));
        let local = LocalSet::new();
        for _ in 0..share(load.connections, number, load.threads) {
            local.spawn_local(one(load.clone(), shared.clone(), began));
        }
        runtime()?.block_on(local);
        Ok(shared.1.take())
    })?;
    Ok(Capacity { tallies: together(kinds, &tallies), seconds: began.elapsed().as_secs_f64() })
}

type Shared = Rc<(RefCell<Box<dyn Source>>, RefCell<Vec<Tally>>)>;

async fn one(load: ClosedLoad, shared: Shared, began: Instant) {
    let (source, tallies) = (&shared.0, &shared.1);
    let mut connection = None;
    while began.elapsed() < load.time {
        let call = source.borrow_mut().next();
        let sent = Instant::now();
        tallies.borrow_mut()[call.kind].note_sent(Duration::ZERO);
        let answer = tokio::time::timeout(load.timeout, exchange(&load.address, &mut connection, &call.bytes)).await;
        let outcome = match answer {
            Ok(Ok(status)) => Outcome::Answered(status),
            Ok(Err(_)) => Outcome::Broken,
            Err(_) => Outcome::TimedOut,
        };
        tallies.borrow_mut()[call.kind].note(sent - began, sent.elapsed(), outcome);
        if !matches!(outcome, Outcome::Answered(_)) {
            connection = None;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn exchange(address: &str, kept: &mut Option<Connection>, request: &[u8]) -> Result<u16, HttpError> {
    let mut connection = match kept.take().filter(Connection::is_open) {
        Some(connection) => connection,
        None => Connection::open(address).await?,
    };
    let status = connection.exchange(request).await?;
    *kept = Some(connection);
    Ok(status)
}
