//! An open loop: calls go out when they are meant to, whether or not earlier ones were answered, and their latency counts from then on.
//!
//! In: an [`OpenLoad`] and where calls come from. Out: a tally for each kind. A service that stands still for a second is seen by every
//! call that was due in it, not by the few that a closed loop would have had under way. So many calls may be under way; one that finds
//! no room is counted as failed to start.

use super::calls::{Call, Source};
use super::http::{Connection, HttpError};
use super::tally::{Outcome, Tally, together};
use super::timer::Timer;
use super::{LoadError, on_threads, runtime, share};
use crate::arrivals::{Arrivals, Law};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::{LocalSet, yield_now};

/// Sends in a row without a look at what came in, when the generator is behind.
const BURST: usize = 16;
/// Threads are up by then.
const HEAD_START: Duration = Duration::from_millis(50);
/// Connections that are opened in a row, and the rest after them: a service takes them from a queue that holds some hundreds, and one that
/// finds it full comes again only after a second.
const IN_A_ROW: usize = 64;
const REST: Duration = Duration::from_millis(5);
/// What is reserved for opening one.
const OPENING: Duration = Duration::from_micros(300);

/// What is sent, and how.
#[derive(Debug, Clone)]
pub struct OpenLoad {
    /// `host:port`.
    pub address: String,
    /// How calls follow each other.
    pub law: Law,
    /// A second, by all threads.
    pub rate: f64,
    /// Starts are meant within this time.
    pub time: Duration,
    /// Calls under way at most.
    pub bound: usize,
    /// Connections that are open before the first call, as a load balancer keeps them; more are opened when calls need them.
    pub warm: usize,
    /// A call is given up so long after its intended start.
    pub timeout: Duration,
    /// Of the generator.
    pub threads: usize,
    /// Of the times.
    pub seed: u64,
    /// Where a new phase of the run begins, in order: calls are tallied by the phase their start lies in.
    pub phases: Vec<Duration>,
}

impl OpenLoad {
    /// What goes before the first call: threads start and open connections.
    pub fn head_start(&self) -> Duration {
        HEAD_START + OPENING * self.warm.div_ceil(self.threads.max(1)) as u32
    }

    /// The tally of a kind of calls that are meant to start then.
    fn place(&self, kinds: usize, kind: usize, start: Duration) -> usize {
        kinds * self.phases.iter().filter(|begins| **begins <= start).count() + kind
    }
}

/// A thread's part of the load.
struct Sender {
    address: String,
    timeout: Duration,
    idle: RefCell<Vec<Connection>>,
    under_way: Cell<usize>,
    tallies: RefCell<Vec<Tally>>,
    is_done: Notify,
}

/// Sends all of it and waits for the last answer. Out come tallies of so many kinds of calls, phase after phase. `source` makes a
/// thread's calls.
pub fn run(
    load: &OpenLoad,
    kinds: usize,
    source: impl Fn(usize) -> Result<Box<dyn Source>, LoadError> + Sync,
) -> Result<Vec<Tally>, LoadError> {
    run_from(load, kinds, source, Instant::now() + load.head_start())
}

/// The same with a beginning that others know, too.
pub fn run_from(
    load: &OpenLoad,
    kinds: usize,
    source: impl Fn(usize) -> Result<Box<dyn Source>, LoadError> + Sync,
    began: Instant,
) -> Result<Vec<Tally>, LoadError> {
    if !(load.rate.is_finite() && load.rate > 0.0) {
        return Err(LoadError::Setting { setting: "--rate", what: "calls a second, more than 0" });
    }
    if load.threads == 0 || load.bound < load.threads {
        return Err(LoadError::Setting { setting: "--bound", what: "calls under way, at least one for each thread" });
    }
    let tallies = on_threads(load.threads, |number| {
        let calls = source(number)?;
        runtime()?.block_on(LocalSet::new().run_until(send(load, kinds, number, calls, began)))
    })?;
    Ok(together(kinds * (load.phases.len() + 1), &tallies))
}

async fn send(
    load: &OpenLoad,
    kinds: usize,
    number: usize,
    mut calls: Box<dyn Source>,
    began: Instant,
) -> Result<Vec<Tally>, LoadError> {
    let timer = Timer::new()?;
    let sender = Rc::new(Sender {
        address: load.address.clone(),
        timeout: load.timeout,
        idle: RefCell::default(),
        under_way: Cell::new(0),
        tallies: RefCell::new(vec![Tally::default(); kinds * (load.phases.len() + 1)]),
        is_done: Notify::new(),
    });
    sender.warm_up(share(load.warm.min(load.bound), number, load.threads), &timer).await?;
    let bound = share(load.bound, number, load.threads);
    let arrivals = Arrivals::new(load.law, load.rate, load.seed, (number, load.threads));
    let mut in_a_row = 0;
    for start in arrivals.take_while(|start| *start < load.time) {
        in_a_row = if timer.until(began + start).await? { 0 } else { in_a_row + 1 };
        if in_a_row >= BURST {
            in_a_row = 0;
            yield_now().await;
        }
        let call = calls.next();
        let place = load.place(kinds, call.kind, start);
        if sender.under_way.get() >= bound {
            sender.tallies.borrow_mut()[place].note_failed_to_start(start);
            continue;
        }
        sender.under_way.set(sender.under_way.get() + 1);
        tokio::task::spawn_local(sender.clone().make(call, place, start, began));
    }
    while sender.under_way.get() > 0 {
        sender.is_done.notified().await;
    }
    Ok(sender.tallies.take())
}

impl Sender {
    /// A service that refuses gets no connection, and then refuses the calls.
    async fn warm_up(&self, connections: usize, timer: &Timer) -> Result<(), LoadError> {
        for number in 1..=connections {
            let Ok(connection) = Connection::open(&self.address).await else { return Ok(()) };
            self.idle.borrow_mut().push(connection);
            if number.is_multiple_of(IN_A_ROW) {
                timer.until(Instant::now() + REST).await?;
            }
        }
        Ok(())
    }

    async fn make(self: Rc<Sender>, call: Call, place: usize, start: Duration, began: Instant) {
        let due = began + start;
        self.tallies.borrow_mut()[place].note_sent(due.elapsed());
        let answer = tokio::time::timeout_at((due + self.timeout).into(), self.exchange(&call.bytes)).await;
        let outcome = match answer {
            Ok(Ok(status)) => Outcome::Answered(status),
            Ok(Err(_)) => Outcome::Broken,
            Err(_) => Outcome::TimedOut,
        };
        self.tallies.borrow_mut()[place].note(start, due.elapsed(), outcome);
        self.under_way.set(self.under_way.get() - 1);
        self.is_done.notify_one();
    }

    /// Over an idle connection, or a new one. What is given up, or fails, drops its connection.
    async fn exchange(&self, request: &[u8]) -> Result<u16, HttpError> {
        let mut connection = match self.idle_connection() {
            Some(connection) => connection,
            None => Connection::open(&self.address).await?,
        };
        let status = connection.exchange(request).await?;
        self.idle.borrow_mut().push(connection);
        Ok(status)
    }

    /// The one that was used last, so that few are kept busy.
    fn idle_connection(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let connection = idle.pop()?;
            if connection.is_open() {
                return Some(connection);
            }
        }
    }
}
