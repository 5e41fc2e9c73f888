//! One command on one node, or on every master, with tries of its own; and a walk over all keys.

use super::super::address::Node;
use super::super::errors::{self, Remedy};
use super::super::topology::Topology;
use super::super::{SCAN_STEP, pace, values};
use super::{Link, Tries, name};
use crate::store::{StoreError, StoreResult};
use futures::future::join_all;
use redis::{Cmd, RedisError, Value};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Link {
    /// Answer of one command on every master, in the order of [`Link::masters`].
    pub async fn everywhere(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<Vec<Value>> {
        Ok(self.ask_masters(operation, cmd).await?.1)
    }

    /// Answers of all masters, and the map that says who they are. When one is gone the map is read again.
    pub(super) async fn ask_masters(
        &self,
        operation: &'static str,
        cmd: &Cmd,
    ) -> StoreResult<(Arc<Topology>, Vec<Value>)> {
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

    pub(super) async fn ask_once(&self, node: &Node, cmd: &Cmd) -> Result<Value, RedisError> {
        let call = async {
            let mut connection = self.connections.shared(node).await?;
            connection.send_packed_command(cmd).await.and_then(Value::extract_error)
        };
        let answer = self.watched(node, call).await;
        self.note(node, answer.as_ref().err());
        answer
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

/// Why a try failed, and whether another one is worth it.
pub struct Refusal {
    pub(in crate::store::redis) error: StoreError,
    pub(super) is_final: bool,
}
