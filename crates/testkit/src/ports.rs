//! Ports for servers that are about to start.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Mutex;

/// A port of 127.0.0.1 nobody listens at, another one each time: the system may name one again that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
        if GIVEN.lock().expect("ports").insert(port) {
            return port;
        }
    }
}
