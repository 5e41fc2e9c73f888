//! A batch of commands on its way: cut by node, sent to all nodes at once, and what lacks an answer sent again.
//!
//! In: commands, and how they go out ([`Way`]). Out: an answer or an error for each, in their order.

use super::super::address::Node;
use super::super::call::Call;
use super::super::durable::Confirmed;
use super::super::errors::{self, Remedy};
use super::{Link, Tries, name, not_durable};
use crate::store::StoreResult;
use futures::future::join_all;
use redis::{RedisError, Value};
use std::collections::BTreeMap;
use tokio::time::timeout_at;

/// How a batch goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As often as [`super::Timeouts`] says.
    Timeouts,
    /// The same until this moment; what has no answer by then fails alone.
    Until(tokio::time::Instant),
    /// As [`Way::Timeouts`], and an answer counts only when replicas or the disk have what was written.
    Confirmed,
}

/// Where a command goes in this round: the node, and whether `ASKING` goes before.
pub(super) type Route = (Node, bool);

impl Link {
    pub(super) async fn go(&self, operation: &'static str, calls: Vec<Call>, way: Way) -> Vec<StoreResult<Value>> {
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
            Way::Timeouts | Way::Confirmed => {
                ready.await;
                true
            }
        }
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
}

/// What one pipeline of a batch came back with.
pub(super) struct Sent {
    pub operation: &'static str,
    pub node: Node,
    /// Of the commands in the batch.
    pub indices: Vec<usize>,
    /// One answer a command, or why there is none.
    pub outcome: Result<Confirmed, RedisError>,
    /// There is none because the time of a read was over.
    pub is_late: bool,
}

/// What the next round of a batch needs first.
#[derive(Default)]
pub(super) struct Trouble {
    pub wait: bool,
    pub remap: bool,
    /// Commands that met a node without our functions.
    pub lacking: BTreeMap<Node, Vec<usize>>,
}

impl Trouble {
    pub(super) fn note(&mut self, wait: bool, remap: bool) {
        self.wait |= wait;
        self.remap |= remap;
    }
}
