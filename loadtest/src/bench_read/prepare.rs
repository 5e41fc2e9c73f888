//! What each way sends, and what the smallest handler answers: taken from taiji's own answers before anything is measured.
//!
//! In: a filled service. Out: requests and commands by way. A side that would do less than it seems is refused here.

use super::BenchError;
use super::ways::{MANY, Shape, Way, Who};
use crate::load::calls::{Peer, Prepared as PreparedCalls, Source};
use crate::load::{LoadError, http};
use crate::popularity::Popularity;
use crate::raw::{FIELDS, RawCall, key_of};
use crate::rig::{Rig, Started, call, user};
use redis::Connection;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The rig's user.
pub(super) const LOGIN: [&str; 2] = ["service", "pw"];
/// Different calls for many users.
const BATCHES: usize = 64;
const NATIVE: &str = "/v1/features";
const FEAST: &str = "/get-online-features";
const FEAST_FEATURES: [&str; 3] = ["taiji_intra:sparse_ids", "taiji_intra:category_ids", "taiji_intra:has_llm_feature"];
const SOON: Duration = Duration::from_secs(10);

/// One way's calls.
pub(super) enum Prepared {
    /// Over HTTP.
    Requests(Arc<Vec<Arc<[u8]>>>),
    /// Straight to Redis.
    Commands(Vec<RawCall>),
}

/// All ways' calls.
pub(super) struct Ready {
    pub(super) of: BTreeMap<&'static str, Prepared>,
    /// Mean length of an answer's body, by the way of ours.
    lengths: BTreeMap<&'static str, f64>,
}

impl Ready {
    /// All calls come alike.
    pub(super) fn source(&self, way: &'static str, thread: usize) -> Result<Box<dyn Source>, LoadError> {
        let none = Arc::new(Vec::new());
        let requests = match self.of.get(way) {
            Some(Prepared::Requests(requests)) => requests,
            _ => &none,
        };
        Ok(Box::new(PreparedCalls::new(0, requests.clone(), 0.0, (1, thread))?))
    }

    pub(super) fn bytes(&self) -> Value {
        json!(self.lengths)
    }
}

/// Fills Redis with what the smallest handler shall answer, and compares one answer of each way with ours.
pub(super) fn prepare(
    (rig, started): (&Rig, &Started),
    (handler, feast): (&str, &[Peer]),
    users: usize,
    ways: &[&'static Way],
) -> Result<Ready, BenchError> {
    let mut redis = redis::Client::open(started.redis.url())?.get_connection()?;
    let alone: Vec<Vec<String>> = (0..users).map(|rank| vec![user(rank)]).collect();
    let mut popularity = Popularity::new(users, 0.0, 1, 0).map_err(LoadError::from)?;
    let many: Vec<Vec<String>> =
        (0..BATCHES).map(|_| popularity.draw_different(MANY).into_iter().map(user).collect()).collect();
    let space = space(rig)?;
    // The same key as ours, so that heads are of one length; it looks at none.
    let handler = Peer { address: handler.to_string(), key: rig.peer.key.clone() };
    let mut ready = Ready { of: BTreeMap::new(), lengths: BTreeMap::new() };
    for way in ways {
        let asked = if way.users == 1 { &alone } else { &many };
        let bodies: Vec<Vec<u8>> = asked.iter().map(|users| body(way.shape, users)).collect();
        let of = |peer: &Peer| -> Vec<Arc<[u8]>> {
            bodies.iter().map(|body| peer.request_of("POST", path(way.shape), kind(way.shape), body)).collect()
        };
        let prepared = match way.who {
            Who::Ours => {
                let requests = of(&rig.peer);
                ready.lengths.insert(way.name, keep_answers(rig, &mut redis, way, &requests)?);
                Prepared::Requests(Arc::new(requests))
            }
            Who::Smallest => {
                let path = |place| format!("/smallest/{}", key(way.shape, way.users, place));
                let request =
                    |(place, body): (usize, &Vec<u8>)| handler.request_of("POST", &path(place), kind(way.shape), body);
                let requests: Vec<Arc<[u8]>> = bodies.iter().enumerate().map(request).collect();
                compare(rig, way.name, &of(&rig.peer)[0], &handler.address, &requests[0])?;
                Prepared::Requests(Arc::new(requests))
            }
            Who::Feast(number) => {
                let requests = of(&feast[number]);
                must_know(way, &feast[number], &requests[0])?;
                Prepared::Requests(Arc::new(requests))
            }
            Who::Raw => Prepared::Commands(commands(&mut redis, way.name, asked, &space)?),
        };
        ready.of.insert(way.name, prepared);
    }
    Ok(ready)
}

fn path(shape: Shape) -> &'static str {
    match shape {
        Shape::Protobuf | Shape::Native => NATIVE,
        Shape::Feast => FEAST,
    }
}

