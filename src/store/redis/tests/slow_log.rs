//! What the worst legal input of every function, and of every command whose answer grows, costs the server, by its slow log.

/// Notes what a scenario costs.
macro_rules! run_in {
    ($log:ident, $scenario:literal, $work:expr) => {{
        $log.clear().await;
        let answer = $work;
        $log.note($scenario).await;
        answer
    }};
}

mod erasing;
mod rest;

use super::*;
use crate::event::{Item, ItemState};
use crate::feature::{Group, GroupBlob, Version};
use crate::proto::{CrossGroup, TextGroup};
use crate::store::{Chores, DueEntry, FeaturePut, FeedCursor, Member, Members, PutBody, Queue, Record, RecordBody};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use testkit::is_audit;

const SOURCE: &str = include_str!("../../../../migrations/0001_functions.lua");
const NOW_MS: i64 = 1_700_000_000_000;
/// Bars of a call: the fastest run, and the median one, in µs.
const BARS: (u64, u64) = (5_000, 10_000);

/// Short names of all functions of the library.
fn functions() -> BTreeSet<&'static str> {
    let lines = SOURCE.lines().filter_map(|line| line.trim().strip_prefix("redis.register_function("));
    let callback = |line: &'static str| {
        let (_, rest) = line.split_once("callback = ").or_else(|| line.rsplit_once(", ")).unwrap();
        rest.split([',', ')']).next().unwrap()
    };
    lines.map(callback).collect()
}

