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
use super::keys::{SLOTS, slot_of};
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
}

/// Who owns which slot; of a single Redis one node owns all.
#[derive(Debug, Default)]
struct Topology {
    masters: Vec<Node>,
    /// Index into `masters` by slot.
    owners: Vec<u16>,
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

    /// The masters now.
    pub fn masters(&self) -> Vec<Node> {
        self.topology.read().masters.clone()
    }

    /// Answers of the commands, in their order. The first error that repeating does not cure ends the batch; other commands
    /// of it may have been carried out.
    pub async fn run(&self, operation: &'static str, calls: Vec<Call>) -> StoreResult<Vec<Value>> {
        let mut answers: Vec<Option<Value>> = calls.iter().map(|_| None).collect();
        let mut open: Vec<(usize, Option<Place>)> = (0..calls.len()).map(|index| (index, None)).collect();
        let mut pause = Tries::new();
        while !open.is_empty() {
            let mut by_node: BTreeMap<Place, Vec<usize>> = BTreeMap::new();
            for (index, place) in open.drain(..) {
                let place = place.unwrap_or_else(|| (self.owner(calls[index].slot), false));
                self.admit(operation, &place.0)?;
                by_node.entry(place).or_default().push(index);
            }
            let sent = by_node.into_iter().map(|(place, indices)| self.send(place, indices, &calls));
            let mut trouble = Trouble::default();
            let is_last = pause.rounds >= self.patience.retries;
            for (place, indices, outcome) in join_all(sent).await {
                self.note(&place.0, outcome.as_ref().err(), is_last);
                self.sort_out(operation, place, indices, outcome, &mut answers, &mut open, &mut trouble)?;
            }
            let Some(error) = trouble.worst else { continue };
            if is_last {
                return Err(error);
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
        Ok(answers.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Answer of one command.
    pub async fn one(&self, operation: &'static str, call: Call) -> StoreResult<Value> {
        Ok(self.run(operation, vec![call]).await?.pop().unwrap_or_default())
    }

    /// Answer of one command on every master, in the order of [`Link::masters`].
    pub async fn everywhere(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<Vec<Value>> {
        join_all(self.masters().into_iter().map(|node| async move { self.on(operation, &node, cmd).await }))
            .await
            .into_iter()
            .collect()
    }

    /// Answer of one command on one node.
    pub async fn on(&self, operation: &'static str, node: &Node, cmd: &Cmd) -> StoreResult<Value> {
        let mut pause = Tries::new();
        loop {
            self.admit(operation, node)?;
            let answer = match self.connection(node).await {
                Ok(mut connection) => connection.send_packed_command(cmd).await.and_then(Value::extract_error),
                Err(error) => Err(error),
            };
            self.note(node, answer.as_ref().err(), pause.rounds >= self.patience.retries);
            let error = match answer {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let remedy = errors::remedy(&error);
            if remedy == Remedy::GiveUp || pause.rounds >= self.patience.retries {
                return Err(errors::failed(operation, &name(node), &error));
            }
            if remedy == Remedy::Reconnect {
                self.forget(node);
            }
            pause.wait().await;
        }
    }

    fn owner(&self, slot: u16) -> Node {
        let topology = self.topology.read();
        let index = topology.owners.get(usize::from(slot)).map_or(0, |index| usize::from(*index));
        topology.masters.get(index).cloned().unwrap_or_else(|| self.address.seeds[0].clone())
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

    /// Files answers and puts aside what must be sent again.
    #[allow(clippy::too_many_arguments)]
    fn sort_out(
        &self,
        operation: &'static str,
        (node, _): Place,
        indices: Vec<usize>,
        outcome: Result<Vec<Value>, RedisError>,
        answers: &mut [Option<Value>],
        open: &mut Vec<(usize, Option<Place>)>,
        trouble: &mut Trouble,
    ) -> StoreResult<()> {
        let values = match outcome {
            Ok(values) => values,
            Err(error) => {
                let failed = errors::failed(operation, &name(&node), &error);
                if errors::remedy(&error) == Remedy::GiveUp {
                    return Err(failed);
                }
                self.forget(&node);
                open.extend(indices.into_iter().map(|index| (index, None)));
                trouble.note(failed, true, true);
                return Ok(());
            }
        };
        for (index, value) in indices.into_iter().zip(values) {
            let error = match value.extract_error() {
                Ok(value) => {
                    answers[index] = Some(value);
                    continue;
                }
                Err(error) => error,
            };
            let failed = errors::failed(operation, &name(&node), &error);
            match errors::remedy(&error) {
                Remedy::Remap => trouble.note(failed, false, true),
                Remedy::Wait | Remedy::Reconnect => trouble.note(failed, true, true),
                Remedy::Ask(host, port) => {
                    trouble.note(failed, false, false);
                    open.push((index, Some(((host, port), true))));
                    continue;
                }
                // A failed-over master answers so until the map is read again.
                Remedy::GiveUp if self.address.cluster && error.code() == Some("READONLY") => {
                    trouble.note(failed, true, true);
                }
                Remedy::GiveUp => return Err(failed),
            }
            open.push((index, None));
        }
        Ok(())
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

    /// Refuses a call to a node that has not answered lately.
    fn admit(&self, operation: &'static str, node: &Node) -> StoreResult<()> {
        let admitted = self.breaker.admit(&name(node), Instant::now());
        admitted.map_err(|why| StoreError::Unreachable { operation, message: format!("redis {}: {why}", name(node)) })
    }

    /// Tells the breaker how a call to a node ended; an error that the node itself answered is an answer.
    fn note(&self, node: &Node, error: Option<&RedisError>, is_last: bool) {
        match error {
            Some(error) if errors::remedy(error) == Remedy::Reconnect => {
                self.breaker.failed(&name(node), is_last, &error.to_string(), Instant::now());
            }
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

    /// Reads the slot map from the first node that answers.
    async fn remap(&self) -> Result<(), (String, RedisError)> {
        let mut candidates = self.masters();
        candidates.extend(self.address.seeds.iter().cloned());
        let mut last = None;
        for node in candidates {
            match self.read_map(&node).await {
                Ok(topology) => {
                    *self.topology.write() = Arc::new(topology);
                    return Ok(());
                }
                Err(error) => {
                    if errors::remedy(&error) == Remedy::Reconnect {
                        self.forget(&node);
                    }
                    last = Some((name(&node), error));
                }
            }
        }
        // There is always a seed, so there is always a last error.
        Err(last.unwrap_or_else(|| (self.printable(), RedisError::from((redis::ErrorKind::Client, "no node")))))
    }

    async fn read_map(&self, node: &Node) -> Result<Topology, RedisError> {
        let mut connection = self.connection(node).await?;
        if !self.address.cluster {
            redis::cmd("PING").exec_async(&mut connection).await?;
            return Ok(Topology { masters: vec![node.clone()], owners: Vec::new() });
        }
        let ranges: Vec<Vec<Value>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
        let mut topology = Topology { masters: Vec::new(), owners: vec![0; usize::from(SLOTS)] };
        for range in ranges {
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = range.as_slice() else { continue };
            let host: Option<String> = redis::from_redis_value(master.first().cloned().unwrap_or_default())?;
            let port: u16 = redis::from_redis_value(master.get(1).cloned().unwrap_or_default())?;
            // A node that does not know its own name means the one we asked.
            let owner = (host.filter(|host| !host.is_empty()).unwrap_or_else(|| node.0.clone()), port);
            let index = topology.masters.iter().position(|known| *known == owner).unwrap_or_else(|| {
                topology.masters.push(owner);
                topology.masters.len() - 1
            });
            let span = (*first).clamp(0, i64::from(SLOTS)) as usize..=(*last).clamp(0, i64::from(SLOTS) - 1) as usize;
            if let Some(slots) = topology.owners.get_mut(span) {
                slots.fill(index as u16);
            }
        }
        if topology.masters.is_empty() {
            return Err(RedisError::from((redis::ErrorKind::Io, "the cluster has no slots assigned yet")));
        }
        Ok(topology)
    }

    /// Slot owners as text, for [`crate::store::FeatureStore::incarnation`].
    pub fn owners(&self) -> Vec<u16> {
        self.topology.read().owners.clone()
    }
}

/// `host:port`.
pub fn name(node: &Node) -> String {
    format!("{}:{}", node.0, node.1)
}

/// What a round of a batch met.
#[derive(Default)]
struct Trouble {
    worst: Option<StoreError>,
    wait: bool,
    remap: bool,
}

impl Trouble {
    fn note(&mut self, error: StoreError, wait: bool, remap: bool) {
        self.worst = Some(error);
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
