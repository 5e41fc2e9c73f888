//! Connections to Redis and the way of a batch of commands over them.
//!
//! In: commands with the slot of their keys. Out: their answers in order. Callers: the other files of this folder.
//!
//! Each node has one multiplexed connection. `batch` cuts a batch by node; each node's part goes out in pieces ([`super::pace`], `sending`),
//! to all nodes at once. What meets a lost connection, a moved slot (`slots`), a loading node or one without our functions (`loading`) is
//! sent again, a bounded number of times with jitter. That needs every command to be idempotent, and they are. `nodes` asks one node, or
//! every master.
//!
//! A batch goes one of three ways ([`Way`]): with timeouts; as a serving read, whose time is over soon (`reading`); or confirmed by
//! replicas or the disk, over connections of its own (`durable`).

mod batch;
mod loading;
mod nodes;
mod reading;
mod sending;
mod slots;

pub use reading::HashReads;

use batch::{Route, Sent, Trouble, Way};
use nodes::Refusal;

use super::RedisOptions;
use super::address::{Address, Node};
use super::assurance::{Ack, Assurance};
use super::breaker::Breaker;
use super::call::Call;
use super::connections::Connections;
use super::durable::Durable;
use super::errors::{self, Remedy};
use super::functions::Refusals;
use super::pace::{self, Pace};
use super::reads::ReadConnections;
use super::sentinels::Sentinels;
use super::topology::Topology;
use super::watch;
use crate::backoff::Backoff;
use crate::store::{StoreError, StoreResult};
use futures::future::join_all;
use parking_lot::RwLock;
use redis::{Pipeline, RedisError, Value};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Limits of waiting.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a connection to stand.
    pub connect: Duration,
    /// For the answers to one pipeline.
    pub response: Duration,
    /// Tries beyond the first.
    pub retries: u32,
}

/// All connections of one store.
pub struct Link {
    address: Address,
    timeouts: Timeouts,
    assurance: Assurance,
    namespace: String,
    /// Where the url names some: who is the master.
    sentinels: Option<Sentinels>,
    topology: RwLock<Arc<Topology>>,
    connections: Connections,
    reads: ReadConnections,
    durable: Durable,
    breaker: Breaker<String>,
    pace: Pace,
    refusals: Refusals,
    /// For what goes on beside the calls.
    myself: Weak<Link>,
}

impl Link {
    /// Connects and, on a cluster, reads the slot map, or has the sentinels name the master.
    pub async fn open(address: Address, options: &RedisOptions) -> StoreResult<Arc<Link>> {
        let timeouts = options.timeouts;
        let sentinels = Sentinels::of(&address)?;
        let link = Arc::new_cyclic(|myself: &Weak<Link>| Link {
            connections: Connections::new(address.clone(), timeouts),
            reads: ReadConnections::new(address.clone(), timeouts.connect),
            address,
            timeouts,
            assurance: options.assurance,
            namespace: options.namespace.clone(),
            sentinels,
            topology: Default::default(),
            durable: Durable::default(),
            breaker: Breaker::default(),
            pace: Pace::default(),
            refusals: Refusals::default(),
            myself: myself.clone(),
        });
        let mut pause = Tries::new();
        loop {
            match link.remap("open").await {
                Ok(()) => break,
                Err(refusal) if refusal.is_final || pause.rounds >= timeouts.retries => return Err(refusal.error),
                Err(_) => pause.wait().await,
            }
        }
        if link.sentinels.is_some() {
            tokio::spawn(watch::look_at_sentinels(link.myself()));
        }
        Ok(link)
    }

    /// For messages.
    pub fn printable(&self) -> String {
        self.address.printable()
    }

    /// Whether keys of different slots need calls of their own.
    pub fn is_cluster(&self) -> bool {
        self.address.cluster
    }

    /// Whether another node may take over what one node had.
    pub(super) fn may_move(&self) -> bool {
        self.address.cluster || self.sentinels.is_some()
    }

    /// The masters now.
    pub fn masters(&self) -> Vec<Node> {
        self.topology.read().masters.clone()
    }

    /// Answers of the commands, in their order; the first error of any of them in their place. Others may have been carried out.
    pub async fn run(&self, operation: &'static str, calls: Vec<Call>) -> StoreResult<Vec<Value>> {
        self.run_each(operation, calls).await.into_iter().collect()
    }

    /// One answer a command, in their order. What is wrong with one command (a key of another type, an error inside a
    /// function) stands in its place alone, and what is wrong with a node, after the tries, in the places of those that go
    /// there; the others are carried out.
    pub async fn run_each(&self, operation: &'static str, calls: Vec<Call>) -> Vec<StoreResult<Value>> {
        self.go(operation, calls, Way::Timeouts).await
    }

    /// As [`Link::run_each`], for who cannot wait: what has no answer within [`Assurance::read_deadline`] fails alone.
    pub async fn read_each(&self, operation: &'static str, calls: Vec<Call>) -> Vec<StoreResult<Value>> {
        let deadline = tokio::time::Instant::now() + self.assurance.read_deadline;
        self.go(operation, calls, Way::Until(deadline)).await
    }