/// The slow log of a server, read after each run of a scenario.
struct Log {
    connection: ::redis::aio::MultiplexedConnection,
    /// Longest call of each run, in µs, by scenario and command.
    longest: BTreeMap<(&'static str, String), Vec<u64>>,
}

type Entry = (i64, i64, u64, Vec<Vec<u8>>, String, String);

impl Log {
    /// A server that logs every call, and its log.
    async fn of_new_server() -> (RedisServer, Log) {
        let server = RedisServer::with(&["--slowlog-log-slower-than", "0", "--slowlog-max-len", "20000"]);
        let client = ::redis::Client::open(server.operators_url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        (server, Log { connection, longest: BTreeMap::new() })
    }

    async fn clear(&mut self) {
        ::redis::cmd("SLOWLOG").arg("RESET").exec_async(&mut self.connection).await.unwrap();
    }

    async fn note(&mut self, scenario: &'static str) {
        let entries: Vec<Entry> =
            ::redis::cmd("SLOWLOG").arg("GET").arg(-1).query_async(&mut self.connection).await.unwrap();
        let mut run: BTreeMap<String, u64> = BTreeMap::new();
        for (_, _, micros, words, ..) in entries {
            let word = |nth: usize| words.get(nth).map(|word| String::from_utf8_lossy(word).into_owned());
            let name = match word(0).unwrap_or_default() {
                call if call == "FCALL" => {
                    let full = word(1).unwrap_or_default();
                    let own = functions().into_iter().filter(|short| full.ends_with(&format!("_{short}")));
                    own.max_by_key(|short| short.len()).map_or(full.clone(), str::to_string)
                }
                plain => plain,
            };
            let longest = run.entry(name).or_default();
            *longest = micros.max(*longest);
        }
        run.remove("SLOWLOG");
        for (name, micros) in run {
            self.longest.entry((scenario, name)).or_default().push(micros);
        }
    }
}

impl Log {
    /// Prints and judges the worst scenario of each function and command; their names.
    fn judged(&mut self) -> BTreeSet<String> {
        let mut seen: BTreeMap<&str, (u64, u64, &str)> = BTreeMap::new();
        for ((scenario, name), micros) in &mut self.longest {
            micros.sort_unstable();
            let found = (micros[0], micros[micros.len() / 2], *scenario);
            let worst = seen.entry(name).or_insert(found);
            *worst = (*worst).max(found);
        }
        let factor = if is_audit() { 1 } else { 10 };
        for (name, (fastest, median, scenario)) in &seen {
            println!("audit 01: {name} at its worst ({scenario}): fastest {fastest} µs, median {median} µs");
            assert!(*fastest <= factor * BARS.0 && *median <= factor * BARS.1, "{name}: {fastest} and {median} µs");
        }
        seen.into_keys().map(String::from).collect()
    }
}

/// Takes everybody out of the due queue.
async fn empty(store: &RedisStore, clock: &AtomicI64) {
    loop {
        clock.fetch_add(10_000_000, Ordering::Relaxed);
        let claims = store.claim(Queue::Due, 10_000, Duration::from_secs(1)).await.unwrap();
        if claims.is_empty() {
            return;
        }
        for claim in &claims {
            assert!(store.release(Queue::Due, claim).await.unwrap());
        }
    }
}

/// The queue while users stand in the forms of two spaces and in that of all of them. Leaves the queue empty.
async fn two_forms(store: &RedisStore, clock: &AtomicI64, users: &[String], log: &mut Log) {
    let layout =
        |written| schema::Epoch { schema: Some(1), written, readable_from: 1, shards: 8, ..schema::Epoch::default() };
    let second = Duration::from_secs(1);
    let entry = |user: &String, class| DueEntry { user: user.clone(), class, due_ms: NOW_MS };
    let entries: Vec<DueEntry> = users.iter().map(|user| entry(user, 1)).collect();
    for space in ["form 1", "form 2"] {
        store.note_space(space).await.unwrap();
    }
    let empty = async || empty(store, clock).await;
    empty().await;
    store.forms.learn(&layout(2));
    run_in!(log, "mark in the old form", store.mark_due(Queue::Due, &entries).await.unwrap());
    store.forms.learn(&layout(3));
    run_in!(log, "mark and bring along", store.mark_due(Queue::Due, &entries).await.unwrap());
    empty().await;
    store.forms.learn(&layout(2));
    let until_ms = store.now_ms().await.unwrap() + 1000;
    run_in!(log, "mark awaited in the old form", store.mark_awaited(users, NOW_MS, until_ms).await.unwrap());
    store.forms.learn(&layout(3));
    run_in!(log, "mark awaited and bring along", store.mark_awaited(users, NOW_MS, until_ms + 1).await.unwrap());
    clock.fetch_add(2000, Ordering::Relaxed);
    run_in!(log, "end awaited, in both forms", store.queue_depth(Queue::Due).await.unwrap());
    empty().await;
    // Everybody leased in the old form, and half of them waiting in the new one.
    store.forms.learn(&layout(2));
    store.mark_due(Queue::Due, &entries).await.unwrap();
    assert_eq!(store.claim(Queue::Due, 10_000, second).await.unwrap().len(), users.len());
    clock.fetch_add(2000, Ordering::Relaxed);
    store.mark_due(Queue::Due, &entries).await.unwrap();
    store.forms.learn(&layout(3));
    run_in!(log, "claim after leases in the old form", {
        let claims = store.claim(Queue::Due, 10_000, second).await.unwrap();
        assert_eq!(claims.len(), users.len());
        assert!(store.renew(Queue::Due, &claims[0], second).await.unwrap());
        assert!(store.release(Queue::Due, &claims[0]).await.unwrap());
    });
    run_in!(log, "mark leased in the old form", store.mark_due(Queue::Due, &entries).await.unwrap());
    clock.fetch_add(2000, Ordering::Relaxed);
    run_in!(log, "forget in both forms", store.forget_due(&users[7]).await.unwrap());
    run_in!(log, "depth after leases in the old form", store.queue_depth(Queue::Due).await.unwrap());
    // Users for whom callers wait cost the move most; and leases go along.
    empty().await;
    store.forms.learn(&layout(2));
    store.mark_awaited(users, NOW_MS, store.now_ms().await.unwrap() + 1000).await.unwrap();
    let step = |with_leases| Step::MoveQueues { spaces: vec!["form 1".into(), "form 2".into()], with_leases };
    let migration = |steps| Migration {
        link: store.link.clone(),
        keys: store.keys.clone(),
        shards: 8,
        cluster: String::new(),
        steps,
    };
    run_in!(log, "move", migration(vec![step(false)]).apply().await.unwrap());
    empty().await;
    store.mark_due(Queue::Due, &entries).await.unwrap();
    // (A migration has the server's own clock.)
    let claims = store.claim(Queue::Due, 10_000, Duration::from_secs(1_000_000_000)).await.unwrap();
    assert_eq!(claims.len(), users.len());
    run_in!(log, "move leases", migration(vec![step(true)]).apply().await.unwrap());
    store.forms.learn(&layout(3));
    for claim in &claims {
        assert!(store.release(Queue::Due, claim).await.unwrap());
    }
    empty().await;
}

fn long_id(n: usize, tail: &str) -> String {
    format!("{n:0120}{tail}")
}

fn batch(user: &str, records: Vec<Record>) -> UserBatch {
    UserBatch { user: user.into(), records }
}

/// 64 attributes nobody has seen before.
fn stranger(n: usize, value: &str) -> Record {
    let attributes = (0..64).map(|k| (format!("{:0100}", n * 64 + k), value.into())).collect();
    Record {
        ts_ms: NOW_MS,
        event_id: long_id(n, "p"),
        former_id: None,
        weight: 0.0,
        body: RecordBody::Profile(attributes),
    }
}

/// All lists full of entries of one time, and a full profile.
fn full_life(user: &str) -> UserBatch {
    let mut records = Vec::new();
    for n in 0..100 {
        records.push(conformance::engagement(NOW_MS, &long_id(n, "e"), &long_id(n, "i")));
        records.push(conformance::impression(NOW_MS, &long_id(n, "s"), &long_id(n, "i")));
    }
    records.extend((0..20).map(|n| conformance::query(NOW_MS, &long_id(n, "q"))));
    records.push(stranger(0, &"x".repeat(1_000)));
    batch(user, records)
}

fn features(user: &str, version: Version) -> FeaturePut {
    let meta = Some(conformance::meta(version));
    let item_ids = (0..100).map(|n| long_id(n, "i")).collect();
    let cross = CrossGroup { meta: meta.clone(), item_ids, ..CrossGroup::default() };
    let text = TextGroup { meta, reasoning: "x".repeat(32_000), neighbour_user_id: "n".into(), ..TextGroup::default() };
    let blob = |group, bytes: Vec<u8>| GroupBlob { group, bytes: bytes.into(), tier: 1, version, expires_at_ms: 0 };
    let groups = vec![blob(Group::Cross, cross.encode_to_vec()), blob(Group::Text, text.encode_to_vec())];
    let body = PutBody::Write { groups, prompt_hash: 7, embedding: vec![1; 2048] };
    FeaturePut { user: user.into(), era: 0, version, tier: 1, body }
}

fn item(n: usize, title: &str) -> Item {
    let value = serde_json::json!({ "id": format!("i{n}"), "title": title });
    let mut item: Item = serde_json::from_value(value).unwrap();
    item.state = ItemState::Active;
    item
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_01_no_call_costs_the_server_more_than_it_may() {
    let (server, mut log) = Log::of_new_server().await;
    let clock = Arc::new(AtomicI64::new(NOW_MS));
    let address = Address::parse(&server.url()).unwrap();
    let store = RedisStore::open_with_clock(address, options(8), Some(clock.clone())).await.unwrap();
    let runs = if is_audit() { 20 } else { 5 };
    let users: Vec<String> = (0..1000).map(|n| long_id(n, "u")).collect();
    let owned = |user: &str| vec![user.to_string(); 1000];

    for user in ["a", "b", "few"] {
        store.append(&["s".into()], &[full_life(user)]).await.unwrap();
    }
    for nth in 0..runs {
        let fresh = |n: usize| conformance::engagement(NOW_MS + (nth * 1000 + n) as i64, &format!("{nth} {n}"), "i");
        run_in!(
            log,
            "fresh events",
            store.append(&["s".into()], &[batch("a", (0..1000).map(fresh).collect())]).await.unwrap()
        );
        let late = |n: usize| conformance::engagement(NOW_MS, &long_id(nth + 1, &format!("f{n:06}")), "i");
        run_in!(
            log,
            "late events",
            store.append(&["s".into()], &[batch("b", (0..1000).map(late).collect())]).await.unwrap()
        );
        run_in!(
            log,
            "a few late",
            store.append(&["s".into()], &[batch("few", (0..8).map(late).collect())]).await.unwrap()
        );
        let profile = (0..100).map(|n| stranger(1 + nth * 100 + n, "1")).collect();
        run_in!(log, "profile", store.append(&["s".into()], &[batch("p", profile)]).await.unwrap());
        let one_item = conformance::engagement(NOW_MS, &format!("one {nth}"), &format!("item{nth}"));
        let all: Vec<UserBatch> = users.iter().map(|user| batch(user, vec![one_item.clone()])).collect();
        run_in!(log, "one item", store.append(&["s".into()], &all).await.unwrap());
        run_in!(log, "histories", store.histories(&owned("b")).await.unwrap());
        run_in!(log, "states", store.states(&["s".into()], &users).await.unwrap());
        run_in!(log, "item users", store.item_user_counts(&users).await.unwrap());

        let version = Version { seq: nth as u64 + 1, turn: 0 };
        run_in!(log, "put", store.put("s", features("a", version)).await.unwrap());
        run_in!(log, "features", store.features("s", &owned("a")).await.unwrap());
        run_in!(log, "groups", store.feature_groups("s", &owned("a"), &Group::ALL).await.unwrap());
        run_in!(log, "blank", store.blank_cross("s", "a", "n", 1).await.unwrap());

        let entry = |user: &String| DueEntry { user: user.clone(), class: 1, due_ms: NOW_MS };
        let entries: Vec<DueEntry> = users.iter().map(entry).collect();
        run_in!(log, "mark", store.mark_due(Queue::Due, &entries).await.unwrap());
        assert_eq!(store.claim(Queue::Due, 1000, Duration::from_secs(1)).await.unwrap().len(), 1000);
        run_in!(log, "mark leased", store.mark_due(Queue::Due, &entries).await.unwrap());
        clock.fetch_add(2000, Ordering::Relaxed);
        let claims =
            run_in!(log, "claim after leases", store.claim(Queue::Due, 1000, Duration::from_secs(1)).await.unwrap());
        run_in!(log, "renew", assert!(store.renew(Queue::Due, &claims[0], Duration::from_secs(1)).await.unwrap()));
        run_in!(log, "release", assert!(store.release(Queue::Due, &claims[0]).await.unwrap()));
        clock.fetch_add(2000, Ordering::Relaxed);
        run_in!(log, "forget", store.forget_due(&users[7]).await.unwrap());
        run_in!(log, "depth after leases", store.queue_depth(Queue::Due).await.unwrap());
        let until_ms = store.now_ms().await.unwrap() + 1000;
        run_in!(log, "mark awaited", store.mark_awaited(&users, NOW_MS, until_ms).await.unwrap());
        clock.fetch_add(2000, Ordering::Relaxed);
        run_in!(log, "end awaited", store.queue_depth(Queue::Due).await.unwrap());
        empty(&store, &clock).await;
        run_in!(log, "sweep", assert!(store.sweep(&[format!("s{nth}")]).await.unwrap() >= 1000));
        two_forms(&store, &clock, &users, &mut log).await;

        let vector = |user: &str| FreshVector { user: user.into(), era: 0, version, vector: Some(vec![1; 2048]) };
        for user in users.iter().take(if nth == 0 { 1000 } else { 0 }) {
            store.append_vector("s", &vector(user)).await.unwrap();
        }
        run_in!(log, "append vector", store.append_vector("s", &vector("a")).await.unwrap());
        run_in!(log, "vectors", store.vectors_after("s", &FeedCursor::default(), 1000).await.unwrap());
        let items: Vec<Item> = (0..1000).map(|n| item(n, &"t".repeat(1000))).collect();
        run_in!(log, "put items", store.put_items(&items).await.unwrap());
        run_in!(log, "items", store.items_after(&FeedCursor::default(), 1000).await.unwrap());

        let mut fill = ::redis::pipe();
        for user in users.iter().take(if nth == 0 { 1000 } else { 0 }) {
            fill.cmd("SADD").arg(store.keys.referrers("hub", "s")).arg(user).ignore();
        }
        for n in 0..2000 {
            // As a build of before notes and finishes them: in the hash alone.
            let id = nth * 2000 + n + 1;
            fill.cmd("HSET").arg(&store.keys.erasures()[0]).arg(format!("gone{id}")).arg(format!("{id} 1")).ignore();
        }
        fill.exec_async(&mut log.connection).await.unwrap();
        run_in!(log, "referrers", assert_eq!(store.referrers("s", "hub").await.unwrap().len(), 1000));
        run_in!(log, "erasures", assert!(store.erasures().await.unwrap().len() >= 2000));
        run_in!(log, "file erasures", {
            let mut place = store.file_erasures("").await.unwrap();
            while !place.is_empty() {
                place = store.file_erasures(&place).await.unwrap();
            }
        });
        run_in!(log, "expire erasures", assert_eq!(store.expire_erasures(i64::MAX).await.unwrap() / 2000, 1));
        for user in &users {
            store.note_erasure(user).await.unwrap();
        }
        run_in!(log, "unfinished erasures", assert_eq!(store.unfinished_erasures().await.unwrap().len(), 1000));
        let gone = format!("gone{nth}");
        store.append(&["s".into()], &[full_life(&gone)]).await.unwrap();
        let erasure = run_in!(log, "note erasure", store.note_erasure(&gone).await.unwrap());
        run_in!(log, "erase", store.erase_user(&erasure).await.unwrap());
        run_in!(log, "finish erasure", store.finish_erasure(&erasure, 1).await.unwrap());
        let (every, second) = (Duration::ZERO, Duration::from_secs(1));
        let lease = run_in!(log, "begin chore", store.begin_chore("c", every, second).await.unwrap()).unwrap();
        let member = Member { id: "00ff".into(), roles: "api,ingest,infer".into(), epochs: vec![1, 2, 3, 4] };
        run_in!(log, "announce", store.announce(&member).await.unwrap());
        assert!(run_in!(log, "end chore", store.go_on_with_chore(&lease, "", every).await.unwrap()));
    }

    let seen = log.judged();
    let elsewhere =
        |name: &&str| seen.contains(*name) || rest::FUNCTIONS.contains(name) || erasing::FUNCTIONS.contains(name);
    let unseen: Vec<&str> = functions().into_iter().filter(|name| !elsewhere(name)).collect();
    assert!(unseen.is_empty(), "functions without a case: {unseen:?}");
}
