//! Serving reads over connections of their own: fields of hashes in, the server's bytes out, nothing copied on the way.
//!
//! In: nodes, commands as they go over the wire. Out: [`Reply`]s. Caller: `link::reading`.
//!
//! | file | job |
//! |---|---|
//! | `reply` | where an answer ends, and the fields of one |
//! | `connection` | one pipelined connection, shared by all who read from a node |
//! | `stream` | TCP or TLS, and the login |
//!
//! This is the way of what goes well. There are no retries and no redirects here: a node without a standing connection, a connection that
//! breaks and an error in place of an answer send the read the general way (`link`), which has all of them.

mod connection;
mod reply;
mod stream;

pub(super) use connection::ReadConnection;
pub(super) use reply::{Replies, Reply};

use super::address::{Address, Node};
use super::pace::NodePace;
use parking_lot::Mutex;
use redis::ProtocolVersion;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After a connection could not be opened the next try is not before so long.
const PAUSE: Duration = Duration::from_millis(500);

/// Why there is no answer over such a connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The server cannot be reached.
    #[error("connect: {0}")]
    Connect(String),
    /// It does not let us in.
    #[error("login: {0}")]
    Login(String),
    /// The connection ended.
    #[error("closed: {0}")]
    Closed(String),
    /// It does not speak RESP2.
    #[error("an answer is no RESP2: {0}")]
    Malformed(&'static str),
}

/// A command as it goes over the wire, behind what `out` holds.
fn command(out: &mut Vec<u8>, parts: &[&str]) {
    array(out, parts.len());
    parts.iter().for_each(|part| bulk(out, part));
}

/// Of a command, or an answer: so many parts follow.
pub(super) fn array(out: &mut Vec<u8>, parts: usize) {
    head(out, b'*', parts);
}

/// Of either: one part.
pub(super) fn bulk(out: &mut Vec<u8>, part: impl AsRef<[u8]>) {
    let part = part.as_ref();
    head(out, b'$', part.len());
    out.extend_from_slice(part);
    out.extend_from_slice(b"\r\n");
}

