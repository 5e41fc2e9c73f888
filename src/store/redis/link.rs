//! Connections to Redis and the way of a batch of commands over them.
//!
//! In: commands with the slot of their keys. Out: their answers in order. Callers: the other files of this folder.
//!
//! Each node has one multiplexed connection. A batch is cut by node, and each node's part goes out in pieces ([`super::pace`]), to
//! all nodes at once. What meets a lost connection, a moved slot or a loading node is sent again, a bounded
//! number of times with jitter. That needs every command to be idempotent, and they are.
//!
//! A batch goes one of three ways ([`Way`]): with timeouts; as a serving read, whose time is over soon; or confirmed by replicas
//! or the disk, over connections of its own (`durable`).

mod loading;
mod reading;
mod sending;
mod slots;

pub use reading::HashReads;

use super::address::{Address, Node};
use super::assurance::{Ack, Assurance};
use super::breaker::Breaker;
use super::call::Call;
use super::connections::Connections;
use super::durable::{Confirmed, Durable};
use super::errors::{self, Remedy};
use super::functions::Refusals;
use super::pace::{self, Pace};
use super::reads::ReadConnections;
use super::sentinels::Sentinels;
use super::topology::Topology;
use super::values;
use super::watch;
use super::{RedisOptions, SCAN_STEP};
use crate::backoff::Backoff;
use crate::store::{StoreError, StoreResult};
use futures::future::join_all;
use parking_lot::RwLock;
use redis::{Cmd, Pipeline, RedisError, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

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

/// How a batch goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As often as [`Timeouts`] says.
    Patient,
    /// The same until this moment; what has no answer by then fails alone.
    Until(tokio::time::Instant),
    /// As [`Way::Patient`], and an answer counts only when replicas or the disk have what was written.
    Confirmed,
}

