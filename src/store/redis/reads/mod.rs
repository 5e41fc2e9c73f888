//! Serving reads over connections of their own: fields of hashes in, the server's bytes out, nothing copied on the way.
//!
//! In: nodes, commands as they go over the wire. Out: [`Reply`]s. Caller: `link::reading`.
//!
//! | file | job |
//! |---|---|
//! | `reply` | where an answer ends, and the fields of one |
//! | `connection` | one pipelined connection, shared by all readers of a node |
//! | `stream` | TCP or TLS, and the login |
//!
//! This is the way of what goes well. There are no retries, no redirects and no patience here: a node without a standing connection, a
//! connection that breaks and an error in place of an answer send the reader the general way (`link`), which has all of them.

mod connection;
mod reply;
mod stream;

pub(super) use connection::ReadConnection;
pub(super) use reply::{Replies, Reply};

use super::address::{Address, Node};
use super::link::Timeouts;
use super::pace::NodePace;
use parking_lot::Mutex;
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

/// Of a command: so many parts follow.
pub(super) fn array(out: &mut Vec<u8>, parts: usize) {
    head(out, b'*', parts);
}

/// Of a command: one part.
pub(super) fn bulk(out: &mut Vec<u8>, part: &str) {
    head(out, b'$', part.len());
    out.extend_from_slice(part.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn head(out: &mut Vec<u8>, kind: u8, number: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A node's connection, and what is under way there.
pub(super) struct Reader {
    pub connection: ReadConnection,
    pub pace: Arc<NodePace>,
}

/// Where a node's connection stands.
enum State {
    Opening,
    Open(Arc<Reader>),
    Failed(Instant),
}

/// The connections for reads, one a node.
pub(super) struct Readers(Arc<Opener>);

struct Opener {
    address: Address,
    timeouts: Timeouts,
    nodes: Mutex<HashMap<Node, State>>,
}

impl Readers {
    pub fn new(address: Address, timeouts: Timeouts) -> Readers {
        Readers(Arc::new(Opener { address, timeouts, nodes: Mutex::default() }))
    }

    /// The node's connection, if it stands; else it is being opened, unless that failed a moment ago, and nobody waits for it.
    pub fn standing(&self, node: &Node, pace: impl FnOnce() -> Arc<NodePace>) -> Option<Arc<Reader>> {
        let mut nodes = self.0.nodes.lock();
        match nodes.get(node) {
            Some(State::Open(reader)) if reader.connection.is_open() => return Some(reader.clone()),
            Some(State::Opening) => return None,
            Some(State::Failed(at)) if at.elapsed() < PAUSE => return None,
            _ => {}
        }
        nodes.insert(node.clone(), State::Opening);
        drop(nodes);
        tokio::spawn(self.0.clone().open(node.clone(), pace()));
        None
    }

    /// Makes the connection anew if it leaves a PING without an answer for as long as any call may take.
    pub async fn check(&self, node: &Node) {
        let reader = match self.0.nodes.lock().get(node) {
            Some(State::Open(reader)) => reader.clone(),
            _ => return,
        };
        let answer = reader.connection.ask(1, |out| command(out, &["PING"]));
        if !matches!(tokio::time::timeout(self.0.timeouts.response, answer).await, Ok(Ok(_))) {
            self.forget(node);
        }
    }

    /// The next reader finds none.
    pub fn forget(&self, node: &Node) {
        self.0.nodes.lock().remove(node);
    }
}

impl Opener {
    async fn open(self: Arc<Self>, node: Node, pace: Arc<NodePace>) {
        let opened = stream::open(&self.address, &node, self.timeouts.connect).await;
        let state = match opened {
            Ok(stream) => State::Open(Arc::new(Reader { connection: ReadConnection::start(stream), pace })),
            Err(error) => {
                // Readers go the general way, which says what is wrong.
                tracing::debug!(node = %super::link::name(&node), %error, "no connection for reads");
                State::Failed(Instant::now())
            }
        };
        // It may have been forgotten meanwhile: then whoever comes next opens another one.
        if let Some(known) = self.nodes.lock().get_mut(&node) {
            *known = state;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pace::Pace;
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const SHORT: Duration = Duration::from_millis(50);

    fn readers(port: u16) -> (Readers, Node) {
        let address = Address::parse(&format!("redis://127.0.0.1:{port}")).unwrap();
        let node = address.seeds[0].clone();
        (Readers::new(address, Timeouts { connect: SHORT, response: SHORT, retries: 0 }), node)
    }

    #[tokio::test]
    async fn a_connection_that_answers_no_ping_goes_and_one_that_does_stays() {
        for answers in [true, false] {
            let (readers, node) = readers(1);
            let (ours, mut theirs) = tokio::io::duplex(1 << 10);
            let pace = || Pace::default().of(&node);
            let reader = Reader { connection: ReadConnection::start(ours), pace: pace() };
            readers.0.nodes.lock().insert(node.clone(), State::Open(Arc::new(reader)));
            assert!(readers.standing(&node, pace).is_some());
            let server = async {
                let mut asked = [0; 14];
                theirs.read_exact(&mut asked).await.unwrap();
                assert_eq!(&asked, b"*1\r\n$4\r\nPING\r\n");
                if answers {
                    theirs.write_all(b"+PONG\r\n").await.unwrap();
                }
            };
            tokio::join!(readers.check(&node), server);
            assert_eq!(readers.0.nodes.lock().contains_key(&node), answers);
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_not_tried_again_at_once() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (readers, node) = readers(closed);
        let pace = || Pace::default().of(&node);
        assert!(readers.standing(&node, pace).is_none());
        while !matches!(readers.0.nodes.lock().get(&node), Some(State::Failed(_))) {
            tokio::task::yield_now().await;
        }
        assert!(readers.standing(&node, || unreachable!("not yet")).is_none());
    }
}
