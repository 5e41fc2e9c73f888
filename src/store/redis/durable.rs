//! Writes that are acknowledged only when replicas or the disk have them, and the question whether replicas have what was
//! written before (DESIGN 5.5).
//!
//! In: pipelines of writes, or nothing. Out: their answers, or how far they fall short. Callers: `link` sends a batch this way,
//! `kafka`'s ingest asks before it releases offsets.
//!
//! `WAIT` and `WAITAOF` hold up everything behind them, so they go over connections of a caller's own. They speak of what
//! their own connection has written: a batch of duplicates writes nothing, and newer servers answer at once then, whatever
//! the replicas have. So one small write of ours stands before each; it comes after everything the server has carried out.

use super::address::Node;
use super::assurance::{Ack, field};
use super::errors;
use super::keys::slot_of;
use super::link::{Link, name};
use super::topology::{Lineages, Topology, lineage};
use super::values;
use crate::clock::unix_ms;
use crate::store::{StoreError, StoreResult};
use futures::future::join_all;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, Pipeline, RedisError, Value};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Connections that may wait at once; more callers queue up for as long as an acknowledgement may take.
const MOST: usize = 256;
/// Connections of a node that are kept for the next caller.
const KEPT: usize = 16;
/// Longest wait for replicas when nobody's answer depends on it.
const LOOK: Duration = Duration::from_secs(1);
/// Names tried for a key of ours that lives on a given node. A node with a single slot is found within some 16,000.
const NAMES: u32 = 500_000;

/// Connections that wait, and which masters have replicas.
pub struct Durable {
    idle: Mutex<HashMap<Node, Vec<MultiplexedConnection>>>,
    places: Semaphore,
    /// Masters that had a replica since this process began.
    had_replica: Mutex<HashSet<Node>>,
}

impl Default for Durable {
    fn default() -> Durable {
        Durable { idle: Mutex::default(), places: Semaphore::new(MOST), had_replica: Mutex::default() }
    }
}

impl Durable {
    /// Drops the connections to a node that is a master no more.
    pub(super) fn forget(&self, node: &Node) {
        self.idle.lock().remove(node);
    }
}

/// The answers of a batch's part for one node, and what they lack to be acknowledged.
pub struct Confirmed {
    pub answers: Vec<Value>,
    pub shortfall: Option<String>,
}

/// One node's answer to the question whether replicas have everything.
struct NodeLook {
    lineage: u64,
    lacking: Option<String>,
}

impl Link {
    /// Sends a pipeline over a connection that nobody shares, and waits for what `ack` asks for. The pipeline has one answer a
    /// command.
    pub(super) async fn send_confirmed(&self, node: &Node, mut pipeline: Pipeline) -> Result<Confirmed, RedisError> {
        let assurance = self.assurance();
        let length = pipeline.len();
        let limit = assurance.ack_timeout;
        let Some(key) = self.key_on(&self.topology(), node) else {
            let shortfall = Some("its slots are being moved".to_string());
            let answers = self.exchange(node, &pipeline, limit).await?;
            return Ok(Confirmed { answers, shortfall });
        };
        let wanted = match assurance.ack {
            Ack::Replicated => assurance.ack_replicas.max(1),
            _ => self.replicas_wanted(&self.topology(), node),
        };
        add_wait(&mut pipeline, &key, assurance.ack == Ack::Synced, wanted, limit);
        let mut answers = self.exchange(node, &pipeline, limit).await?;
        let wait: Vec<Value> = answers.drain(length..).collect();
        Ok(Confirmed { shortfall: shortfall(wait, assurance.ack == Ack::Synced, wanted), answers })
    }

    /// Whether [`super::Assurance::ack_replicas`] replicas have all that was written before this call, on every master that has
    /// replicas or had them: what they lack, if they do. With the lineages of the masters that were asked.
    pub(super) async fn look_at_replicas(&self, operation: &'static str) -> StoreResult<(Lineages, Option<String>)> {
        let topology = self.topology();
        let asked = topology.masters.iter().map(|node| self.look_at_replicas_of(operation, &topology, node));
        let looks = join_all(asked).await.into_iter().collect::<StoreResult<Vec<NodeLook>>>()?;
        let by_master = looks.iter().map(|look| look.lineage).collect();
        let lacking = looks.into_iter().find_map(|look| look.lacking);
        Ok((Lineages { topology, by_master }, lacking))
    }

