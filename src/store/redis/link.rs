//! Connections to Redis and the way of a batch of commands over them.
//!
//! In: commands with the slot of their keys. Out: their answers in order. Callers: the other files of this folder.
//!
//! Each node has one multiplexed connection. A batch is cut by node and goes out as one pipeline a node, all at once; on a
//! single Redis that is one pipeline. What meets a lost connection, a moved slot or a loading node is sent again, a bounded
//! number of times with jitter. That needs every command to be idempotent, and they are.

use super::address::{Address, Node};
use super::breaker::Breaker;
use super::errors::{self, Remedy};
use super::keys::slot_of;
use super::topology::{self, Claim, Lineages, Topology};
use super::values;
use crate::backoff::Backoff;
use crate::store::{StoreError, StoreResult};
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisError, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limits of waiting.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection to stand.
    pub connect: Duration,
    /// For the answers to one pipeline.
    pub response: Duration,
    /// Tries beyond the first.
    pub retries: u32,
}

/// For one node's view of the slots: the others' need not wait long for a node that is gone.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// One command and the slot of its keys.
pub struct Call {
    slot: u16,
    cmd: Cmd,
}

impl Call {
    /// A plain command on one key; further arguments follow with [`Call::arg`].
    pub fn new(name: &str, key: &str) -> Call {
        let mut cmd = redis::cmd(name);
        cmd.arg(key);
        Call { slot: slot_of(key), cmd }
    }

    /// A function call on keys of one slot.
    pub fn function(name: &str, keys: &[String]) -> Call {
        let mut cmd = redis::cmd("FCALL");
        cmd.arg(name).arg(keys.len()).arg(keys);
        Call { slot: keys.first().map_or(0, |key| slot_of(key)), cmd }
    }

    /// A command without a key, beside those on `key`.
    pub fn beside(name: &str, key: &str) -> Call {
        Call { slot: slot_of(key), cmd: redis::cmd(name) }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl redis::ToRedisArgs) -> Call {
        self.cmd.arg(argument);
        self
    }

    /// The error with the command's (first) key, where it is about what stands under it.
    fn named(&self, error: StoreError) -> StoreError {
        let StoreError::Corrupt { message, .. } = error else { return error };
        let mut arguments = self.cmd.args_iter();
        let place = if matches!(arguments.next(), Some(redis::Arg::Simple(b"FCALL"))) { 2 } else { 0 };
        let key = match arguments.nth(place) {
            Some(redis::Arg::Simple(key)) => String::from_utf8_lossy(key).into_owned(),
            _ => String::new(),
        };
        StoreError::Corrupt { key, message }
    }
}

/// All connections of one store.
pub struct Link {
    address: Address,
    patience: Patience,
    topology: RwLock<Arc<Topology>>,
    connections: Mutex<HashMap<Node, MultiplexedConnection>>,
    breaker: Breaker<String>,
}

/// Where a command goes in this round: the node, and whether `ASKING` goes before.
type Place = (Node, bool);

impl Link {
    /// Connects and, on a cluster, reads the slot map.
    pub async fn open(address: Address, patience: Patience) -> StoreResult<Link> {
        let link = Link {
            address,
            patience,
            topology: Default::default(),
            connections: Default::default(),
            breaker: Breaker::default(),
        };
        let mut pause = Tries::new();
        loop {
            match link.remap().await {
                Ok(()) => return Ok(link),
                Err((node, error)) if pause.rounds >= patience.retries || errors::remedy(&error) == Remedy::GiveUp => {
                    return Err(errors::failed("open", &node, &error));
                }
                Err(_) => pause.wait().await,
            }
        }
    }

    /// For messages.
    pub fn printable(&self) -> String {
        self.address.printable()
    }