/// Media type of body and answer.
fn kind(shape: Shape) -> &'static str {
    if shape == Shape::Protobuf { "application/x-protobuf" } else { "application/json" }
}

fn body(shape: Shape, users: &[String]) -> Vec<u8> {
    match shape {
        // `FeaturesRequest`: users are field 1, groups field 2, both texts of less than 128 bytes.
        Shape::Protobuf => {
            let text = |field: u8, text: &str| [&[field << 3 | 2, text.len() as u8], text.as_bytes()].concat();
            let users = users.iter().flat_map(|user| text(1, user));
            users.chain(text(2, "intra")).collect()
        }
        Shape::Native => json!({"users": users, "groups": ["intra"]}).to_string().into_bytes(),
        Shape::Feast => json!({"features": FEAST_FEATURES, "entities": {"user_id": users}}).to_string().into_bytes(),
    }
}

fn key(shape: Shape, users: usize, place: usize) -> String {
    let shape = match shape {
        Shape::Protobuf => "protobuf",
        Shape::Native => "native",
        Shape::Feast => "feast",
    };
    format!("smallest-{shape}-{users}-{place}")
}

/// Our answers into Redis, for the smallest handler; their mean length.
fn keep_answers(rig: &Rig, redis: &mut Connection, way: &Way, requests: &[Arc<[u8]>]) -> Result<f64, BenchError> {
    let mut bytes = 0;
    for (place, request) in requests.iter().enumerate() {
        let answer = answer_of(rig, way.name, request)?;
        redis::cmd("SET").arg(key(way.shape, way.users, place)).arg(&answer).exec(redis)?;
        bytes += answer.len();
    }
    Ok(bytes as f64 / requests.len().max(1) as f64)
}

/// What taiji answers.
fn answer_of(rig: &Rig, way: &'static str, request: &[u8]) -> Result<Vec<u8>, BenchError> {
    let unequal = |what: String| BenchError::Unequal { way, what };
    let (status, answer) = http::ask(&rig.peer.address, request, SOON).map_err(|error| unequal(error.to_string()))?;
    if status != 200 {
        return Err(unequal(format!("taiji answers {status}: {}", String::from_utf8_lossy(&answer))));
    }
    Ok(answer)
}

/// The space that the features are of.
fn space(rig: &Rig) -> Result<String, BenchError> {
    let body = String::from_utf8_lossy(&body(Shape::Native, &[user(0)])).into_owned();
    let answer = call(&rig.peer, "POST", NATIVE, &body, "the space")?;
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let unequal = || BenchError::Unequal { way: "raw-one", what: "an answer of ours names no space".to_string() };
    Ok(answer["space"].as_str().ok_or_else(unequal)?.to_string())
}

/// Both must answer the same bytes.
fn compare(rig: &Rig, way: &'static str, asked: &[u8], handler: &str, request: &[u8]) -> Result<(), BenchError> {
    let ours = answer_of(rig, way, asked)?;
    let unequal = |what: String| BenchError::Unequal { way, what };
    let theirs = http::ask(handler, request, SOON).map_err(|error| unequal(error.to_string()))?;
    if theirs != (200, ours) {
        return Err(unequal(format!("it answers {} with {} other bytes than taiji", theirs.0, theirs.1.len())));
    }
    Ok(())
}

/// Feast must have a value for every feature of every user.
fn must_know(way: &Way, feast: &Peer, request: &[u8]) -> Result<(), BenchError> {
    let unequal = |what: String| BenchError::Unequal { way: way.name, what };
    let (status, answer) = http::ask(&feast.address, request, SOON).map_err(|error| unequal(error.to_string()))?;
    let parsed: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let statuses = parsed["results"].as_array().into_iter().flatten().flat_map(|one| one["statuses"].as_array());
    let present = statuses.flatten().filter(|status| *status == "PRESENT").count();
    // The users themselves stand in a column, too.
    if present != way.users * (FEAST_FEATURES.len() + 1) {
        let said: String = String::from_utf8_lossy(&answer).chars().take(300).collect();
        return Err(unequal(format!("{present} values of {} users, status {status}: {said}", way.users)));
    }
    Ok(())
}

/// A command a user, as taiji sends them; there must be features to find.
fn commands(
    redis: &mut Connection,
    way: &'static str,
    asked: &[Vec<String>],
    space: &str,
) -> Result<Vec<RawCall>, BenchError> {
    let key = key_of(&asked[0][0], space);
    let found: Vec<Option<Vec<u8>>> = redis::cmd("HMGET").arg(&key).arg(&FIELDS).query(redis)?;
    if found.iter().any(Option::is_none) {
        let what = format!("a user's hash {key} lacks one of {FIELDS:?}");
        return Err(BenchError::Unequal { way, what });
    }
    Ok(asked.iter().map(|users| RawCall::read(users, space)).collect())
}