/// Where a command goes in this round: the node, and whether `ASKING` goes before.
type Route = (Node, bool);

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
        self.go(operation, calls, Way::Patient).await
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
        let way = if self.assurance.ack == Ack::Applied { Way::Patient } else { Way::Confirmed };
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

    async fn go(&self, operation: &'static str, calls: Vec<Call>, way: Way) -> Vec<StoreResult<Value>> {
        let mut answers: Vec<StoreResult<Value>> = calls.iter().map(|_| Ok(Value::Nil)).collect();
        let mut open: Vec<(usize, Option<Route>)> = (0..calls.len()).map(|index| (index, None)).collect();
        let (mut pause, mut has_loaded) = (Tries::new(), false);
        while !open.is_empty() {
            let mut by_node: BTreeMap<Route, Vec<usize>> = BTreeMap::new();
            for (index, place) in open.drain(..) {
                let place = place.unwrap_or_else(|| (self.owner(calls[index].slot), false));
                by_node.entry(place).or_default().push(index);
            }
            let mut trouble = Trouble::default();
            let refused = self.admit_each(operation, &mut by_node, &mut answers);
            // Who began before the node went away keeps to its tries; who comes later, and who cannot wait, is told at once.
            if pause.rounds > 0 && !matches!(way, Way::Until(_)) && !refused.is_empty() {
                open.extend(refused.into_iter().map(|index| (index, None)));
                trouble.note(true, false);
            }
            let sent = by_node.into_iter().map(|(place, indices)| self.send(operation, place, indices, &calls, way));
            for sent in join_all(sent).await.into_iter().flatten() {
                self.note(&sent.node, sent.outcome.as_ref().err());
                self.note_functions(&sent, &calls);
                self.sort_out(sent, &calls, &mut answers, &mut open, &mut trouble);
            }
            let lacking = std::mem::take(&mut trouble.lacking);
            let loaded = self.load_where_lacking(operation, lacking, &mut answers, &mut open, &mut trouble).await;
            // Functions that were gone cost no try, once.
            if loaded && !std::mem::replace(&mut has_loaded, true) {
                continue;
            }
            if open.is_empty()
                || pause.rounds >= self.timeouts.retries
                || !self.make_ready(&mut pause, trouble, way).await
            {
                break;
            }
        }
        answers
    }

    /// What a batch needs before its next round; false when its time is over.
    async fn make_ready(&self, pause: &mut Tries, trouble: Trouble, way: Way) -> bool {
        let ready = async {
            if trouble.wait {
                pause.wait().await;
            } else {
                pause.rounds += 1;
            }
            if trouble.remap && self.may_move() {
                // A map that cannot be read now leaves the old one; the next round shows whether it will do.
                let _ = self.remap("remap").await;
            }
        };
        match way {
            Way::Until(deadline) => timeout_at(deadline, ready).await.is_ok(),
            Way::Patient | Way::Confirmed => {
                ready.await;
                true
            }
        }
    }

    /// Answer of one command.
    pub async fn one(&self, operation: &'static str, call: Call) -> StoreResult<Value> {
        self.run_each(operation, vec![call]).await.pop().unwrap_or(Ok(Value::Nil))
    }

    /// Answer of one command on every master, in the order of [`Link::masters`].
    pub async fn everywhere(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<Vec<Value>> {
        Ok(self.ask_masters(operation, cmd).await?.1)
    }

    /// Answers of all masters, and the map that says who they are. When one is gone the map is read again.
    async fn ask_masters(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<(Arc<Topology>, Vec<Value>)> {
        let mut pause = Tries::new();
        loop {
            let topology = self.topology.read().clone();
            let is_last = pause.rounds >= self.timeouts.retries;
            let masters = topology.masters.clone().into_iter();
            let is_first = pause.rounds == 0;
            let asked = masters.map(|node| async move { self.ask(operation, &node, cmd, is_first, is_last).await });
            let answers: Result<Vec<Value>, Refusal> = join_all(asked).await.into_iter().collect();
            let refusal = match answers {
                Ok(answers) => return Ok((topology, answers)),
                Err(refusal) => refusal,
            };
            if refusal.is_final {
                return Err(refusal.error);
            }
            pause.wait().await;
            if self.may_move() {
                // As in `run`: the next round shows whether the map will do.
                let _ = self.remap(operation).await;
            }
        }
    }

    /// Answer of one command on one node.
    pub async fn on(&self, operation: &'static str, node: &Node, cmd: &Cmd) -> StoreResult<Value> {
        let _under_way = self.pace.enter(node, pace::STEP).await;
        let mut pause = Tries::new();
        loop {
            let (is_first, is_last) = (pause.rounds == 0, pause.rounds >= self.timeouts.retries);
            match self.ask(operation, node, cmd, is_first, is_last).await {
                Ok(value) => return Ok(value),
                Err(refusal) if refusal.is_final => return Err(refusal.error),
                Err(_) => pause.wait().await,
            }
        }
    }

    /// One try at one command on one node; where that node lacks our functions, a second one after they were loaded.
    async fn ask(
        &self,
        operation: &'static str,
        node: &Node,
        cmd: &Cmd,
        is_first: bool,
        is_last: bool,
    ) -> Result<Value, Refusal> {
        self.admit(operation, node).map_err(|error| Refusal { error, is_final: is_first || is_last })?;
        let mut answer = self.ask_once(node, cmd).await;
        if answer.as_ref().is_err_and(|error| errors::remedy(error) == Remedy::LoadFunctions) {
            self.load_functions(operation, node)
                .await
                .map_err(|refusal| Refusal { is_final: is_last || refusal.is_final, ..refusal })?;
            answer = self.ask_once(node, cmd).await;
        }
        let error = match answer {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let remedy = errors::remedy(&error);
        if remedy == Remedy::Reconnect {
            self.forget_connections(node);
        }
        let is_final = is_last || remedy == Remedy::GiveUp;
        Err(Refusal { error: errors::failed(operation, &name(node), &error), is_final })
    }

    async fn ask_once(&self, node: &Node, cmd: &Cmd) -> Result<Value, RedisError> {
        let call = async {
            let mut connection = self.connections.shared(node).await?;
            connection.send_packed_command(cmd).await.and_then(Value::extract_error)
        };
        let answer = self.watched(node, call).await;
        self.note(node, answer.as_ref().err());
        answer
    }

    fn owner(&self, slot: u16) -> Node {
        self.topology.read().owner(slot).cloned().unwrap_or_else(|| self.address.seeds[0].clone())
    }

    /// Files answers, and notes what must be sent again; until then its error stands in its place.
    fn sort_out(
        &self,
        sent: Sent,
        calls: &[Call],
        answers: &mut [StoreResult<Value>],
        open: &mut Vec<(usize, Option<Route>)>,
        trouble: &mut Trouble,
    ) {
        let Sent { operation, node, indices, outcome, is_late } = sent;
        let Confirmed { answers: values, shortfall } = match outcome {
            Ok(confirmed) => confirmed,
            Err(error) => {
                let failed = errors::failed(operation, &name(&node), &error);
                for index in &indices {
                    answers[*index] = Err(failed.clone());
                }
                // What is slow may come yet: nothing is wrong with the connection.
                if !is_late && errors::remedy(&error) != Remedy::GiveUp {
                    self.forget_connections(&node);
                    open.extend(indices.into_iter().map(|index| (index, None)));
                    trouble.note(true, true);
                }
                return;
            }
        };
        for (index, value) in indices.into_iter().zip(values) {
            let error = match value.extract_error() {
                Ok(value) => {
                    answers[index] = match &shortfall {
                        None => Ok(value),
                        Some(what) => Err(not_durable(operation, &node, what)),
                    };
                    continue;
                }
                Err(error) => error,
            };
            answers[index] = Err(calls[index].named(errors::failed(operation, &name(&node), &error)));
            match errors::remedy(&error) {
                Remedy::Remap => trouble.note(false, true),
                Remedy::Wait | Remedy::Reconnect => trouble.note(true, true),
                Remedy::LoadFunctions => {
                    trouble.lacking.entry(node.clone()).or_default().push(index);
                    continue;
                }
                Remedy::Ask(host, port) => {
                    trouble.note(false, false);
                    open.push((index, Some(((host, port), true))));
                    continue;
                }
                // A master that was taken over: the map or the sentinels name the new one, else its name may lead there now.
                Remedy::GiveUp if errors::is_replaced(&error) => {
                    self.forget_connections(&node);
                    trouble.note(true, true);
                }
                Remedy::GiveUp => continue,
            }
            open.push((index, None));
        }
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

    /// Takes out what goes to nodes that do not answer, while the others' part goes out; returns which commands those were.
    fn admit_each(
        &self,
        operation: &'static str,
        by_node: &mut BTreeMap<Route, Vec<usize>>,
        answers: &mut [StoreResult<Value>],
    ) -> Vec<usize> {
        let mut taken_out = Vec::new();
        if self.breaker.all_well() {
            return taken_out;
        }
        by_node.retain(|(node, _), indices| {
            let Err(refused) = self.admit(operation, node) else { return true };
            for index in indices.iter() {
                answers[*index] = Err(refused.clone());
            }
            taken_out.append(indices);
            false
        });
        taken_out
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

    /// The keys of every master that match, once each.
    pub async fn scan(&self, operation: &'static str, pattern: &str) -> StoreResult<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for node in self.masters() {
            let mut cursor = "0".to_string();
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_STEP);
                let answer = self.on(operation, &node, &scan).await?;
                let (next, keys): (String, Vec<Vec<u8>>) = values::read("scan", answer)?;
                found.extend(keys.into_iter().filter_map(|key| String::from_utf8(key).ok()));
                if next == "0" {
                    break;
                }
                cursor = next;
            }
        }
        Ok(found)
    }
}

fn not_durable(operation: &'static str, node: &Node, what: &str) -> StoreError {
    StoreError::NotDurable { operation, message: format!("redis {}: {what}", name(node)) }
}

/// `host:port`.
pub fn name(node: &Node) -> String {
    format!("{}:{}", node.0, node.1)
}

/// Why a try failed, and whether another one is worth it.
pub struct Refusal {
    pub(super) error: StoreError,
    is_final: bool,
}

/// What one pipeline of a batch came back with.
struct Sent {
    operation: &'static str,
    node: Node,
    /// Of the commands in the batch.
    indices: Vec<usize>,
    /// One answer a command, or why there is none.
    outcome: Result<Confirmed, RedisError>,
    /// There is none because the time of a read was over.
    is_late: bool,
}

/// What the next round of a batch needs first.
#[derive(Default)]
struct Trouble {
    wait: bool,
    remap: bool,
    /// Commands that met a node without our functions.
    lacking: BTreeMap<Node, Vec<usize>>,
}

impl Trouble {
    fn note(&mut self, wait: bool, remap: bool) {
        self.wait |= wait;
        self.remap |= remap;
    }
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
