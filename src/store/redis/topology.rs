//! Who owns which slot, and the histories of writes of the owners.
//!
//! In: what the nodes of a cluster say (`CLUSTER SLOTS`, `CLUSTER NODES`, `INFO replication`). Out: one [`Topology`],
//! [`Lineages`]. Caller: `link`.
//!
//! Nodes may disagree: a master that was cut off still calls itself the owner of its slots. As in the cluster itself, of two
//! claims to a slot the one with the higher configuration epoch is right.

use super::address::Node;
use super::keys::{SLOTS, slot_of};
use redis::Value;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// The owners as of one look; of a single Redis one node owns all.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Those who own a slot.
    pub masters: Vec<Node>,
    /// Index into `masters` by slot.
    owners: Vec<u16>,
    /// Masters and replicas: whom to ask next time.
    pub nodes: Vec<Node>,
    /// Masters that have a replica.
    replicated: Vec<Node>,
}

/// What one node says of some slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    first: u16,
    last: u16,
    owner: Node,
    replicas: Vec<Node>,
    epoch: u64,
}

impl Topology {
    /// One node owns all.
    pub fn single(node: &Node) -> Topology {
        Topology { masters: vec![node.clone()], nodes: vec![node.clone()], ..Topology::default() }
    }

    /// The map that follows from the claims of all nodes; `None` when no slot is claimed.
    pub fn of_claims(mut claims: Vec<Claim>) -> Option<Topology> {
        // The newest claim is written last. Sorted, so that the map does not depend on who answered first.
        claims.sort_by(|a, b| (a.epoch, a.first, &a.owner).cmp(&(b.epoch, b.first, &b.owner)));
        let mut newest: Vec<Option<&Claim>> = vec![None; usize::from(SLOTS)];
        for claim in &claims {
            if let Some(slots) = newest.get_mut(usize::from(claim.first)..=usize::from(claim.last)) {
                slots.fill(Some(claim));
            }
        }
        let mut topology = Topology::default();
        for claim in newest.iter() {
            let owner = claim.map_or(0, |claim| place_of(&mut topology.masters, &claim.owner));
            topology.owners.push(owner as u16);
        }
        for node in claims.iter().flat_map(|claim| std::iter::once(&claim.owner).chain(&claim.replicas)) {
            place_of(&mut topology.nodes, node);
        }
        // Not every node has heard of every replica.
        for claim in claims.iter().filter(|claim| !claim.replicas.is_empty() && topology.masters.contains(&claim.owner))
        {
            place_of(&mut topology.replicated, &claim.owner);
        }
        (!topology.masters.is_empty()).then_some(topology)
    }

    /// Whether the map names a replica of that master.
    pub fn has_replica(&self, master: &Node) -> bool {
        self.replicated.contains(master)
    }

    /// The owner of a slot; `None` before the first look.
    pub fn owner(&self, slot: u16) -> Option<&Node> {
        self.masters.get(self.place(slot))
    }

    fn place(&self, slot: u16) -> usize {
        self.owners.get(usize::from(slot)).map_or(0, |index| usize::from(*index))
    }
}

fn place_of(nodes: &mut Vec<Node>, node: &Node) -> usize {
    nodes.iter().position(|known| known == node).unwrap_or_else(|| {
        nodes.push(node.clone());
        nodes.len() - 1
    })
}

/// The claims in a node's answers to `CLUSTER SLOTS` and `CLUSTER NODES`.
pub fn claims(asked: &Node, slots: Value, nodes: &str) -> redis::RedisResult<Vec<Claim>> {
    let ranges: Vec<Vec<Value>> = redis::from_redis_value(slots)?;
    let mut found = Vec::new();
    for range in ranges {
        let [Value::Int(first), Value::Int(last), members @ ..] = range.as_slice() else { continue };
        let mut members =
            members.iter().map(|member| member_of(asked, member)).collect::<redis::RedisResult<Vec<_>>>()?;
        if members.is_empty() {
            continue;
        }
        let (owner, id) = members.remove(0);
        let limit = i64::from(SLOTS) - 1;
        found.push(Claim {
            first: (*first).clamp(0, limit) as u16,
            last: (*last).clamp(0, limit) as u16,
            owner,
            replicas: members.into_iter().map(|(node, _)| node).collect(),
            epoch: epoch_of(&id, nodes),
        });
    }
    Ok(found)
}

