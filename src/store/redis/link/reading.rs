//! The way of a serving read: fields of many hashes, within the time that a reader has.
//!
//! In: keys, fields. Out: answers, decoded where they lie. What goes well goes over the connections of [`super::super::reads`]; the rest, and
//! everything while a node is away, goes on as any batch does, until the same moment.

use super::super::call::Call;
use super::super::keys::slot_of;
use super::super::pace;
use super::super::reads::{self, ReadError, Reader, Replies, Reply};
use super::super::values::corrupt;
use super::{Link, Node, Way, errors, name};
use crate::store::StoreResult;
use futures::future::join_all;
use redis::Value;
use tokio::time::{Instant, timeout_at};

/// HMGET of the same fields of some hashes.
pub struct HashReads<'a> {
    pub operation: &'static str,
    /// How many.
    pub count: usize,
    /// Key of each.
    pub key: &'a (dyn Fn(usize) -> String + Sync),
    pub fields: &'a [&'a str],
    /// What each may cost the server, in µs.
    pub cost: u32,
}

impl HashReads<'_> {
    /// The commands for these, as they go over the wire.
    fn write(&self, indices: &[usize], out: &mut Vec<u8>) {
        let mut tail = Vec::with_capacity(16 * self.fields.len());
        self.fields.iter().for_each(|field| reads::bulk(&mut tail, field));
        for index in indices {
            reads::array(out, self.fields.len() + 2);
            reads::bulk(out, "HMGET");
            reads::bulk(out, &(self.key)(*index));
            out.extend_from_slice(&tail);
        }
    }

    fn call(&self, index: usize) -> Call {
        Call::with_arguments("HMGET", &(self.key)(index), self.fields).costing(self.cost)
    }
}

/// What one node answered to the first of those that it was asked for.
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
        let mut answers: Vec<Option<StoreResult<T>>> = Vec::new();
        answers.resize_with(reads.count, || None);
        if self.breaker.all_well() {
            self.read_straight(reads, deadline, &decode, &mut answers).await;
        }
        let open: Vec<usize> = (0..reads.count).filter(|index| answers[*index].is_none()).collect();
        if !open.is_empty() {
            let calls = open.iter().map(|index| reads.call(*index)).collect();
            let values = self.go(reads.operation, calls, Way::Until(deadline)).await;
            let decoded = |(index, value): (usize, StoreResult<Value>)| {
                let replies = Replies::of_value(&value?);
                let reply = replies.iter().next().ok_or_else(|| corrupt(&(reads.key)(index), "no answer"))?;
                decode(index, reply)
            };
            for (index, value) in open.into_iter().zip(values) {
                answers[index] = Some(decoded((index, value)));
            }
        }
        answers.into_iter().flatten().collect()
    }

    /// Reads from nodes that have a connection; what is still `None` afterwards was not answered.
    async fn read_straight<T>(
        &self,
        reads: &HashReads<'_>,
        deadline: Instant,
        decode: &impl Fn(usize, Reply<'_>) -> StoreResult<T>,
        answers: &mut [Option<StoreResult<T>>],
    ) {
        let topology = self.topology();
        if let [node] = &topology.masters[..] {
            let all: Vec<usize> = (0..reads.count).collect();
            let found = self.read_of(node, &all, reads, deadline).await;
            return self.file(node, &all, found, (reads, decode), answers);
        }
        let mut by_node: Vec<(&Node, Vec<usize>)> = topology.masters.iter().map(|node| (node, Vec::new())).collect();
        for index in 0..reads.count {
            let owner = topology.owner(slot_of(&(reads.key)(index)));
            if let Some((_, indices)) = by_node.iter_mut().find(|(node, _)| Some(*node) == owner) {
                indices.push(index);
            }
        }
        by_node.retain(|(_, indices)| !indices.is_empty());
        let asked = by_node.iter().map(|(node, indices)| self.read_of(node, indices, reads, deadline));
        for ((node, indices), found) in by_node.iter().zip(join_all(asked).await) {
            self.file(node, indices, found, (reads, decode), answers);
        }
    }

    /// Reads these of one node, in pieces, as far as there is time; whether that was over before all had come.
    async fn read_of(
        &self,
        node: &Node,
        indices: &[usize],
        reads: &HashReads<'_>,
        deadline: Instant,
    ) -> (Vec<Piece>, bool) {
        let mut pieces = Vec::with_capacity(1);
        let Some(reader) = self.readers.standing(node, || self.pace_of(node)) else { return (pieces, false) };
        let ended = timeout_at(deadline, read_pieces(&reader, indices, reads, &mut pieces)).await;
        if let Ok(Err(error)) = &ended {
            tracing::debug!(node = %name(node), %error, "reads go the general way");
            self.readers.forget(node);
        }
        (pieces, ended.is_err())
    }

    /// Decodes what one node answered, and notes for whom the time was over.
    fn file<T>(
        &self,
        node: &Node,
        indices: &[usize],
        (pieces, is_late): (Vec<Piece>, bool),
        (reads, decode): (&HashReads<'_>, &impl Fn(usize, Reply<'_>) -> StoreResult<T>),
        answers: &mut [Option<StoreResult<T>>],
    ) {
        for piece in pieces {
            for (index, reply) in indices[piece.indices].iter().zip(piece.replies.iter()) {
                if !reply.is_error() {
                    answers[*index] = Some(decode(*index, reply));
                }
            }
        }
        if !is_late {
            return;
        }
        self.doubt(node);
        let late = errors::failed(reads.operation, &name(node), &self.late());
        for index in indices.iter().filter(|index| answers[**index].is_none()).copied().collect::<Vec<_>>() {
            answers[index] = Some(Err(late.clone()));
        }
    }
}

/// Asks for these over one connection, a piece when the one before was answered.
async fn read_pieces(
    reader: &Reader,
    indices: &[usize],
    reads: &HashReads<'_>,
    pieces: &mut Vec<Piece>,
) -> Result<(), ReadError> {
    let mut done = 0;
    while done < indices.len() {
        let factor = reader.pace.factor(reads.operation);
        let (length, cost) = pace::first_piece(indices[done..].iter().map(|_| reads.cost), factor);
        let piece = done..done + length;
        let write = |out: &mut Vec<u8>| reads.write(&indices[piece.clone()], out);
        let under_way = reader.pace.clone().enter(cost).await;
        let replies = reader.connection.ask(length, write).await?;
        under_way.answered(reads.operation);
        done = piece.end;
        pieces.push(Piece { indices: piece, replies });
    }
    Ok(())
}
