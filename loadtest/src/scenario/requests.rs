//! The reads of a scenario, made before it begins.
//!
//! In: how many users there are and how they are asked for. Out: sources of calls, one for each thread.

use super::Pace;
use crate::load::LoadError;
use crate::load::calls::{Events, Mixed, Peer, Prepared, Source};
use crate::popularity::Popularity;
use crate::rig::user;
use serde_json::json;
use std::sync::Arc;

/// Different batches of users; each is sent as often as any other.
const BATCHES: usize = 256;

/// Reads that are ready to be sent.
pub(crate) struct Reads {
    requests: Arc<Vec<Arc<[u8]>>>,
    exponent: f64,
    seed: u64,
}

/// Whom one read asks for: each user alone, or batches of them that the law drew.
pub(crate) fn batches(users: usize, pace: &Pace) -> Result<Vec<Vec<String>>, LoadError> {
    let (none, more) = ("--users-per-call", "at least 1, and no more than there are users");
    if pace.users_per_call == 0 || pace.users_per_call > users {
        return Err(LoadError::Setting { setting: none, what: more });
    }
    if pace.users_per_call == 1 {
        return Ok((0..users).map(|rank| vec![user(rank)]).collect());
    }
    let mut popularity = Popularity::new(users, pace.exponent, pace.seed, u64::MAX)?;
    let batch = |_| popularity.draw_different(pace.users_per_call).into_iter().map(user).collect();
    Ok((0..BATCHES).map(batch).collect())
}

impl Reads {
    /// `POST /v1/features` of the group `intra`.
    pub(crate) fn native(peer: &Peer, users: usize, pace: &Pace) -> Result<Reads, LoadError> {
        let request = |users: &Vec<String>| {
            peer.request("POST", "/v1/features", &json!({"users": users, "groups": ["intra"]}).to_string())
        };
        Ok(Reads::of(batches(users, pace)?.iter().map(request).collect(), pace))
    }

    /// Of requests by rank, or, where each asks for several users, of requests that are all alike.
    pub(crate) fn of(requests: Vec<Arc<[u8]>>, pace: &Pace) -> Reads {
        let exponent = if pace.users_per_call == 1 { pace.exponent } else { 0.0 };
        Reads { requests: Arc::new(requests), exponent, seed: pace.seed }
    }

    /// A thread's source, of that kind.
    pub(crate) fn source(&self, kind: usize, thread: usize) -> Result<Box<dyn Source>, LoadError> {
        Ok(Box::new(Prepared::new(kind, self.requests.clone(), self.exponent, (self.seed, thread))?))
    }

    /// The same with events among them: kind 0 reads, kind 1 events.
    pub(crate) fn with_events(
        &self,
        (peer, users): (&Peer, usize),
        share: f64,
        pace: &Pace,
        thread: usize,
    ) -> Result<Box<dyn Source>, LoadError> {
        if !(0.0..=1.0).contains(&share) {
            return Err(LoadError::Setting { setting: "--events", what: "a share of the calls, 0 to 1" });
        }
        let events = Events::new(1, peer.clone(), (users, pace.exponent), user, (pace.seed, thread))?;
        let reads = self.source(0, thread)?;
        Ok(Box::new(Mixed::new(share, Box::new(events), reads, (pace.seed, thread))))
    }
}
