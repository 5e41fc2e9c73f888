//! A stream of events whose end is known, and the checker.
//!
//! In: a seed. Out: records in the order of sending, with duplicates, late, reordered and bad ones, and what every user's
//! history must be afterwards. No user has more than 100 events of a kind, so that trimming hides nothing.

use crate::worlds::click;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most events of a user.
const MOST_EVENTS: usize = 100;
/// How far from its place a reordered event may be sent.
const REORDERED_BY: usize = 40;
/// Of so many events one is followed by a bad record.
const BAD_EVERY: usize = 400;

/// One record of the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The user, so that an event goes to the user's partition; repeats may come out of another one.
    pub key: Option<String>,
    /// JSON, or what should be.
    pub value: String,
}

/// What is sent, and what must come of it.
pub struct Stream {
    /// In the order of sending; repeats and bad records included.
    pub sent: Vec<Message>,
    /// Different events in it.
    pub events: usize,
    /// Values that must end as dead letters, sorted.
    pub bad: Vec<String>,
    /// User → (time, event id, whether it is an impression), newest first.
    pub wanted: BTreeMap<String, Vec<(i64, String, bool)>>,
}

impl Stream {
    /// At least `events` different events, from `start_ms` on.
    pub fn new(seed: u64, events: usize, start_ms: i64) -> Stream {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let users = events.div_ceil(MOST_EVENTS * 3 / 4);
        let mut wanted: BTreeMap<String, Vec<(i64, String, bool)>> = BTreeMap::new();
        let mut placed = Vec::with_capacity(events * 5 / 4);
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
            let mut event = click(&user, &id, ts_ms);
            if is_impression {
                event["action"] = json!("impression");
            }
            let message = Message { key: Some(user.clone()), value: event.to_string() };
            wanted.entry(user).or_default().push((ts_ms, id, is_impression));
            place(message, number, events, &mut placed, &mut random);
        }
        let bad: Vec<Message> = (0..events / BAD_EVERY).map(|number| bad_message(seed, number)).collect();
        placed.extend(bad.iter().cloned().enumerate().map(|(number, message)| (number * BAD_EVERY, message)));
        placed.sort_by_key(|(place, _)| *place);
        let mut sent: Vec<Message> = placed.into_iter().map(|(_, message)| message).collect();
        for window in sent.chunks_mut(REORDERED_BY) {
            window.shuffle(&mut random);
        }
        for kept in wanted.values_mut() {
            kept.sort_by(|one, other| other.cmp(one));
        }
        let mut bad: Vec<String> = bad.into_iter().map(|message| message.value).collect();
        bad.sort();
        Stream { sent, events, bad, wanted }
    }

    /// What is wrong with a user's history (`GET /v1/users/{id}/history`), if anything is.
    pub fn violations(&self, user: &str, history: &Value) -> Vec<String> {
        let mut found = Vec::new();
        let wanted = &self.wanted[user];
        for (list, impressions) in [("engagements", false), ("impressions", true)] {
            let of_kind = wanted.iter().filter(|(_, _, is_impression)| *is_impression == impressions);
            let wanted: Vec<(i64, &str)> = of_kind.map(|(ts_ms, id, _)| (*ts_ms, id.as_str())).collect();
            let rows = history[list].as_array().map(Vec::as_slice).unwrap_or_default();
            let kept: Vec<(i64, &str)> = rows
                .iter()
                .map(|row| (row["ts_ms"].as_i64().unwrap_or_default(), row["event_id"].as_str().unwrap_or_default()))
                .collect();
            let lost = wanted.iter().filter(|event| !kept.contains(event)).count();
            let foreign = kept.iter().filter(|event| !wanted.contains(event)).count();
            if lost + foreign > 0 {
                found.push(format!("{user}: {lost} {list} lost, {foreign} nobody sent"));
            } else if kept.len() != wanted.len() {
                found.push(format!("{user}: {} {list} twice", kept.len() - wanted.len()));
            } else if kept != wanted {
                found.push(format!("{user}: {list} out of order"));
            }
        }
        if history["seq"].as_u64() != Some(wanted.len() as u64) {
            found.push(format!("{user}: seq is {}, {} events were sent", history["seq"], wanted.len()));
        }
        found
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
fn the_same_seed_makes_the_same_stream_and_the_checker_sees_every_kind_of_damage() {
    let (one, other) = (Stream::new(7, 2000, 1000), Stream::new(7, 2000, 1000));
    assert_eq!(one.sent, other.sent);
    let repeats = one.sent.len() - 2000 - one.bad.len();
    assert!((100..400).contains(&repeats) && one.bad.len() == 5, "{repeats} repeats, {} bad", one.bad.len());
    assert!(one.wanted.values().all(|kept| kept.len() <= MOST_EVENTS));
    assert_eq!(one.wanted.values().map(Vec::len).sum::<usize>(), 2000);
    let (user, kept) = one.wanted.first_key_value().expect("a user");
    let rows = |impressions: bool| -> Vec<Value> {
        let of_kind = kept.iter().filter(|(_, _, is_impression)| *is_impression == impressions);
        of_kind.map(|(ts_ms, id, _)| json!({"ts_ms": ts_ms, "event_id": id})).collect()
    };
    let history = json!({"engagements": rows(false), "impressions": rows(true), "seq": kept.len()});
    assert_eq!(one.violations(user, &history), Vec::<String>::new());
    let damage = |change: fn(&mut Vec<Value>)| {
        let mut damaged = history.clone();
        change(damaged["engagements"].as_array_mut().expect("list"));
        one.violations(user, &damaged).join("; ")
    };
    assert!(damage(|rows| drop(rows.remove(2))).contains("1 engagements lost"));
    assert!(damage(|rows| rows.insert(1, rows[0].clone())).contains("1 engagements twice"));
    assert!(damage(|rows| rows.swap(0, 1)).contains("out of order"));
    assert!(damage(|rows| rows.push(json!({"ts_ms": 1, "event_id": "x"}))).contains("1 nobody sent"));
    let mut counted = history.clone();
    counted["seq"] = json!(kept.len() + 1);
    assert!(one.violations(user, &counted).join("").contains("seq is"));
}
