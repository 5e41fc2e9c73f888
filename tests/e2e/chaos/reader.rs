//! A ranker that reads all the time: versions of features never go back, and while the store is there no read fails.
//!
//! In: the fleet's public ports. Out: violations. Callers: `run`, on a thread of its own.
//!
//! A Redis that lost its tail takes features back to what they were before: what was read since then is forgotten, what
//! was read earlier still holds.

use super::fleet::{Fleet, Member};
use super::site::Site;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};
use testkit::process::{Answer, call};

/// Users of one read.
const USERS: usize = 50;
/// Between two reads.
const PAUSE: Duration = Duration::from_millis(25);
/// The groups that a refresh with canned answers makes.
pub const GROUPS: [&str; 2] = ["intra", "cross"];

/// What was seen of the features, by user and group.
#[derive(Default)]
struct Sighting {
    versions: HashMap<(String, &'static str), Vec<(Instant, u64)>>,
    cuts: usize,
}

/// Reads until the stream and its faults are over. Returns the number of reads.
pub fn read_on(site: &Site, fleet: &Fleet, users: &[String], seed: u64, is_over: impl Fn() -> bool) -> usize {
    let (mut random, mut seen, mut reads) = (ChaCha8Rng::seed_from_u64(seed), Sighting::default(), 0);
    let members = fleet.api();
    while !is_over() {
        let member = members[random.random_range(0..members.len())];
        let asked: Vec<&str> = (0..USERS).map(|_| users[random.random_range(0..users.len())].as_str()).collect();
        seen.forget(&site.cuts());
        let stamps = (site.store.stamp(), member.calm.stamp());
        let answer = read(member, &asked);
        let was_calm = site.store.lasted_since(stamps.0) && member.calm.lasted_since(stamps.1);
        match answer {
            // Was this before the loss of the tail or after it? Nobody knows.
            _ if site.is_losing() || site.cuts().len() != seen.cuts => {}
            Ok(answer) if answer.status == 200 => look(site, &mut seen, &asked, &answer.json(), was_calm),
            Ok(answer) if was_calm => site.violation(format!("a read answered {}: {}", answer.status, answer.text())),
            Err(error) if was_calm => site.violation(format!("{} did not answer a read: {error}", member.name)),
            _ => {}
        }
        reads += 1;
        std::thread::sleep(PAUSE);
    }
    reads
}

fn read(member: &Member, users: &[&str]) -> io::Result<Answer> {
    let body = json!({ "users": users, "groups": GROUPS }).to_string();
    call(&member.listen, "POST", "/v1/features", &[], body.as_bytes())
}

fn look(site: &Site, seen: &mut Sighting, users: &[&str], columns: &Value, was_calm: bool) {
    let now = Instant::now();
    for group in GROUPS {
        for (user, seq) in users.iter().zip(versions(columns, group)) {
            // Who cannot be reached is missing, like who has no features.
            if seq == 0 && !was_calm {
                continue;
            }
            match seen.note(user, group, seq, now) {
                Ok(true) => site.rose(),
                Ok(false) => {}
                Err(before) => site.violation(format!("{user}: {group} went back from seq {before} to {seq}")),
            }
        }
    }
}

/// The seq of every user in a columnar answer; 0 for those without features.
pub fn versions<'a>(columns: &'a Value, group: &str) -> impl Iterator<Item = u64> + use<'a> {
    let seq = columns["groups"][group]["seq"].as_array().expect("seq");
    seq.iter().map(|seq| seq.as_u64().expect("seq"))
}

impl Sighting {
    /// What was read after the store's loss began counts no more.
    fn forget(&mut self, cuts: &[Instant]) {
        for kept_until in &cuts[self.cuts..] {
            for rises in self.versions.values_mut() {
                rises.retain(|(at, _)| at <= kept_until);
            }
        }
        self.cuts = cuts.len();
    }

    /// Whether it is newer than what was seen before; an error if it is older, with what was seen.
    fn note(&mut self, user: &str, group: &'static str, seq: u64, now: Instant) -> Result<bool, u64> {
        let rises = self.versions.entry((user.to_string(), group)).or_default();
        let before = rises.last().map_or(0, |(_, seq)| *seq);
        if seq > before {
            rises.push((now, seq));
        }
        if seq < before { Err(before) } else { Ok(seq > before) }
    }
}

#[test]
fn going_back_is_seen_unless_the_store_lost_just_that() {
    let (start, mut seen) = (Instant::now(), Sighting::default());
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(seen.note("u", "intra", 3, at(1)), Ok(true));
    assert_eq!(seen.note("u", "intra", 3, at(2)), Ok(false));
    assert_eq!(seen.note("u", "intra", 7, at(5)), Ok(true));
    assert_eq!(seen.note("u", "intra", 6, at(6)), Err(7));
    assert_eq!(seen.note("u", "cross", 1, at(6)), Ok(true), "groups are apart");
    seen.forget(&[at(4)]);
    assert_eq!(seen.note("u", "intra", 3, at(8)), Ok(false), "the loss took back what came after 4");
    assert_eq!(seen.note("u", "intra", 2, at(8)), Err(3), "but nothing of before");
    assert_eq!(seen.note("u", "intra", 5, at(9)), Ok(true));
    seen.forget(&[at(4)]);
    assert_eq!(seen.note("u", "intra", 4, at(9)), Err(5), "a loss counts once");
}
