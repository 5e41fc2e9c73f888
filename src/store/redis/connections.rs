//! The connections to the nodes: one a node, shared by everybody, and connections of a caller's own.
//!
//! In: a node. Out: a connection. Callers: `link` (shared), `watch` and `durable` (their own).
//!
//! A shared connection is made once however many wait for it, and goes on being made when they wait no longer: a read whose
//! time is over must not throw away what the next one needs.

use super::address::{Address, Node};
use super::link::Timeouts;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError};
use std::collections::HashMap;
use std::time::Duration;

/// A connection that stands or is being made.
type Connecting = Shared<BoxFuture<'static, Result<MultiplexedConnection, RedisError>>>;

/// All connections that are shared.
pub struct Connections {
    address: Address,
    timeouts: Timeouts,
    shared: Mutex<HashMap<Node, Connecting>>,
}

impl Connections {
    pub fn new(address: Address, timeouts: Timeouts) -> Connections {
        Connections { address, timeouts, shared: Mutex::default() }
    }

    /// The one that everybody uses.
    pub async fn shared(&self, node: &Node) -> Result<MultiplexedConnection, RedisError> {
        let connecting = self.shared.lock().entry(node.clone()).or_insert_with(|| self.begin(node)).clone();
        if let Some(Ok(connection)) = connecting.peek() {
            return Ok(connection.clone());
        }
        let made = connecting.clone().await;
        if made.is_err() {
            let mut shared = self.shared.lock();
            // Somebody else may have begun anew.
            if shared.get(node).is_some_and(|known| known.ptr_eq(&connecting)) {
                shared.remove(node);
            }
        }
        made
    }

    /// The one that everybody uses, if it stands.
    pub fn standing(&self, node: &Node) -> Option<MultiplexedConnection> {
        self.shared.lock().get(node).and_then(|connecting| connecting.peek()?.as_ref().ok().cloned())
    }

    /// The next caller gets a new one.
    pub fn forget(&self, node: &Node) {
        self.shared.lock().remove(node);
    }

    /// One for the caller alone, whose answers may take this long.
    pub async fn own(&self, node: &Node, response: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeouts.connect))
            .set_response_timeout(Some(response));
        self.address.client(node)?.get_multiplexed_async_connection_with_config(&config).await
    }

    fn begin(&self, node: &Node) -> Connecting {
        let made = Connections::new(self.address.clone(), self.timeouts);
        let node = node.clone();
        let task = tokio::spawn(async move { made.own(&node, made.timeouts.response).await });
        let ended = |ended: Result<_, tokio::task::JoinError>| {
            ended.unwrap_or_else(|error| {
                Err(RedisError::from((ErrorKind::Io, "the connection was given up", error.to_string())))
            })
        };
        task.map(ended).boxed().shared()
    }
}