    /// As [`Link::run`], in the way of [`Link::write_each`].
    pub async fn write(&self, operation: &'static str, calls: Vec<Call>) -> StoreResult<Vec<Value>> {
        self.write_each(operation, calls).await.into_iter().collect()
    }

    /// As [`Link::run_each`], for writes that are acknowledged: an answer is one only when [`Assurance::ack`] is kept, else it is
    /// [`StoreError::NotDurable`], and the write may be repeated.
    pub async fn write_each(&self, operation: &'static str, calls: Vec<Call>) -> Vec<StoreResult<Value>> {
        let way = if self.assurance.ack == Ack::Applied { Way::Timeouts } else { Way::Confirmed };
        self.go(operation, calls, way).await
    }

    /// Answer of one acknowledged write.
    pub async fn write_one(&self, operation: &'static str, call: Call) -> StoreResult<Value> {
        self.write_each(operation, vec![call]).await.pop().unwrap_or(Ok(Value::Nil))
    }

    /// Everything carried out before, on any master, is as sure as [`Assurance::ack`] asks for.
    pub async fn confirm_all(&self, operation: &'static str) -> StoreResult<()> {
        if self.assurance.ack == Ack::Applied {
            return Ok(());
        }
        let masters = self.masters();
        let asked = masters.iter().map(|node| async move {
            self.admit(operation, node)?;
            let confirmed = self.watched(node, self.send_confirmed(node, Pipeline::new())).await;
            let confirmed = confirmed.map_err(|error| errors::failed(operation, &name(node), &error))?;
            confirmed.shortfall.map_or(Ok(()), |what| Err(not_durable(operation, node, &what)))
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Answer of one command.
    pub async fn one(&self, operation: &'static str, call: Call) -> StoreResult<Value> {
        self.run_each(operation, vec![call]).await.pop().unwrap_or(Ok(Value::Nil))
    }

    fn owner(&self, slot: u16) -> Node {
        self.topology.read().owner(slot).cloned().unwrap_or_else(|| self.address.seeds[0].clone())
    }

    /// Refuses a call to a node that does not answer.
    pub(super) fn admit(&self, operation: &'static str, node: &Node) -> StoreResult<()> {
        if self.breaker.all_well() {
            return Ok(());
        }
        let node = name(node);
        match self.breaker.refusal(&node, Instant::now()) {
            None => Ok(()),
            Some(why) => Err(StoreError::Unreachable { operation, message: format!("redis {node}: {why}") }),
        }
    }

    /// A call to a node has ended: one without an answer makes us doubt the node; an error that the node itself gave is an
    /// answer.
    fn note(&self, node: &Node, error: Option<&RedisError>) {
        match error {
            Some(error) if errors::remedy(error) == Remedy::Reconnect => self.doubt(node),
            _ if self.breaker.all_well() => {}
            _ => self.breaker.well(&name(node)),
        }
    }

    /// Why no node can be asked now, or which one refuses our functions; `None` while all is well.
    pub fn trouble(&self) -> Option<String> {
        let nodes: Vec<String> = self.masters().iter().map(name).collect();
        let away = self.breaker.all_open(&nodes).map(|why| match &self.sentinels {
            Some(sentinels) => format!("{why}; {}", sentinels.words()),
            None => why,
        });
        away.or_else(|| self.refusals.of_any(&nodes))
    }

    /// What is promised.
    pub fn assurance(&self) -> &Assurance {
        &self.assurance
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn response_timeout(&self) -> Duration {
        self.timeouts.response
    }

    pub(super) fn topology(&self) -> Arc<Topology> {
        self.topology.read().clone()
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// What is under way on a node.
    pub(super) fn pace_of(&self, node: &Node) -> Arc<pace::NodePace> {
        self.pace.of(node)
    }

    pub(super) fn reads(&self) -> &ReadConnections {
        &self.reads
    }

    /// The next call to the node opens other connections: these broke, or lead to who is no master any more.
    pub(super) fn forget_connections(&self, node: &Node) {
        self.connections.forget(node);
        self.reads.forget(node);
    }

    pub(super) fn sentinels(&self) -> Option<&Sentinels> {
        self.sentinels.as_ref()
    }

    pub(super) fn breaker(&self) -> &Breaker<String> {
        &self.breaker
    }

    pub(super) fn durable(&self) -> &Durable {
        &self.durable
    }

    pub(super) fn myself(&self) -> Weak<Link> {
        self.myself.clone()
    }
}

fn not_durable(operation: &'static str, node: &Node, what: &str) -> StoreError {
    StoreError::NotDurable { operation, message: format!("redis {}: {what}", name(node)) }
}

/// `host:port`.
pub fn name(node: &Node) -> String {
    format!("{}:{}", node.0, node.1)
}

/// Tries of one batch: pauses of 25 ms to 1 s, and how many rounds there were.
struct Tries {
    backoff: Backoff,
    rounds: u32,
}

impl Tries {
    fn new() -> Tries {
        Tries { backoff: Backoff::new(Duration::from_millis(25), Duration::from_secs(1)), rounds: 0 }
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.backoff.pause()).await;
        self.rounds += 1;
    }
}
