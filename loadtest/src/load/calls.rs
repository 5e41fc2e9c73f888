//! What is sent: whole requests, made before the clock runs wherever they can be.
//!
//! In: who is asked for. Out: [`Call`]s, one after another, each of a kind (a number that a scenario names).

use super::LoadError;
use crate::popularity::Popularity;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// One request.
#[derive(Clone)]
pub struct Call {
    /// Which tally it belongs to.
    pub kind: usize,
    /// Head and body.
    pub bytes: Arc<[u8]>,
}

/// Where the next call comes from. Every thread of the generator has its own.
pub trait Source {
    /// Never ends.
    fn next(&mut self) -> Call;
}

/// What all requests of a run have in common.
#[derive(Debug, Clone)]
pub struct Peer {
    /// `host:port`.
    pub address: String,
    /// Sent as `Authorization: Bearer`, if there is one.
    pub key: Option<String>,
}

impl Peer {
    /// A whole request, in JSON.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Arc<[u8]> {
        self.request_of(method, path, "application/json", body.as_bytes())
    }

    /// A whole request in another encoding, which the answer shall have, too.
    pub fn request_of(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Arc<[u8]> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        if let Some(key) = &self.key {
            text.push_str(&format!("authorization: Bearer {key}\r\n"));
        }
        if kind != "application/json" {
            text.push_str(&format!("accept: {kind}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("content-type: {kind}\r\ncontent-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        [text.as_bytes(), body].concat().into()
    }
}

/// Requests that are there already, drawn by the popularity of what they are about.
pub struct Prepared {
    kind: usize,
    requests: Arc<Vec<Arc<[u8]>>>,
    popularity: Popularity,
}

impl Prepared {
    /// `requests[rank]` is drawn as often as its rank says; exponent 0 draws all alike.
    pub fn new(
        kind: usize,
        requests: Arc<Vec<Arc<[u8]>>>,
        exponent: f64,
        (seed, thread): (u64, usize),
    ) -> Result<Prepared, LoadError> {
        let popularity = Popularity::new(requests.len(), exponent, seed, thread as u64)?;
        Ok(Prepared { kind, requests, popularity })
    }
}

impl Source for Prepared {
    fn next(&mut self) -> Call {
        Call { kind: self.kind, bytes: self.requests[self.popularity.draw()].clone() }
    }
}

/// New events of the same users, each with an id that no run had before.
pub struct Events {
    kind: usize,
    peer: Peer,
    popularity: Popularity,
    user: fn(usize) -> String,
    run: String,
    number: u64,
}

impl Events {
    /// Events of `users` users; their ids begin with the time, so that no two runs share one.
    pub fn new(
        kind: usize,
        peer: Peer,
        (users, exponent): (usize, f64),
        user: fn(usize) -> String,
        (seed, thread): (u64, usize),
    ) -> Result<Events, LoadError> {
        let popularity = Popularity::new(users, exponent, seed ^ 0x5eed, thread as u64)?;
        Ok(Events { kind, peer, popularity, user, run: format!("{}-{thread}", now_ms()), number: 0 })
    }
}

impl Source for Events {
    fn next(&mut self) -> Call {
        self.number += 1;
        let (user, item) = ((self.user)(self.popularity.draw()), self.number % 500);
        // One in ten buys, which makes the user due at once.
        let action = if self.number.is_multiple_of(10) { "purchase" } else { "click" };
        let body = format!(
            r#"{{"event_id":"{}-{}","user_id":"{user}","item_id":"i{item}","action":"{action}","ts_ms":{}}}"#,
            self.run,
            self.number,
            now_ms()
        );
        Call { kind: self.kind, bytes: self.peer.request("POST", "/v1/events", &body) }
    }
}

/// Two sources, of which the first has a share of the calls.
pub struct Mixed {
    /// Of the first, 0 to 1.
    share: f64,
    parts: (Box<dyn Source>, Box<dyn Source>),
    rng: ChaCha8Rng,
}

impl Mixed {
    /// Which is next depends on the seed alone.
    pub fn new(share: f64, first: Box<dyn Source>, second: Box<dyn Source>, (seed, thread): (u64, usize)) -> Mixed {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x313);
        rng.set_stream(thread as u64);
        Mixed { share, parts: (first, second), rng }
    }
}

impl Source for Mixed {
    fn next(&mut self) -> Call {
        if self.rng.random::<f64>() < self.share { self.parts.0.next() } else { self.parts.1.next() }
    }
}

/// Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_whole() {
        let peer = Peer { address: "127.0.0.1:1".into(), key: Some("k".into()) };
        let text = String::from_utf8(peer.request("POST", "/v1/features", "{}").to_vec()).expect("text");
        assert_eq!(
            text,
            "POST /v1/features HTTP/1.1\r\nhost: 127.0.0.1:1\r\nauthorization: Bearer k\r\ncontent-type: application/json\r\n\
             content-length: 2\r\n\r\n{}"
        );
    }

    #[test]
    fn a_mix_keeps_its_share_and_events_their_own_ids() {
        let peer = Peer { address: "a:1".into(), key: None };
        let user = |rank| format!("u{rank}");
        let reads = Arc::new(vec![peer.request("GET", "/a", ""), peer.request("GET", "/b", "")]);
        let reads = Box::new(Prepared::new(1, reads, 1.0, (1, 0)).expect("reads"));
        let events = Box::new(Events::new(0, peer, (10, 1.0), user, (1, 0)).expect("events"));
        let mut mixed = Mixed::new(0.25, events, reads, (1, 0));
        let calls: Vec<Call> = (0..4000).map(|_| mixed.next()).collect();
        let events: std::collections::BTreeSet<&[u8]> =
            calls.iter().filter(|call| call.kind == 0).map(|call| &call.bytes[..]).collect();
        assert!((850..1150).contains(&events.len()), "{} different events of 4000 calls", events.len());
        assert_eq!(calls.iter().filter(|call| call.kind == 0).count(), events.len());
    }
}
