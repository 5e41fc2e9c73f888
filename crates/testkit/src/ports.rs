//! Ports for servers that are about to start.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::Mutex;

/// Below those that the system gives to connections (from 32768 on), also with the 10,000 that Redis adds for a cluster's bus: a port
/// out of those may be a connection's by the time its server starts.
const SERVERS: Range<u16> = 10_300..22_700;

/// A port of 127.0.0.1 nobody listens at, another one each time.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let random = RandomState::new().hash_one(0) % u64::from(SERVERS.end - SERVERS.start);
        let port = SERVERS.start + random as u16;
        let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if GIVEN.lock().expect("ports").insert(port) && is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}