/// Address and id of a node in `CLUSTER SLOTS`.
fn member_of(asked: &Node, member: &Value) -> redis::RedisResult<(Node, String)> {
    let Value::Array(fields) = member else { return Ok((asked.clone(), String::new())) };
    let field = |nth: usize| fields.get(nth).cloned().unwrap_or_default();
    let host: Option<String> = redis::from_redis_value(field(0))?;
    let port: u16 = redis::from_redis_value(field(1))?;
    let id: Option<String> = redis::from_redis_value(field(2))?;
    // A node that does not know its own name means the one we asked.
    Ok(((host.filter(|host| !host.is_empty()).unwrap_or_else(|| asked.0.clone()), port), id.unwrap_or_default()))
}

/// `<id> <address> <flags> <master> <ping> <pong> <config-epoch> …`
fn epoch_of(id: &str, nodes: &str) -> u64 {
    let line = nodes.lines().map(|line| line.split(' ')).find(|line| line.clone().next() == Some(id));
    line.and_then(|mut fields| fields.nth(6)).and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

/// Of each master a number that changes whenever it may have lost writes or taken over from another: of its replication
/// id, which Redis makes anew at every start and every take-over, and takes over from the master it copies.
pub struct Lineages {
    pub(super) topology: Arc<Topology>,
    pub(super) by_master: Vec<u64>,
}

impl Lineages {
    /// That of the owner of a key.
    pub fn of(&self, key: &str) -> u64 {
        self.by_master.get(self.topology.place(slot_of(key))).copied().unwrap_or(0)
    }

    /// One number for all: changes when a slot has another owner or an owner another lineage.
    pub fn of_all(&self) -> u64 {
        let mut bytes: Vec<u8> = self.by_master.iter().flat_map(|lineage| lineage.to_be_bytes()).collect();
        bytes.extend(self.topology.owners.iter().flat_map(|owner| owner.to_be_bytes()));
        xxh3_64(&bytes)
    }
}

/// The lineage in an answer to `INFO replication`; `None` when it is not there.
pub fn lineage(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("master_replid:")).map(|id| xxh3_64(id.trim().as_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(port: u16) -> Node {
        ("h".to_string(), port)
    }

    fn claim(first: u16, last: u16, port: u16, epoch: u64) -> Claim {
        Claim { first, last, owner: node(port), replicas: vec![node(port + 100)], epoch }
    }

    #[test]
    fn the_newer_claim_to_a_slot_wins_whoever_answers_first() {
        let claims = vec![claim(0, 99, 1, 5), claim(100, 16383, 2, 2), claim(0, 99, 3, 7), claim(0, 99, 1, 5)];
        let mut reversed = claims.clone();
        reversed.reverse();
        let map = Topology::of_claims(claims).unwrap();
        assert_eq!((map.owner(0), map.owner(99), map.owner(100)), (Some(&node(3)), Some(&node(3)), Some(&node(2))));
        assert_eq!(map.masters, [node(3), node(2)], "who lost all slots is no master");
        assert!(map.nodes.contains(&node(1)) && map.nodes.contains(&node(103)));
        assert!(map.has_replica(&node(3)) && !map.has_replica(&node(1)), "of masters only");
        assert_eq!(Topology::of_claims(reversed), Some(map));
        assert_eq!(Topology::of_claims(vec![]), None);
    }

    #[test]
    fn claims_are_read_with_their_epochs() {
        let text = |text: &str| Value::BulkString(text.into());
        let member = |host: &str, port: i64, id: &str| Value::Array(vec![text(host), Value::Int(port), text(id)]);
        let range = vec![Value::Int(0), Value::Int(16383), member("", 7, "aa"), member("x", 8, "bb")];
        let nodes = "bb x:8@9 slave aa 0 0 3 connected\naa :7@8 myself,master - 0 0 12 connected 0-16383\n";
        let found = claims(&node(7), Value::Array(vec![Value::Array(range)]), nodes).unwrap();
        let expected = Claim { first: 0, last: 16383, owner: node(7), replicas: vec![("x".into(), 8)], epoch: 12 };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_lineage_is_that_of_the_replication_id() {
        let info = "# Replication\r\nrole:master\r\nmaster_replid:8371\r\nmaster_replid2:0\r\n";
        assert_eq!(lineage(info), Some(xxh3_64(b"8371")));
        assert_eq!(lineage("role:master\r\n"), None);
    }
}
