//! Who owns which slots: the map, or the sentinels' master, read anew where a batch met another owner, and the owners' lineages.

use super::super::address::Node;
use super::super::errors::{self, Remedy};
use super::super::sentinels::Sentinels;
use super::super::topology::{self, Claim, Lineages, Topology};
use super::super::values;
use super::{Link, Refusal, name};
use crate::store::{StoreError, StoreResult};
use futures::future::join_all;
use redis::{RedisError, Value};
use std::sync::Arc;
use std::time::Duration;

/// For one node's view of the slots: the others' need not wait long for a node that is gone.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

impl Link {
    /// Finds out anew who is to be asked: of a cluster the slot map from all nodes that answer (a master that was cut off would
    /// give an old one), of sentinels the master. A single Redis is asked whether it is there.
    pub(in crate::store::redis) async fn remap(&self, operation: &'static str) -> Result<(), Refusal> {
        if let Some(sentinels) = &self.sentinels {
            return self.follow(operation, sentinels).await;
        }
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
                        self.forget_connections(&node);
                    }
                    last = Some((name(&node), error));
                }
            }
        }
        let single = || nodes.first().filter(|_| !self.address.cluster && last.is_none()).map(Topology::single);
        let Some(topology) = single().or_else(|| Topology::of_claims(claims)) else {
            let unassigned = || RedisError::from((redis::ErrorKind::Io, "the cluster has no slots assigned yet"));
            let (node, error) = last.unwrap_or_else(|| (self.printable(), unassigned()));
            let is_final = errors::remedy(&error) == Remedy::GiveUp;
            return Err(Refusal { error: errors::failed(operation, &node, &error), is_final });
        };
        self.reads.retain(&topology.masters);
        *self.topology.write() = Arc::new(topology);
        Ok(())
    }

    /// Goes to the master that the sentinels name, and drops what belongs to the one before.
    async fn follow(&self, operation: &'static str, sentinels: &Sentinels) -> Result<(), Refusal> {
        let master = sentinels.master().await.map_err(|error| {
            let is_final = errors::remedy(&error) == Remedy::GiveUp;
            Refusal { error: sentinels.failed(operation, &error), is_final }
        })?;
        let before = {
            let mut topology = self.topology.write();
            std::mem::replace(&mut *topology, Arc::new(Topology::single(&master)))
        };
        for gone in before.masters.iter().filter(|node| **node != master) {
            tracing::warn!(from = name(gone), to = name(&master), "the sentinels name another master of the store");
            self.forget_connections(gone);
            self.durable.forget(gone);
            self.breaker.forget(&name(gone));
        }
        Ok(())
    }

    /// What one node says of the slots; of a single Redis only whether it answers.
    async fn look(&self, node: &Node) -> Result<Vec<Claim>, RedisError> {
        if !self.address.cluster {
            let mut connection = self.connections.shared(node).await?;
            redis::cmd("PING").exec_async(&mut connection).await?;
            return Ok(Vec::new());
        }
        let ask = async {
            let mut connection = self.connections.shared(node).await?;
            let mut both = redis::pipe();
            both.cmd("CLUSTER").arg("SLOTS").cmd("CLUSTER").arg("NODES");
            let (slots, nodes): (Value, String) = both.query_async(&mut connection).await?;
            topology::claims(node, slots, &nodes)
        };
        let timed = tokio::time::timeout(LOOK_TIMEOUT, ask).await;
        timed.unwrap_or_else(|_| Err(RedisError::from((redis::ErrorKind::Io, "no answer to CLUSTER SLOTS in time"))))
    }

    /// Looks who owns what now, and asks every owner for its lineage.
    pub async fn look_again(&self, operation: &'static str) -> StoreResult<Lineages> {
        if self.address.cluster {
            self.remap(operation).await.map_err(|refusal| refusal.error)?;
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
            self.note_replicas(node, &text);
            by_master.push(topology::lineage(&text).ok_or_else(|| StoreError::Engine {
                operation,
                message: format!("redis {}: INFO replication has no master_replid", name(node)),
            })?);
        }
        Ok(Lineages { topology, by_master })
    }
}