fn head(out: &mut Vec<u8>, kind: u8, number: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A node's connection, and what is under way there.
pub(super) struct NodeConnection {
    pub connection: ReadConnection,
    pub pace: Arc<NodePace>,
}

/// Where a node's connection stands.
enum State {
    /// By the attempt of that number.
    Opening(u64),
    Open(Arc<NodeConnection>),
    Failed(Instant),
}

/// The connections for reads, one a node.
pub(super) struct ReadConnections(Arc<Opener>);

struct Opener {
    address: Address,
    limit: Duration,
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    attempts: u64,
    states: HashMap<Node, State>,
}

impl ReadConnections {
    /// To servers of that address; `limit` is how long a connection may take to stand.
    pub fn new(address: Address, limit: Duration) -> ReadConnections {
        ReadConnections(Arc::new(Opener { address, limit, nodes: Mutex::default() }))
    }

    /// The node's connection, if it stands; else it is being opened, unless that failed a moment ago, and nobody waits for it.
    pub fn standing(&self, node: &Node, pace: impl FnOnce() -> Arc<NodePace>) -> Option<Arc<NodeConnection>> {
        // The third version of the protocol has to be asked for in the url; its users read the general way.
        if self.0.address.login().protocol() != ProtocolVersion::RESP2 {
            return None;
        }
        let mut nodes = self.0.nodes.lock();
        match nodes.states.get(node) {
            Some(State::Open(open)) if open.connection.is_open() => return Some(open.clone()),
            Some(State::Opening(_)) => return None,
            Some(State::Failed(at)) if at.elapsed() < PAUSE => return None,
            _ => {}
        }
        nodes.attempts += 1;
        let attempt = nodes.attempts;
        let failed_before =
            matches!(nodes.states.insert(node.clone(), State::Opening(attempt)), Some(State::Failed(_)));
        drop(nodes);
        tokio::spawn(self.0.clone().open(node.clone(), pace(), attempt, failed_before));
        None
    }

    /// This connection is given to nobody any more; one that was opened since stays.
    pub fn drop_broken(&self, node: &Node, broken: &Arc<NodeConnection>) {
        let mut nodes = self.0.nodes.lock();
        if matches!(nodes.states.get(node), Some(State::Open(open)) if Arc::ptr_eq(open, broken)) {
            nodes.states.remove(node);
        }
    }

    /// The next read finds no connection.
    pub fn forget(&self, node: &Node) {
        self.0.nodes.lock().states.remove(node);
    }

    /// Of all others the connections go.
    pub fn retain(&self, masters: &[Node]) {
        self.0.nodes.lock().states.retain(|node, _| masters.contains(node));
    }
}

impl Opener {
    async fn open(self: Arc<Self>, node: Node, pace: Arc<NodePace>, attempt: u64, failed_before: bool) {
        let state = match stream::open(&self.address, &node, self.limit).await {
            Ok(stream) => State::Open(Arc::new(NodeConnection { connection: ReadConnection::start(stream), pace })),
            Err(error) => {
                // Reads go the general way, which says what is wrong with the server itself.
                let node = super::link::name(&node);
                match failed_before {
                    false => tracing::warn!(%node, %error, "no connection for reads; they go the slower way"),
                    true => tracing::debug!(%node, %error, "no connection for reads"),
                }
                State::Failed(Instant::now())
            }
        };
        // It may have been forgotten meanwhile: then whoever comes next opens another one.
        if let Some(known) = self.nodes.lock().states.get_mut(&node)
            && matches!(known, State::Opening(number) if *number == attempt)
        {
            *known = state;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pace::Pace;
    use super::*;

    fn connections(port: u16) -> (ReadConnections, Node) {
        let address = Address::parse(&format!("redis://127.0.0.1:{port}")).unwrap();
        let node = address.seeds[0].clone();
        (ReadConnections::new(address, Duration::from_secs(5)), node)
    }

    fn open(node: &Node) -> (Arc<NodeConnection>, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let connection = ReadConnection::start(ours);
        (Arc::new(NodeConnection { connection, pace: Pace::default().of(node) }), theirs)
    }

    #[tokio::test]
    async fn a_broken_connection_takes_no_newer_one_with_it() {
        let (connections, node) = connections(1);
        let ((old, _their_old), (new, _their_new)) = (open(&node), open(&node));
        let pace = || Pace::default().of(&node);
        connections.0.nodes.lock().states.insert(node.clone(), State::Open(new.clone()));
        connections.drop_broken(&node, &old);
        assert!(Arc::ptr_eq(&connections.standing(&node, pace).unwrap(), &new));
        connections.retain(std::slice::from_ref(&node));
        assert!(connections.standing(&node, pace).is_some());
        connections.drop_broken(&node, &new);
        assert!(connections.0.nodes.lock().states.is_empty());
    }

    #[tokio::test]
    async fn an_attempt_that_was_forgotten_changes_nothing() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (connections, node) = connections(closed);
        let (open, _theirs) = open(&node);
        connections.0.nodes.lock().states.insert(node.clone(), State::Open(open));
        connections.0.clone().open(node.clone(), Pace::default().of(&node), 7, true).await;
        assert!(matches!(connections.0.nodes.lock().states.get(&node), Some(State::Open(_))));
    }

    /// A server that accepts and hangs up is none, and is not tried again at once.
    #[tokio::test]
    async fn who_accepts_and_hangs_up_is_left_alone_for_a_while() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (connections, node) = connections(listener.local_addr().unwrap().port());
        let pace = || Pace::default().of(&node);
        assert!(connections.standing(&node, pace).is_none());
        drop(listener.accept().await.unwrap());
        while !matches!(connections.0.nodes.lock().states.get(&node), Some(State::Failed(_))) {
            tokio::task::yield_now().await;
        }
        assert!(connections.standing(&node, || unreachable!("not yet")).is_none());
    }
}
