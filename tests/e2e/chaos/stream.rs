//! A stream of events whose end is known.
//!
//! In: a seed. Out: Kafka's records and HTTP's calls in the order of sending, with duplicates, late, reordered and bad ones, and
//! what every user's history must be afterwards. No user has more than 100 events of a kind, so that trimming hides nothing.

use super::check::{Event, Sent, Way};
use crate::worlds::click;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Most events of a user.
const MOST_EVENTS: usize = 100;
/// How far from its place a reordered event may be sent.
const REORDERED_BY: usize = 40;
/// Of so many events one is followed by a bad record.
const BAD_EVERY: usize = 400;
/// Events of one HTTP call.
const CALL: usize = 20;
/// Of so many calls one is made again, though it was answered.
const REPEATED_EVERY: usize = 20;

/// One record of the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The user, so that an event goes to the user's partition; repeats may come out of another one.
    pub key: Option<String>,
    /// JSON, or what should be.
    pub value: String,
}

/// One HTTP call.
#[derive(Debug, Clone, PartialEq)]
pub struct Post {
    /// Part of the stream's time after which it is made.
    pub at: f64,
    pub events: Vec<Value>,
}

/// What is sent, and what must come of it.
pub struct Stream {
    /// Kafka's, in the order of sending; repeats and bad records included.
    pub sent: Vec<Message>,
    /// HTTP's.
    pub posts: Vec<Post>,
    /// Different events in both.
    pub events: usize,
    /// Values that must end as dead letters, sorted.
    pub bad: Vec<String>,
    /// User → events, newest first. Times of sending are those planned; HTTP's are not acknowledged yet.
    pub wanted: BTreeMap<String, Vec<Event>>,
}

impl Stream {
    /// So many different events, spread over `time`, with times of their own from `start_ms` on. Half of them come by Kafka.
    pub fn new(seed: u64, events: usize, time: Duration, start_ms: i64) -> Stream {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let users = events.div_ceil(MOST_EVENTS * 3 / 4);
        let mut wanted: BTreeMap<String, Vec<Event>> = BTreeMap::new();
        let (mut placed, mut posted) = (Vec::with_capacity(events * 5 / 8), Vec::with_capacity(events / 2));
        for number in 0..events {
            let user = loop {
                let user = format!("s{seed}-u{}", random.random_range(0..users));
                if wanted.get(&user).is_none_or(|kept| kept.len() < MOST_EVENTS) {
                    break user;
                }
            };
            // Equal times happen; the id decides then.
            let ts_ms = start_ms + (number as i64 / 4) * 10;
            let (id, is_impression) = (format!("{user}-{number}"), random.random_bool(0.25));
            let way = if random.random_bool(0.5) { Way::Kafka } else { Way::Http };
            let mut event = click(&user, &id, ts_ms);
            if is_impression {
                event["action"] = json!("impression");
            }
            let first = time.mul_f64(number as f64 / events as f64);
            match way {
                Way::Http => posted.push((number, event)),
                Way::Kafka => {
                    let message = Message { key: Some(user.clone()), value: event.to_string() };
                    place(message, number, events, &mut placed, &mut random);
                }
            }
            let sent = Sent { first, acked: None };
            wanted.entry(user).or_default().push(Event { ts_ms, id, is_impression, way, sent });
        }
        let bad: Vec<Message> = (0..events / BAD_EVERY).map(|number| bad_message(seed, number)).collect();
        placed.extend(bad.iter().cloned().enumerate().map(|(number, message)| (number * BAD_EVERY, message)));
        placed.sort_by_key(|(place, _)| *place);
        let mut sent: Vec<Message> = placed.into_iter().map(|(_, message)| message).collect();
        for window in sent.chunks_mut(REORDERED_BY) {
            window.shuffle(&mut random);
        }
        for kept in wanted.values_mut() {
            kept.sort_by(|one, other| (other.ts_ms, &other.id).cmp(&(one.ts_ms, &one.id)));
        }
        let mut bad: Vec<String> = bad.into_iter().map(|message| message.value).collect();
        bad.sort();
        Stream { sent, posts: calls(posted, events, &mut random), events, bad, wanted }
    }
}

/// Where an event goes: one in ten comes far too late, one in ten comes again some time later, half of those out of any
/// partition.
fn place(message: Message, number: usize, events: usize, placed: &mut Vec<(usize, Message)>, random: &mut ChaCha8Rng) {
    match random.random_range(0..10) {
        0 => placed.push((random.random_range(number..events), message)),
        1 => {
            let key = message.key.clone().filter(|_| random.random_bool(0.5));
            placed.push((random.random_range(number..events), Message { key, ..message.clone() }));
            placed.push((number, message));
        }
        _ => placed.push((number, message)),
    }
}

/// Calls of events in any order among themselves; some calls are made twice.
fn calls(posted: Vec<(usize, Value)>, events: usize, random: &mut ChaCha8Rng) -> Vec<Post> {
    let mut posts = Vec::new();
    for (number, part) in posted.chunks(CALL).enumerate() {
        let at = part.last().map_or(0.0, |(place, _)| *place as f64 / events as f64);
        let mut events: Vec<Value> = part.iter().map(|(_, event)| event.clone()).collect();
        events.shuffle(random);
        let post = Post { at, events };
        if number % REPEATED_EVERY == 0 {
            posts.push(Post { at: random.random_range(at..1.0), ..post.clone() });
        }
        posts.push(post);
    }
    posts.sort_by(|one, other| one.at.total_cmp(&other.at));
    posts
}

/// A record that no event can be made of; each is told from all others by its number.
fn bad_message(seed: u64, number: usize) -> Message {
    let name = format!("s{seed}-bad-{number}");
    let value = match number % 3 {
        0 => format!("{name} is no json"),
        1 => json!({"user_id": name, "item_id": "i1", "action": "waved", "ts_ms": 1_700_000_000_000_i64}).to_string(),
        _ => json!({"event_id": name, "item_id": "i1", "action": "click"}).to_string(),
    };
    Message { key: Some(name), value }
}

#[test]
fn the_same_seed_makes_the_same_stream() {
    let time = Duration::from_secs(20);
    let (one, other) = (Stream::new(7, 2000, time, 1000), Stream::new(7, 2000, time, 1000));
    assert_eq!((&one.sent, &one.posts), (&other.sent, &other.posts));
    assert_eq!(one.bad.len(), 5);
    assert!(one.wanted.values().all(|kept| kept.len() <= MOST_EVENTS));
    let all = || one.wanted.values().flatten();
    assert_eq!(all().count(), 2000);
    let by_http = all().filter(|event| event.way == Way::Http).count();
    assert!((800..1200).contains(&by_http), "{by_http}");
    let posted: usize = one.posts.iter().map(|post| post.events.len()).sum();
    assert!((by_http + 1..by_http + 200).contains(&posted), "{posted} of {by_http}, some twice");
    let repeats = one.sent.len() + by_http - 2000 - one.bad.len();
    assert!((50..200).contains(&repeats), "{repeats} repeats");
    assert!(all().all(|event| event.sent.first < time));
}