    /// Whether keys of different slots need calls of their own.
    pub fn is_cluster(&self) -> bool {
        self.address.cluster
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
        let mut answers: Vec<StoreResult<Value>> = calls.iter().map(|_| Ok(Value::Nil)).collect();
        let mut open: Vec<(usize, Option<Place>)> = (0..calls.len()).map(|index| (index, None)).collect();
        let mut pause = Tries::new();
        while !open.is_empty() {
            let mut by_node: BTreeMap<Place, Vec<usize>> = BTreeMap::new();
            for (index, place) in open.drain(..) {
                let place = place.unwrap_or_else(|| (self.owner(calls[index].slot), false));
                by_node.entry(place).or_default().push(index);
            }
            self.admit_each(operation, &mut by_node, &mut answers);
            let sent = by_node.into_iter().map(|(place, indices)| self.send(place, indices, &calls));
            let mut trouble = Trouble::default();
            let is_last = pause.rounds >= self.patience.retries;
            for (place, indices, outcome) in join_all(sent).await {
                self.note(&place.0, outcome.as_ref().err(), is_last);
                let sent = Sent { operation, node: place.0, indices, outcome };
                self.sort_out(sent, &calls, &mut answers, &mut open, &mut trouble);
            }
            if open.is_empty() || is_last {
                break;
            }
            if trouble.wait {
                pause.wait().await;
            } else {
                pause.rounds += 1;
            }
            if trouble.remap && self.address.cluster {
                // A map that cannot be read now leaves the old one; the next round shows whether it will do.
                let _ = self.remap().await;
            }
        }
        answers
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
            let is_last = pause.rounds >= self.patience.retries;
            let masters = topology.masters.clone().into_iter();
            let asked = masters.map(|node| async move { self.ask(operation, &node, cmd, is_last).await });
            let answers: Result<Vec<Value>, Refusal> = join_all(asked).await.into_iter().collect();
            let refusal = match answers {
                Ok(answers) => return Ok((topology, answers)),
                Err(refusal) => refusal,
            };
            if refusal.is_final {
                return Err(refusal.error);
            }
            pause.wait().await;
            if self.address.cluster {
                // As in `run`: the next round shows whether the map will do.
                let _ = self.remap().await;
            }
        }
    }

    /// Answer of one command on one node.
    pub async fn on(&self, operation: &'static str, node: &Node, cmd: &Cmd) -> StoreResult<Value> {
        let mut pause = Tries::new();
        loop {
            match self.ask(operation, node, cmd, pause.rounds >= self.patience.retries).await {
                Ok(value) => return Ok(value),
                Err(refusal) if refusal.is_final => return Err(refusal.error),
                Err(_) => pause.wait().await,
            }
        }
    }

    /// One try at one command on one node.
    async fn ask(&self, operation: &'static str, node: &Node, cmd: &Cmd, is_last: bool) -> Result<Value, Refusal> {
        self.admit(operation, [node]).map_err(|error| Refusal { error, is_final: true })?;
        let answer = match self.connection(node).await {
            Ok(mut connection) => connection.send_packed_command(cmd).await.and_then(Value::extract_error),
            Err(error) => Err(error),
        };
        self.note(node, answer.as_ref().err(), is_last);
        let error = match answer {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let remedy = errors::remedy(&error);
        if remedy == Remedy::Reconnect {
            self.forget(node);
        }
        let is_final = is_last || remedy == Remedy::GiveUp;
        Err(Refusal { error: errors::failed(operation, &name(node), &error), is_final })
    }

    fn owner(&self, slot: u16) -> Node {
        self.topology.read().owner(slot).cloned().unwrap_or_else(|| self.address.seeds[0].clone())
    }

    async fn send(
        &self,
        place: Place,
        indices: Vec<usize>,
        calls: &[Call],
    ) -> (Place, Vec<usize>, Result<Vec<Value>, RedisError>) {
        let (node, asking) = &place;
        let mut pipeline = Pipeline::new();
        for index in &indices {
            if *asking {
                pipeline.add_command(redis::cmd("ASKING"));
            }
            pipeline.add_command(calls[*index].cmd.clone());
        }
        let outcome = match self.connection(node).await {
            Ok(mut connection) => connection.send_packed_commands(&pipeline, 0, pipeline.len()).await,
            Err(error) => Err(error),
        };
        // Of each pair only the command's own answer counts.
        let step = if *asking { 2 } else { 1 };
        let outcome = outcome.map(|values| values.into_iter().skip(step - 1).step_by(step).collect());
        (place, indices, outcome)
    }

    /// Files answers, and notes what must be sent again; until then its error stands in its place.
    fn sort_out(
        &self,
        sent: Sent,
        calls: &[Call],
        answers: &mut [StoreResult<Value>],
        open: &mut Vec<(usize, Option<Place>)>,
        trouble: &mut Trouble,
    ) {
        let Sent { operation, node, indices, outcome } = sent;
        let values = match outcome {
            Ok(values) => values,
            Err(error) => {
                let failed = errors::failed(operation, &name(&node), &error);
                for index in &indices {
                    answers[*index] = Err(failed.clone());
                }
                if errors::remedy(&error) != Remedy::GiveUp {
                    self.forget(&node);
                    open.extend(indices.into_iter().map(|index| (index, None)));
                    trouble.note(true, true);
                }
                return;
            }
        };
        for (index, value) in indices.into_iter().zip(values) {
            let error = match value.extract_error() {
                Ok(value) => {
                    answers[index] = Ok(value);
                    continue;
                }
                Err(error) => error,
            };
            answers[index] = Err(calls[index].named(errors::failed(operation, &name(&node), &error)));
            match errors::remedy(&error) {
                Remedy::Remap => trouble.note(false, true),
                Remedy::Wait | Remedy::Reconnect => trouble.note(true, true),
                Remedy::Ask(host, port) => {
                    trouble.note(false, false);
                    open.push((index, Some(((host, port), true))));
                    continue;
                }
                // A master that was taken over: on a cluster the map names the new one, else its name may lead there now.
                Remedy::GiveUp if error.code() == Some("READONLY") => {
                    self.forget(&node);
                    trouble.note(true, true);
                }
                Remedy::GiveUp => continue,
            }
            open.push((index, None));
        }
    }

    async fn connection(&self, node: &Node) -> Result<MultiplexedConnection, RedisError> {
        if let Some(connection) = self.connections.lock().get(node) {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.patience.connect))
            .set_response_timeout(Some(self.patience.response));
        let connection = self.address.client(node)?.get_multiplexed_async_connection_with_config(&config).await?;
        self.connections.lock().insert(node.clone(), connection.clone());
        Ok(connection)
    }

    /// Refuses a call or a batch that goes to a node which has not answered lately.
    fn admit<'a>(&self, operation: &'static str, nodes: impl IntoIterator<Item = &'a Node>) -> StoreResult<()> {
        if self.breaker.all_well() {
            return Ok(());
        }
        let nodes: Vec<String> = nodes.into_iter().map(name).collect();
        let admitted = self.breaker.admit(&nodes, Instant::now());
        admitted.map_err(|(node, why)| StoreError::Unreachable { operation, message: format!("redis {node}: {why}") })
    }

    /// Takes out what goes to a node which has not answered lately: refused at once, while the others' part goes out.
    fn admit_each(
        &self,
        operation: &'static str,
        by_node: &mut BTreeMap<Place, Vec<usize>>,
        answers: &mut [StoreResult<Value>],
    ) {
        if self.breaker.all_well() {
            return;
        }
        let mut admitted: BTreeMap<Node, StoreResult<()>> = BTreeMap::new();
        by_node.retain(|(node, _), indices| {
            // A batch is one try at a node, however many parts of it go there.
            let known = admitted.entry(node.clone()).or_insert_with(|| self.admit(operation, [node]));
            let Err(refused) = known else { return true };
            for index in indices {
                answers[*index] = Err(refused.clone());
            }
            false
        });
    }

    /// Tells the breaker how a call to a node ended; an error that the node itself answered is an answer.
    fn note(&self, node: &Node, error: Option<&RedisError>, is_last: bool) {
        match error {
            Some(error) if errors::remedy(error) == Remedy::Reconnect => {
                self.breaker.failed(&name(node), is_last, &error.to_string(), Instant::now());
            }
            _ if self.breaker.all_well() => {}
            _ => self.breaker.well(&name(node)),
        }
    }

    /// Why no node can be asked now; `None` while one can.
    pub fn trouble(&self) -> Option<String> {
        let nodes: Vec<String> = self.masters().iter().map(name).collect();
        self.breaker.all_open(&nodes)
    }

    fn forget(&self, node: &Node) {
        self.connections.lock().remove(node);
    }

    /// Reads the slot map from all nodes that answer. (A master that was cut off would give an old one.)
    async fn remap(&self) -> Result<(), (String, RedisError)> {
        let mut nodes = self.topology.read().nodes.clone();
        nodes.extend(self.address.seeds.iter().filter(|seed| !nodes.contains(seed)).cloned().collect::<Vec<_>>());
        if !self.address.cluster {
            nodes.truncate(1);
        }
        let asked = nodes.clone().into_iter().map(|node| async move { (self.look(&node).await, node) });
        let looks = join_all(asked).await;
        let mut claims = Vec::new();
        let mut last = None;
        for (answer, node) in looks {
            match answer {
                Ok(found) => claims.extend(found),
                Err(error) => {
                    if errors::remedy(&error) == Remedy::Reconnect {
                        self.forget(&node);
                    }
                    last = Some((name(&node), error));
                }
            }
        }
        let single = || nodes.first().filter(|_| !self.address.cluster && last.is_none()).map(Topology::single);
        let Some(topology) = single().or_else(|| Topology::of_claims(claims)) else {
            let unassigned = || RedisError::from((redis::ErrorKind::Io, "the cluster has no slots assigned yet"));
            return Err(last.unwrap_or_else(|| (self.printable(), unassigned())));
        };
        *self.topology.write() = Arc::new(topology);
        Ok(())
    }

    /// What one node says of the slots; of a single Redis only whether it answers.
    async fn look(&self, node: &Node) -> Result<Vec<Claim>, RedisError> {
        if !self.address.cluster {
            let mut connection = self.connection(node).await?;
            redis::cmd("PING").exec_async(&mut connection).await?;
            return Ok(Vec::new());
        }
        let ask = async {
            let mut connection = self.connection(node).await?;
            let mut both = redis::pipe();
            both.cmd("CLUSTER").arg("SLOTS").cmd("CLUSTER").arg("NODES");
            let (slots, nodes): (Value, String) = both.query_async(&mut connection).await?;
            topology::claims(node, slots, &nodes)
        };
        let timed = tokio::time::timeout(LOOK_PATIENCE, ask).await;
        timed.unwrap_or_else(|_| Err(RedisError::from((redis::ErrorKind::Io, "no answer to CLUSTER SLOTS in time"))))
    }

    /// Looks who owns what now, and asks every owner for its lineage.
    pub async fn look_again(&self, operation: &'static str) -> StoreResult<Lineages> {
        if self.address.cluster {
            self.remap().await.map_err(|(node, error)| errors::failed(operation, &node, &error))?;
        }
        self.lineages(operation).await
    }

    /// The lineage of every owner as known.
    pub async fn lineages(&self, operation: &'static str) -> StoreResult<Lineages> {
        let mut info = redis::cmd("INFO");
        info.arg("replication");
        let (topology, answers) = self.ask_masters(operation, &info).await?;
        let mut by_master = Vec::with_capacity(answers.len());
        for (node, answer) in topology.masters.iter().zip(answers) {
            let text: String = values::read("info", answer)?;
            by_master.push(topology::lineage(&text).ok_or_else(|| StoreError::Engine {
                operation,
                message: format!("redis {}: INFO replication has no master_replid", name(node)),
            })?);
        }
        Ok(Lineages { topology, by_master })
    }
}

/// `host:port`.
pub fn name(node: &Node) -> String {
    format!("{}:{}", node.0, node.1)
}

/// Why a try failed, and whether another one is worth it.
struct Refusal {
    error: StoreError,
    is_final: bool,
}

/// What one pipeline of a batch came back with.
struct Sent {
    operation: &'static str,
    node: Node,
    /// Of the commands in the batch.
    indices: Vec<usize>,
    /// One answer a command, or why there is none.
    outcome: Result<Vec<Value>, RedisError>,
}

/// What the next round of a batch needs first.
#[derive(Default)]
struct Trouble {
    wait: bool,
    remap: bool,
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