    async fn look_at_replicas_of(
        &self,
        operation: &'static str,
        topology: &Topology,
        node: &Node,
    ) -> StoreResult<NodeLook> {
        loop {
            let wanted = self.replicas_wanted(topology, node);
            let mut answers = self.ask_replicas_of(operation, topology, node, wanted).await?;
            let wait = answers.split_off(1);
            let info: String = values::read("info", answers.pop().unwrap_or_default())?;
            self.note_replicas(node, &info);
            // Its first replica has come, and must be asked, too.
            if wanted == 0 && self.replicas_wanted(topology, node) > 0 {
                continue;
            }
            let lineage = lineage(&info).ok_or_else(|| StoreError::Engine {
                operation,
                message: format!("redis {}: INFO replication has no master_replid", name(node)),
            })?;
            let lacking = if wanted == 0 { None } else { shortfall(wait, false, wanted) };
            return Ok(NodeLook { lineage, lacking: lacking.map(|what| format!("redis {}: {what}", name(node))) });
        }
    }

    /// Answers to INFO and, where replicas are wanted, to [`add_wait`].
    async fn ask_replicas_of(
        &self,
        operation: &'static str,
        topology: &Topology,
        node: &Node,
        wanted: u32,
    ) -> StoreResult<Vec<Value>> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("INFO").arg("replication");
        if wanted > 0 {
            let key = self.key_on(topology, node).ok_or_else(|| StoreError::Busy {
                operation,
                message: format!("redis {}: owns no slot any more", name(node)),
            })?;
            add_wait(&mut pipeline, &key, false, wanted, LOOK.min(self.assurance().ack_timeout));
        }
        self.admit(operation, node)?;
        let answers = self.watched(node, self.exchange(node, &pipeline, LOOK)).await;
        answers.map_err(|error| errors::failed(operation, &name(node), &error))
    }

    /// Remembers a master that has replicas.
    pub(super) fn note_replicas(&self, node: &Node, info: &str) {
        if field(info, "connected_slaves:").is_some_and(|count| count != "0") {
            self.durable().had_replica.lock().insert(node.clone());
        }
    }

    /// Replicas that must have what is written to this master.
    fn replicas_wanted(&self, topology: &Topology, node: &Node) -> u32 {
        let has = topology.has_replica(node) || self.durable().had_replica.lock().contains(node);
        if has { self.assurance().ack_replicas } else { 0 }
    }

    /// A key of ours that lives on that node; `None` when it owns no slot.
    fn key_on(&self, topology: &Topology, node: &Node) -> Option<String> {
        if !topology.masters.contains(node) {
            return None;
        }
        let mut names = (0..NAMES).map(|number| format!("{}:ack:{{{number}}}", self.namespace()));
        names.find(|key| topology.owner(slot_of(key)) == Some(node))
    }

    /// One pipeline over a connection of one's own, which is kept for the next caller if all went well.
    pub(super) async fn exchange(
        &self,
        node: &Node,
        pipeline: &Pipeline,
        wait: Duration,
    ) -> Result<Vec<Value>, RedisError> {
        let durable = self.durable();
        let place = tokio::time::timeout(wait, durable.places.acquire()).await;
        let _place = place
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| RedisError::from((ErrorKind::Client, "too many writes wait for their acknowledgement")))?;
        let idle = durable.idle.lock().get_mut(node).and_then(Vec::pop);
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connections().own(node, self.response_timeout() + self.assurance().ack_timeout).await?,
        };
        let answers = connection.send_packed_commands(pipeline, 0, pipeline.len()).await;
        let mut idle = durable.idle.lock();
        if answers.is_err() {
            // What was idle as long is as likely to be broken.
            idle.remove(node);
        } else {
            let kept = idle.entry(node.clone()).or_default();
            if kept.len() < KEPT {
                kept.push(connection);
            }
        }
        answers
    }
}

/// Adds our small write and the wait behind it.
fn add_wait(pipeline: &mut Pipeline, key: &str, to_disk: bool, replicas: u32, limit: Duration) {
    pipeline.cmd("SET").arg(key).arg(unix_ms());
    let limit_ms = limit.as_millis().max(1) as u64;
    match to_disk {
        true => pipeline.cmd("WAITAOF").arg(1).arg(replicas).arg(limit_ms),
        false => pipeline.cmd("WAIT").arg(replicas).arg(limit_ms),
    };
}

/// What the answers to [`add_wait`]'s two commands lack.
fn shortfall(answers: Vec<Value>, to_disk: bool, wanted: u32) -> Option<String> {
    let answers: Result<Vec<Value>, RedisError> = answers.into_iter().map(Value::extract_error).collect();
    let wait = match answers {
        Ok(mut answers) => answers.pop().unwrap_or_default(),
        Err(error) => return Some(error.to_string()),
    };
    let found = match to_disk {
        true => redis::from_redis_value::<(u32, u32)>(wait),
        false => redis::from_redis_value::<u32>(wait).map(|replicas| (1, replicas)),
    };
    match found {
        Ok((0, _)) => Some("it is not in the master's append-only file in time".to_string()),
        Ok((_, replicas)) if replicas < wanted => {
            let place = if to_disk { "have it in their append-only files" } else { "have it" };
            Some(format!("{replicas} of {wanted} replicas {place} in time"))
        }
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}
