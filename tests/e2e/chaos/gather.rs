//! The end of a seed: waits until everything that was sent has gone its way, and records what is found.
//!
//! In: what was sent, the fleet's ports, Redis, the broker. Out: the record that `check` judges. Callers: `run`.

use super::check::{Behind, Recorded};
use super::fleet::{Fleet, Member};
use super::reader::{GROUPS, versions};
use super::run::Topics;
use super::site::Site;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use testkit::process::{call, percent};

/// Longest wait until all of Kafka's records are stored and their offsets committed.
const STORED: Duration = Duration::from_secs(120);
/// Longest wait for features after that, unless due marks were lost.
const FRESH: Duration = Duration::from_secs(30);
/// How much later than its interval a sweep may have done its work.
const SWEPT: Duration = Duration::from_secs(45);
/// Users of one read.
const USERS: usize = 500;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Waits and records into `recorded`; `sweep` is the fleet's interval. Returns how long it took.
pub fn gather(site: &Site, fleet: &Fleet, topics: &Topics, sweep: Duration, recorded: &mut Recorded) -> Duration {
    let begun = Instant::now();
    let offsets = until(STORED, || offsets_behind(site, topics));
    recorded.unsettled.extend(offsets.into_iter().map(|what| format!("after {STORED:?}: {what}")));
    let member = fleet.api()[0];
    let users: Vec<String> = recorded.wanted.keys().cloned().collect();
    recorded.histories = users.iter().filter_map(|user| Some((user.clone(), history(site, member, user)?))).collect();
    site.note("all is stored");
    recorded.behind = until(FRESH, || behind(site, member, &recorded.histories));
    let took = begun.elapsed();
    if !recorded.behind.is_empty() && !recorded.tails.is_empty() {
        site.note(&format!("{} users are behind: waiting for the sweep", recorded.behind.len()));
        recorded.behind_after_sweep = until(sweep + SWEPT, || behind(site, member, &recorded.histories));
    }
    let queues = until(FRESH, || queues(site));
    recorded.unsettled.extend(queues.into_iter().map(|queue| format!("queues are not empty: {queue}")));
    recorded.shown = shown(member, &users);
    recorded.overlays = fleet.regular().iter().map(|member| (member.name.clone(), overlay(member))).collect();
    let letters = site.broker.lock().expect("broker").read_all(&topics.dead_letters, 1);
    let text = |letter: &rdkafka::message::OwnedMessage| {
        String::from_utf8_lossy(rdkafka::Message::payload(letter).unwrap_or_default()).into_owned()
    };
    recorded.letters = letters.iter().map(text).collect();
    took
}

/// Looks until nothing is left, or the time is over; what is left.
fn until<T>(limit: Duration, mut left: impl FnMut() -> Vec<T>) -> Vec<T> {
    let begun = Instant::now();
    loop {
        let found = left();
        if found.is_empty() || begun.elapsed() > limit {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
}

fn offsets_behind(site: &Site, topics: &Topics) -> Vec<String> {
    let broker = site.broker.lock().expect("broker");
    let ends: Vec<Option<i64>> = broker.ends(&topics.events, topics.partitions).into_iter().map(Some).collect();
    let committed = broker.committed(&topics.group, &topics.events, topics.partitions);
    // What nothing was written to has no offset.
    let is_behind = |(committed, end): (&Option<i64>, &Option<i64>)| committed.unwrap_or(0) != end.unwrap_or(0);
    match committed.iter().zip(&ends).any(is_behind) {
        true => vec![format!("committed offsets are {committed:?}, the ends {ends:?}")],
        false => Vec::new(),
    }
}

/// A user's history; no answer but that there is none is a violation.
fn history(site: &Site, member: &Member, user: &str) -> Option<Value> {
    match call(&member.listen, "GET", &format!("/v1/users/{}/history", percent(user)), &[], b"") {
        Ok(answer) if answer.status == 200 => Some(answer.json()),
        Ok(answer) if answer.status == 404 => None,
        Ok(answer) => {
            site.violation(format!("{user}: no history: {}", answer.text()));
            None
        }
        Err(error) => {
            site.violation(format!("{user}: no history: {error}"));
            None
        }
    }
}

/// Users whose features show another seq than their history.
fn behind(site: &Site, member: &Member, histories: &BTreeMap<String, Value>) -> Vec<Behind> {
    let users: Vec<&String> = histories.keys().collect();
    let mut behind = Vec::new();
    for part in users.chunks(USERS) {
        let Some(columns) = read(member, part, &GROUPS) else {
            site.note("features are not read");
            return users.iter().map(|user| Behind { user: user.to_string(), shows: 0, seq: 0 }).collect();
        };
        let groups = GROUPS.map(|group| versions(&columns, group).collect::<Vec<u64>>());
        for (place, user) in part.iter().enumerate() {
            let shows = groups.iter().map(|group| group[place]).min().unwrap_or_default();
            let seq = histories[*user]["seq"].as_u64().unwrap_or_default();
            if shows != seq {
                behind.push(Behind { user: user.to_string(), shows, seq });
            }
        }
    }
    behind
}

fn read(member: &Member, users: &[&String], groups: &[&str]) -> Option<Value> {
    let body = json!({ "users": users, "groups": groups }).to_string();
    let answer = call(&member.listen, "POST", "/v1/features", &[], body.as_bytes()).ok()?;
    (answer.status == 200).then(|| answer.json())
}

/// Keys of the due queue that are still there; a sorted set without members is no key.
fn queues(site: &Site) -> Vec<String> {
    let keys = ["taiji:due:*", "taiji:lease:*", "taiji:leased:*", "taiji:fast:*"].into_iter();
    let found = keys.flat_map(|pattern| site.redis_answers(&["KEYS", pattern]));
    found.filter(|answer| answer != "*0\r\n").map(|answer| answer.replace("\r\n", " ")).collect()
}

fn shown(member: &Member, users: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut shown = BTreeMap::new();
    let users: Vec<&String> = users.iter().collect();
    for part in users.chunks(USERS) {
        let Some(columns) = read(member, part, &["cross"]) else { continue };
        for (place, user) in part.iter().enumerate() {
            let items = columns["features"]["cross.item_ids"][place].as_array().into_iter().flatten();
            let items = items.filter_map(|item| item.as_str().map(String::from)).collect();
            shown.insert(user.to_string(), items);
        }
    }
    shown
}

/// Items of a member's overlay, as its metrics say.
fn overlay(member: &Member) -> usize {
    let text = call(&member.admin, "GET", "/metrics", &[], b"").map(|answer| answer.text()).unwrap_or_default();
    let name = "taiji_catalogue_items{part=\"overlay\"} ";
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)).and_then(|value| value.trim().parse::<f64>().ok());
    value.unwrap_or_default() as usize
}
