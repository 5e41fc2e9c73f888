//! A stream of events whose end is known, and the checker.
//!
//! In: a seed. Out: events in the order of sending, with duplicates, late and reordered ones, and what every user's history
//! must be afterwards. No user has more than 100 events of a kind, so that trimming hides nothing.

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

/// What is sent, and what must come of it.
pub struct Stream {
    /// In the order of sending; duplicates included.
    pub sent: Vec<Value>,
    /// User → (time, event id, whether it is an impression), newest first.
    pub wanted: BTreeMap<String, Vec<(i64, String, bool)>>,
}

impl Stream {
    /// At least `events` different events, from `start_ms` on.
    pub fn new(seed: u64, events: usize, start_ms: i64) -> Stream {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let users = events.div_ceil(MOST_EVENTS * 3 / 4);
        let mut wanted: BTreeMap<String, Vec<(i64, String, bool)>> = BTreeMap::new();
        let mut sent = Vec::with_capacity(events * 5 / 4);
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
            wanted.entry(user).or_default().push((ts_ms, id, is_impression));
            sent.push(event);
        }
        disturb(&mut sent, &mut random);
        for kept in wanted.values_mut() {
            kept.sort_by(|one, other| other.cmp(one));
        }
        Stream { sent, wanted }
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

/// One in ten is sent twice, one in ten far too late, all a little out of order.
fn disturb(sent: &mut Vec<Value>, random: &mut ChaCha8Rng) {
    let count = sent.len();
    for place in 0..count {
        let again = match random.random_range(0..10) {
            0 => random.random_range(place..count),
            1 => place,
            _ => continue,
        };
        let event = sent[place].clone();
        match again == place {
            true => sent.push(event),
            false => sent.swap(place, again),
        }
    }
    for window in sent.chunks_mut(REORDERED_BY) {
        window.shuffle(random);
    }
}

#[test]
fn the_same_seed_makes_the_same_stream_and_the_checker_sees_every_kind_of_damage() {
    let (one, other) = (Stream::new(7, 2000, 1000), Stream::new(7, 2000, 1000));
    assert_eq!(one.sent, other.sent);
    assert!(one.sent.len() > 2000 && one.wanted.values().all(|kept| kept.len() <= MOST_EVENTS));
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
