//! Loading our functions where they are missing, in the middle of a batch or of a single call.

use super::super::address::Node;
use super::super::call::Call;
use super::super::errors::{self, Remedy};
use super::super::functions;
use super::{Link, Refusal, Route, Sent, Trouble, name};
use crate::store::{StoreError, StoreResult};
use redis::Value;
use std::collections::BTreeMap;
use std::time::Instant;

impl Link {
    /// Loads our functions onto nodes that lack them, and files their commands to be sent again; of a node that refuses, the
    /// refusal stands in their places. Whether any was loaded.
    pub(super) async fn load_where_lacking(
        &self,
        operation: &'static str,
        lacking: BTreeMap<Node, Vec<usize>>,
        answers: &mut [StoreResult<Value>],
        open: &mut Vec<(usize, Option<Route>)>,
        trouble: &mut Trouble,
    ) -> bool {
        let mut has_loaded = false;
        for (node, indices) in lacking {
            let is_final = match self.load_functions(operation, &node).await {
                Ok(()) => {
                    has_loaded = true;
                    false
                }
                Err(Refusal { error, is_final }) => {
                    for index in &indices {
                        answers[*index] = Err(error.clone());
                    }
                    trouble.note(!is_final, !is_final);
                    is_final
                }
            };
            if !is_final {
                open.extend(indices.into_iter().map(|index| (index, None)));
            }
        }
        has_loaded
    }

    /// Loads our functions onto a node. Where that is refused for good, no more than a try a second is made.
    pub(super) async fn load_functions(&self, operation: &'static str, node: &Node) -> Result<(), Refusal> {
        let name = name(node);
        if let Some(message) = self.refusals.of(&name, Instant::now()) {
            return Err(Refusal { error: StoreError::Denied { operation, message }, is_final: true });
        }
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg(functions::source());
        let error = match self.ask_once(node, &load).await {
            Err(error) if !errors::is_loaded_already(&error) => error,
            _ => {
                tracing::info!(node = name, library = functions::library(), "taiji's functions were loaded");
                self.refusals.forget(&name);
                return Ok(());
            }
        };
        let failed = errors::failed(operation, &name, &error);
        let is_final = match errors::remedy(&error) {
            // It became a replica: the next round asks who is the master now.
            Remedy::GiveUp if errors::is_replaced(&error) => {
                self.forget_connections(node);
                false
            }
            Remedy::Reconnect => {
                self.forget_connections(node);
                false
            }
            remedy => remedy == Remedy::GiveUp,
        };
        if is_final {
            self.refusals.note(&name, &failed, Instant::now());
        }
        Err(Refusal { error: failed, is_final })
    }

    /// A node whose functions answer needs no loading, whoever put them there.
    pub(super) fn note_functions(&self, sent: &Sent, calls: &[Call]) {
        let Some(confirmed) = sent.outcome.as_ref().ok().filter(|_| !self.refusals.is_empty()) else { return };
        let mut answered = sent.indices.iter().zip(&confirmed.answers).filter(|(index, _)| calls[**index].is_function);
        if answered.any(|(_, value)| !matches!(value, Value::ServerError(_))) {
            self.refusals.forget(&name(&sent.node));
        }
    }
}
