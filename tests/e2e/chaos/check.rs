//! The end of a seed: waits until everything that was sent has gone its way, then compares with what must be.
//!
//! In: the stream, the fleet's ports, Redis, the broker. Out: violations, and the time it took to settle. Callers: `run`.

use super::fleet::{Fleet, Member};
use super::reader::{GROUPS, versions};
use super::run::Topics;
use super::site::Site;
use super::stream::Stream;
use rdkafka::message::Message;
use serde_json::json;
use std::time::{Duration, Instant};
use testkit::process::{call, percent};

/// Longest wait for everything to settle.
const LIMIT: Duration = Duration::from_secs(90);
/// Users of one read.
const USERS: usize = 500;

/// Waits until all features show the last event, no one waits or is being refreshed, and all offsets are committed.
/// What has not come by then is a violation.
pub fn settle(site: &Site, fleet: &Fleet, stream: &Stream, topics: &Topics) -> Duration {
    let begun = Instant::now();
    let mut left = Vec::new();
    while begun.elapsed() < LIMIT {
        left = unsettled(site, fleet, stream, topics);
        if left.is_empty() {
            return begun.elapsed();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    for what in left {
        site.violation(format!("after {LIMIT:?}: {what}"));
    }
    begun.elapsed()
}

/// The first thing that is not done yet; the cheap ones are asked first.
fn unsettled(site: &Site, fleet: &Fleet, stream: &Stream, topics: &Topics) -> Vec<String> {
    let behind = features_behind(fleet.api()[0], stream);
    if !behind.is_empty() {
        return behind;
    }
    let redis = site.redis.lock().expect("redis");
    // A sorted set without members is no key.
    let queued = ["taiji:due:*", "taiji:lease:*", "taiji:leased:*"].map(|pattern| redis.command(&["KEYS", pattern]));
    drop(redis);
    let queued: Vec<String> = queued.into_iter().filter(|answer| answer != "*0\r\n").collect();
    if !queued.is_empty() {
        return vec![format!("queues are not empty: {}", queued.join(" ").replace("\r\n", " "))];
    }
    let broker = site.broker.lock().expect("broker");
    let ends: Vec<Option<i64>> = broker.ends(&topics.events, topics.partitions).into_iter().map(Some).collect();
    let committed = broker.committed(&topics.group, &topics.events, topics.partitions);
    if committed != ends {
        return vec![format!("committed offsets are {committed:?}, the ends {ends:?}")];
    }
    Vec::new()
}

fn features_behind(member: &Member, stream: &Stream) -> Vec<String> {
    let users: Vec<&String> = stream.wanted.keys().collect();
    let mut behind = Vec::new();
    for part in users.chunks(USERS) {
        let body = json!({ "users": part, "groups": GROUPS }).to_string();
        let columns = match call(&member.listen, "POST", "/v1/features", &[], body.as_bytes()) {
            Ok(answer) if answer.status == 200 => answer.json(),
            Ok(answer) => return vec![format!("features are not read: {}", answer.text())],
            Err(error) => return vec![format!("features are not read: {error}")],
        };
        for group in GROUPS {
            for (user, seq) in part.iter().zip(versions(&columns, group)) {
                let wanted = stream.wanted[*user].len() as u64;
                if seq != wanted {
                    behind.push(format!("{user}: {group} shows seq {seq} of {wanted}"));
                }
            }
        }
    }
    behind
}

/// Compares every history and every dead letter.
pub fn compare(site: &Site, fleet: &Fleet, stream: &Stream, topics: &Topics) {
    for user in stream.wanted.keys() {
        let path = format!("/v1/users/{}/history", percent(user));
        match call(&fleet.api()[0].listen, "GET", &path, &[], b"") {
            Ok(answer) if answer.status == 200 => {
                stream.violations(user, &answer.json()).into_iter().for_each(|what| site.violation(what));
            }
            Ok(answer) => site.violation(format!("{user}: no history: {}", answer.text())),
            Err(error) => site.violation(format!("{user}: no history: {error}")),
        }
    }
    let letters = site.broker.lock().expect("broker").read_all(&topics.dead_letters, 1);
    let text = |letter: &rdkafka::message::OwnedMessage| {
        String::from_utf8_lossy(letter.payload().unwrap_or_default()).into_owned()
    };
    let mut found: Vec<String> = letters.iter().map(text).collect();
    found.sort();
    // A record that is read again after a crash or a rewind makes a second letter: that is the contract.
    found.dedup();
    let lost = stream.bad.iter().filter(|bad| found.binary_search(bad).is_err());
    lost.for_each(|bad| site.violation(format!("no dead letter: {bad}")));
    let foreign = found.iter().filter(|letter| stream.bad.binary_search(letter).is_err());
    foreign.for_each(|letter| site.violation(format!("a dead letter of a good record: {letter}")));
}
