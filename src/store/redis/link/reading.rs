//! The way of a serving read: fields of many hashes, within the time that a reader has.
//!
//! In: keys, fields. Out: answers, decoded where they lie. What goes well goes directly, over the connections of [`super::super::reads`]; what
//! is left of a node, and all of a node that is away, goes on as any batch does, until the same moment.

use super::super::call::Call;
use super::super::keys::slot_of;
use super::super::pace;
use super::super::reads::{self, NodeConnection, ReadError, Replies, Reply};
use super::super::topology::Topology;
use super::super::values::corrupt;
use super::{Link, Node, Way, errors, name};
use crate::store::StoreResult;
use futures::future::join_all;
use redis::Value;
use tokio::time::{Instant, timeout_at};

/// Most bytes of a command beside its key and its fields.
const BESIDE: usize = 32;

/// HMGET of the same fields of some hashes.
pub struct HashReads<'a> {
    pub operation: &'static str,
    /// Key of each.
    pub keys: &'a [String],
    pub fields: &'a [&'a str],
    /// What each may cost the server, in µs.
    pub cost: u32,
}

impl HashReads<'_> {
    /// The commands for these, as they go over the wire.
    fn commands(&self, indices: &[usize]) -> Vec<u8> {
        let mut tail = Vec::with_capacity(16 * self.fields.len());
        self.fields.iter().for_each(|field| reads::bulk(&mut tail, field));
        let keys = || indices.iter().map(|index| &self.keys[*index]);
        let mut out = Vec::with_capacity(keys().map(|key| key.len() + tail.len() + BESIDE).sum());
        for key in keys() {
            reads::array(&mut out, self.fields.len() + 2);
            reads::bulk(&mut out, "HMGET");
            reads::bulk(&mut out, key);
            out.extend_from_slice(&tail);
        }
        out
    }

    fn call(&self, index: usize) -> Call {
        Call::with_arguments("HMGET", &self.keys[index], self.fields).costing(self.cost)
    }

    /// Which are whose.
    fn by_node<'t>(&self, topology: &'t Topology) -> Vec<(&'t Node, Vec<usize>)> {
        if let [node] = &topology.masters[..] {
            return vec![(node, (0..self.keys.len()).collect())];
        }
        let mut by_node: Vec<(&Node, Vec<usize>)> = topology.masters.iter().map(|node| (node, Vec::new())).collect();
        for (index, key) in self.keys.iter().enumerate() {
            let owner = topology.owner(slot_of(key));
            if let Some((_, indices)) = by_node.iter_mut().find(|(node, _)| Some(*node) == owner) {
                indices.push(index);
            }
        }
        by_node.retain(|(_, indices)| !indices.is_empty());
        by_node
    }
}

/// What one node answered to some of those that it was asked for.
struct Piece {
    indices: std::ops::Range<usize>,
    replies: Replies,
}

impl Link {
    /// One answer a hash, in their order. `decode` gets the hash's number and what the server said of it, which is never an error.
    pub async fn read_hashes<T>(
        &self,
        reads: &HashReads<'_>,
        decode: impl Fn(usize, Reply<'_>) -> StoreResult<T>,
    ) -> Vec<StoreResult<T>> {
        let deadline = Instant::now() + self.assurance().read_deadline;
        let topology = self.topology();
        let by_node = reads.by_node(&topology);
        // Each node's part on its own: one that is slow keeps the others' from nothing.
        let parts = by_node.iter().map(|(node, indices)| self.read_node(node, indices, reads, deadline, &decode));
        let mut answers: Vec<Option<StoreResult<T>>> = Vec::new();
        answers.resize_with(reads.keys.len(), || None);
        for (index, answer) in join_all(parts).await.into_iter().flatten() {
            answers[index] = Some(answer);
        }
        let missing = |index: usize| Err(corrupt(&reads.keys[index], "nobody was asked"));
        answers.into_iter().enumerate().map(|(index, answer)| answer.unwrap_or_else(|| missing(index))).collect()
    }

    /// The answers of one node, directly as far as it goes.
    async fn read_node<T>(
        &self,
        node: &Node,
        indices: &[usize],
        reads: &HashReads<'_>,
        deadline: Instant,
        decode: &impl Fn(usize, Reply<'_>) -> StoreResult<T>,
    ) -> Vec<(usize, StoreResult<T>)> {
        let (pieces, is_late) = self.read_directly(node, indices, reads, deadline).await;
        let (mut answers, mut left) = (Vec::with_capacity(indices.len()), Vec::new());
        let mut done = 0;
        for piece in pieces {
            done = piece.indices.end;
            for (index, reply) in indices[piece.indices].iter().zip(piece.replies.iter()) {
                match reply.is_error() {
                    false => answers.push((*index, decode(*index, reply))),
                    true => left.push(*index),
                }
            }
        }
        left.extend_from_slice(&indices[done..]);
        if left.is_empty() {
            return answers;
        }
        if is_late {
            self.doubt(node);
            let late = errors::failed(reads.operation, &name(node), &self.late());
            answers.extend(left.into_iter().map(|index| (index, Err(late.clone()))));
            return answers;
        }
        let calls = left.iter().map(|index| reads.call(*index)).collect();
        let values = self.go(reads.operation, calls, Way::Until(deadline)).await;
        let decoded = |index: usize, value: StoreResult<Value>| {
            let replies = Replies::of_value(&value?);
            let reply = replies.iter().next().ok_or_else(|| corrupt(&reads.keys[index], "no answer"))?;
            decode(index, reply)
        };
        answers.extend(left.into_iter().zip(values).map(|(index, value)| (index, decoded(index, value))));
        answers
    }

    /// What came over the node's own connection for reads, if there is one, and whether the time was over before all had come.
    async fn read_directly(
        &self,
        node: &Node,
        indices: &[usize],
        reads: &HashReads<'_>,
        deadline: Instant,
    ) -> (Vec<Piece>, bool) {
        let mut pieces = Vec::with_capacity(1);
        // The general way refuses it in its words.
        if self.admit(reads.operation, node).is_err() {
            return (pieces, false);
        }
        let Some(open) = self.reads.standing(node, || self.pace_of(node)) else { return (pieces, false) };
        let ended = timeout_at(deadline, read_pieces(&open, indices, reads, &mut pieces)).await;
        if let Ok(Err(error)) = &ended {
            tracing::debug!(node = %name(node), %error, "reads go the general way");
            self.reads.drop_broken(node, &open);
        }
        (pieces, ended.is_err())
    }
}

/// Asks for these over one connection, a piece when the one before was answered.
async fn read_pieces(
    open: &NodeConnection,
    indices: &[usize],
    reads: &HashReads<'_>,
    pieces: &mut Vec<Piece>,
) -> Result<(), ReadError> {
    let mut done = 0;
    while done < indices.len() {
        let factor = open.pace.factor(reads.operation);
        let (length, cost) = pace::first_piece(indices[done..].iter().map(|_| reads.cost), factor);
        let piece = done..done + length;
        let commands = reads.commands(&indices[piece.clone()]);
        let under_way = open.pace.clone().enter(cost).await;
        let replies = open.connection.ask(length, &commands).await?;
        under_way.answered(reads.operation);
        done = piece.end;
        pieces.push(Piece { indices: piece, replies });
    }
    Ok(())
}
