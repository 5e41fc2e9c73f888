//! What one record that cannot be read does to others: nothing.

use super::*;
use crate::event::Item;
use crate::feature::{Group, GroupBlob, Version};
use crate::store::{DueEntry, Erasure, FeedCursor, Queue, RecordKind, StoreError, UserMarks};
use std::collections::BTreeMap;

const USERS: [&str; 3] = ["ann", "bob", "cat"];
/// The parts of a user's keys.
const PARTS: [&str; 8] = ["st", "h:e", "h:i", "q", "prof", "f:s", "refs:s", "remembered"];

async fn open(server: &RedisServer) -> Arc<RedisStore> {
    RedisStore::open(Address::parse(&server.url()).unwrap(), options(2)).await.unwrap()
}

#[tokio::test]
async fn audit_02_one_command_of_a_batch_fails_alone_and_names_its_key() {
    let server = RedisServer::start();
    let store = open(&server).await;
    server.command(&["SET", "taiji:{a}:st", "theirs"]);
    server.command(&["SET", "taiji:users", "many"]);
    let calls = vec![
        Call::new("SET", "taiji:{b}:x").arg("1"),
        Call::new("HGETALL", "taiji:{a}:st"),
        Call::new("INCRBY", "taiji:users").arg(1),
        Call::function(function!("item_users"), &["taiji:{a}:st".to_string()]).arg("").arg(1),
        Call::new("GET", "taiji:{b}:x"),
    ];
    let answers = store.link.run_each("test", calls).await;
    let corrupt = |answer: &StoreResult<Value>, wanted: &str| match answer {
        // With a hash in the user's place: it stands in the log.
        Err(StoreError::Corrupt { key, .. }) => assert_eq!(*key, keys::loggable(wanted)),
        other => panic!("{wanted}: {other:?}"),
    };
    assert!(answers[0].is_ok());
    corrupt(&answers[1], "taiji:{a}:st");
    corrupt(&answers[2], "taiji:users");
    corrupt(&answers[3], "taiji:{a}:st");
    assert_eq!(answers[4].as_ref().unwrap(), &Value::BulkString(b"1".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_02_a_node_that_is_away_is_missing_from_a_batch_and_the_others_answer() {
    let mut cluster = RedisCluster::start();
    let timeouts = Timeouts { connect: Duration::from_secs(1), response: Duration::from_secs(1), retries: 1 };
    let address = Address::parse(&cluster.url()).unwrap();
    let store = RedisStore::open(address, RedisOptions { timeouts, ..options(2) }).await.unwrap();
    let keys: Vec<String> = (0..30).map(|n| format!("taiji:{{k{n}}}:x")).collect();
    for node in &cluster.nodes {
        node.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    cluster.nodes[1].kill();
    // Once after the tries, once at once: the circuit is open by then.
    for round in 0..2 {
        let answers = store.link.run_each("test", keys.iter().map(|key| Call::new("GET", key)).collect()).await;
        for (key, answer) in keys.iter().zip(answers) {
            let lost = (5461..=10922).contains(&keys::slot_of(key));
            assert_eq!(answer.is_err(), lost, "round {round}, {key}: {answer:?}");
            assert!(!lost || answer.is_err_and(|error| error.is_transient()), "{key}");
        }
    }
}

fn everything(user: &str) -> UserBatch {
    let records = vec![
        conformance::engagement(3, "clicked", "item"),
        conformance::impression(4, "seen", "item"),
        conformance::query(5, "asked"),
        conformance::profile(6, "told", &[("age", 1)]),
    ];
    UserBatch { user: user.into(), records }
}

/// Every user has something under each key.
async fn fill(store: &RedisStore) {
    store.note_space("s").await.unwrap();
    store.append(&["s".into()], &USERS.map(everything)).await.unwrap();
    let version = Version { seq: 4, turn: 0 };
    let groups = || -> Vec<GroupBlob> {
        [Group::Intra, Group::Cross, Group::Text].map(|group| conformance::blob(group, 1, version, 1, 0)).into()
    };
    for user in USERS {
        store.put("s", conformance::write_put(user, version, 1, 1, groups())).await.unwrap();
        store.add_referrer("s", user, "friend").await.unwrap();
        let vector = Some(vec![0; 8]);
        store.append_vector("s", &FreshVector { user: user.into(), era: 0, version, vector }).await.unwrap();
    }
}

/// What may stand in the place of a user's key: of another type, and where it is a hash or a list also with other members.
fn plant(server: &RedisServer, user: &str, part: &str, kind: &str) {
    let key = format!("taiji:{{{user}}}:{part}");
    let is_hash = matches!(part, "st" | "prof" | "f:s");
    match kind {
        "type" => {
            server.command(&["DEL", &key]);
            server.command(&["SET", &key, "theirs"]);
        }
        // What this build notes beside the counters.
        "notes" if part == "st" => {
            for field in ["held", "quiet", "remembered_until"] {
                server.command(&["HSET", &key, field, "x"]);
            }
        }
        "fields" if is_hash => {
            for field in ["seq", "era", "rev", "intra", "r", "age"] {
                server.command(&["HSET", &key, field, "x"]);
            }
        }
        "fields" if part != "refs:s" => {
            server.command(&["DEL", &key]);
            server.command(&["RPUSH", &key, "their", "own", "list"]);
        }
        "cut" if is_hash => {
            for field in ["seq", "intra", "age"] {
                server.command(&["HSET", &key, field, ""]);
            }
        }
        "cut" if !matches!(part, "refs:s" | "remembered") => {
            server.command(&["LSET", &key, "1", ""]);
        }
        _ => {}
    }
}

#[tokio::test]
async fn audit_02_whatever_stands_in_a_users_key_harms_nobody_else_and_is_erased() {
    let server = RedisServer::start();
    let store = open(&server).await;
    let users = USERS.map(String::from);
    let (mut spoilt, mut unreadable) = (0, BTreeMap::<&str, usize>::new());
    for part in PARTS {
        for kind in ["type", "fields", "cut", "notes"] {
            server.command(&["FLUSHDB"]);
            server.command(&["HSET", "taiji:epoch", "schema", "1", "shards", "2"]);
            fill(&store).await;
            plant(&server, "bob", part, kind);
            spoilt += 1;
            let check = |what: &'static str, failed: Vec<Option<StoreError>>| {
                for (place, error) in failed.into_iter().enumerate() {
                    let Some(error) = error else { continue };
                    assert!(place == 1 && error.is_unreadable(), "{part} {kind}: {what} of {}: {error}", USERS[place]);
                    return 1;
                }
                0
            };
            let histories = store.histories_each(&users).await.unwrap();
            *unreadable.entry("histories").or_default() +=
                check("history", histories.into_iter().map(Result::err).collect());
            let states = store.states_each(&["s".into()], &users).await.unwrap();
            *unreadable.entry("states").or_default() += check("state", states.into_iter().map(Result::err).collect());
            let groups = store.feature_groups_each("s", &users, &[Group::Intra]).await.unwrap();
            *unreadable.entry("groups").or_default() += check("groups", groups.into_iter().map(Result::err).collect());
            let counts = store.referrer_counts_each("s", &users).await.unwrap();
            *unreadable.entry("referrers").or_default() +=
                check("referrers", counts.into_iter().map(Result::err).collect());
            let more = USERS.map(|user| UserBatch {
                user: user.into(),
                records: vec![conformance::engagement(9, "more", "item"), conformance::profile(9, "p", &[("b", 1)])],
            });
            let appended = store.append_each(&["s".into()], &more).await.unwrap();
            *unreadable.entry("appends").or_default() +=
                check("append", appended.into_iter().map(Result::err).collect());
            // Unreadable features are made anew; of a user with unreadable counters nothing can be.
            let version = Version { seq: 4, turn: 0 };
            let put =
                conformance::write_put("bob", version, 1, 1, vec![conformance::blob(Group::Intra, 1, version, 1, 0)]);
            match store.put("s", put).await {
                Ok(_) => assert!(part != "st" || matches!(kind, "cut" | "notes"), "{part} {kind}"),
                Err(error) => assert!(part == "st" && error.is_unreadable(), "{part} {kind}: {error}"),
            }
            store.sweep_step(&["s".into()], "").await.unwrap();

            let now = store.now_ms().await.unwrap();
            let erasure = store.note_erasure("bob").await.unwrap();
            let state = store.erase_user(&erasure).await.unwrap();
            if part == "st" && kind != "notes" {
                assert!(state.seq == 0 && state.era >= now as u64, "{kind}: {state:?}");
            } else {
                assert!(state.era == 1 && state.seq >= 4, "{part} {kind}: {state:?}");
            }
            assert_eq!(store.erase_user(&erasure).await.unwrap(), state, "once an erasure");
            assert!(store.referrers("s", "bob").await.unwrap().iter().all(|user| user == "friend"));
            store.finish_erasure(&erasure, state.era).await.unwrap();
            assert_eq!(store.feature_groups("s", &users[1..2], &[Group::Intra]).await.unwrap(), [None]);
            let late = store.now_ms().await.unwrap() + 1000;
            let anew = UserBatch { user: "bob".into(), records: vec![conformance::engagement(late, "anew", "item")] };
            let outcome = store.append(&["s".into()], &[anew]).await.unwrap().remove(0);
            assert_eq!((outcome.accepted, outcome.state.era), (1, state.era), "{part} {kind}");
            let history = store.histories(&users[1..2]).await.unwrap().remove(0).unwrap();
            assert_eq!(history.engagements.len(), 1, "{part} {kind}");
        }
    }
    println!("audit 02: {spoilt} ways to spoil a user's key in Redis; of them unreadable: {unreadable:?}");
    assert!(unreadable.values().all(|count| *count > 0), "{unreadable:?}");
}

/// Whatever stands in one user's keys, the others who are idle are erased, and so is this one where the counters can be read.
#[tokio::test]
async fn audit_08_one_bad_record_stops_no_idle_erasure() {
    let server = RedisServer::start();
    let store = open(&server).await;
    for (part, kind) in PARTS.into_iter().flat_map(|part| ["type", "fields", "cut", "notes"].map(|kind| (part, kind))) {
        server.command(&["FLUSHDB"]);
        server.command(&["HSET", "taiji:epoch", "schema", "1", "shards", "2"]);
        fill(&store).await;
        plant(&server, "bob", part, kind);
        server.command(&["HSET", "taiji:erased:{erased}:idle", "their", "own", "theirs", "7 {"]);
        server.command(&["HSET", "taiji:erased:{erased}:quiet", "ms", "nan", "looked", "x"]);
        crate::erase::erase_all_idle(store.as_ref()).await;
        let left = store.states_each(&["s".into()], &USERS.map(String::from)).await.unwrap();
        let is_erased = |found: &StoreResult<Option<UserMarks>>| {
            found.as_ref().is_ok_and(|found| found.is_some_and(|marks| !marks.state.has_events()))
        };
        assert!(is_erased(&left[0]) && is_erased(&left[2]), "{part} {kind}: {left:?}");
        assert!(is_erased(&left[1]) || part == "st", "{part} {kind}: {left:?}");
        assert!(store.idle_erasures().await.unwrap().is_empty(), "{part} {kind}");
    }
}

#[tokio::test]
async fn audit_12_a_number_of_users_held_back_that_is_none_is_counted_as_such() {
    let server = RedisServer::start();
    let store = open(&server).await;
    for theirs in [["SET", "taiji:held", "many"], ["LPUSH", "taiji:held", "own"]] {
        server.command(&["DEL", "taiji:held"]);
        server.command(&theirs);
        assert_eq!(store.stats().await.unwrap().held, 0);
        let misused = store.misused_keys(&[]).await.unwrap();
        assert_eq!(misused.iter().any(|told| told.contains("taiji:held")), theirs[0] == "LPUSH", "{misused:?}");
    }
    assert_eq!(store.unreadable().met().get(RecordKind::Count.as_str()), Some(&2));
}

/// A foreign value of a profile is nobody's event ahead of the clock.
#[tokio::test]
async fn audit_08_a_foreign_value_is_not_remembered_as_an_event() {
    let server = RedisServer::start();
    let store = open(&server).await;
    fill(&store).await;
    server.command(&["HSET", "taiji:{bob}:prof", "theirs", "a value of another program"]);
    server.command(&["RPUSH", "taiji:{bob}:q", "far", "\u{bf}\u{bf}\u{bf}\u{bf}"]);
    let erasure = store.note_erasure("bob").await.unwrap();
    store.erase_user(&erasure).await.unwrap();
    assert_eq!(server.command(&["EXISTS", "taiji:{bob}:remembered"]), ":0\r\n");
}

fn lines(server: &RedisServer, command: &[&str]) -> String {
    server.command(command)
}

#[tokio::test]
async fn audit_02_bad_members_of_keys_of_many_are_put_aside_and_the_good_ones_found() {
    let server = RedisServer::start();
    let store = open(&server).await;
    fill(&store).await;
    let item = |id: &str| Item::of_stored(format!(r#"{{"id":"{id}","title":"t"}}"#).as_bytes()).unwrap();
    store.put_items(&[item("i1"), item("i2")]).await.unwrap();
    store.note_erasure("gone").await.unwrap();
    let entry = |user: &str| DueEntry { user: user.into(), class: 1, due_ms: 1 };
    store.mark_due(Queue::Due, &USERS.map(entry)).await.unwrap();
    for shard in ["0", "1"] {
        let key = |name: &str| format!("taiji:{name}:{{{shard}}}:s");
        // In one form of the queue or the other.
        let form = if shard == "0" { "" } else { ":s" };
        let due = format!("taiji:due:{{{shard}}}{form}:1");
        server.command(&["ZADD", &due, "0", "a\nb", "0", &"x".repeat(300), "-inf", "endless"]);
        server.command(&["HSET", &format!("taiji:leased:{{{shard}}}{form}"), "ann", "theirs"]);
        server.command(&["ZADD", &format!("taiji:lease:{{{shard}}}{form}"), "1", "ann"]);
        server.command(&["ZADD", &key("vec"), "0.5", "half", "1", "empty", "inf", "far"]);
        server.command(&["HSET", &format!("{}:v", key("vec")), "half", "theirs", "empty", "", "far", "0 0 0 x"]);
    }
    server.command(&["ZADD", "taiji:items:{items}", "0.25", "their", "7", "seventh"]);
    server.command(&["HSET", "taiji:items:{items}:v", "their", "{", "seventh", r#"{"id":"i7","title":"t","later":1}"#]);
    server.command(&["SET", "taiji:items:{items}:n", "7"]);
    server.command(&["HSET", "taiji:erased:{erased}", "bad", "theirs", "later", "5 6 7"]);
    server.command(&["SADD", "taiji:spaces", &"s".repeat(300)]);

    let claimed = store.claim(Queue::Due, 100, Duration::from_secs(60)).await.unwrap();
    let mut claimed: Vec<&str> = claimed.iter().map(|claim| claim.user.as_str()).collect();
    claimed.sort_unstable();
    assert_eq!(claimed, USERS, "a lease that is none holds nobody");
    for claim in store.claim(Queue::Due, 100, Duration::from_secs(60)).await.unwrap() {
        assert!(store.release(Queue::Due, &claim).await.unwrap());
    }
    for _ in 0..2 {
        let page = store.vectors_after("s", &FeedCursor::default(), 100).await.unwrap();
        let mut users: Vec<&str> = page.entries.iter().map(|entry| entry.user.as_str()).collect();
        users.sort_unstable();
        assert_eq!((users.as_slice(), page.is_last), (USERS.as_slice(), true));
        let page = store.items_after(&FeedCursor::default(), 100).await.unwrap();
        let ids: Vec<&str> = page.entries.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["i1", "i2", "i7"], "with a field of a later version");
        assert!(store.items_after(&page.cursor, 100).await.unwrap().entries.is_empty());
        let erasures = store.erasures().await.unwrap();
        let found: Vec<(&str, Option<u64>)> =
            erasures.iter().map(|erasure| (erasure.user.as_str(), erasure.finished_era)).collect();
        assert_eq!(found, [("gone", None), ("later", Some(6))]);
        assert_eq!(store.spaces().await.unwrap(), ["s"]);
    }
    let counts = store.unreadable().met();
    println!("audit 02: put aside in Redis: {counts:?}");
    // Once each, however often they were looked for.
    let wanted = [(RecordKind::Due, 8), (RecordKind::Vector, 6), (RecordKind::Item, 1), (RecordKind::Erasure, 1)];
    for (kind, count) in wanted {
        assert_eq!(counts.get(kind.as_str()), Some(&count), "{counts:?}");
    }
    assert_eq!(counts.get("space"), Some(&1));

    let kept = |key: &str, member: &str| lines(&server, &["HGET", &format!("{key}:v"), member]);
    assert!(kept("taiji:unreadable:{items}", "their").contains("taiji:items:{items}"));
    assert!(kept("taiji:unreadable:{erased}", "bad").contains("theirs"));
    assert!(["0", "1"].iter().any(|shard| kept(&format!("taiji:unreadable:{{{shard}}}"), "ann").contains("theirs")));
    // An erasure takes what is left of the user; a tombstone's time takes the rest.
    for user in ["bad", "ann"] {
        let erasure = Erasure { user: user.into(), id: u64::MAX >> 12, finished_era: None };
        store.erase_user(&erasure).await.unwrap();
        store.forget_due(user).await.unwrap();
    }
    assert_eq!(kept("taiji:unreadable:{erased}", "bad"), "$-1\r\n");
    let shard = keys::shard_of("ann", 2);
    assert_eq!(kept(&format!("taiji:unreadable:{{{shard}}}"), "ann"), "$-1\r\n", "where a user's marks are");
    store.expire_erasures(store.now_ms().await.unwrap() + 60_000).await.unwrap();
    assert_eq!(lines(&server, &["KEYS", "taiji:unreadable:*"]), "*0\r\n");
}

#[tokio::test]
async fn audit_02_no_more_than_a_thousand_are_put_aside() {
    let server = RedisServer::start();
    let store = open(&server).await;
    for part in 0..3 {
        let mut command = vec!["HSET".to_string(), "taiji:erased:{erased}".to_string()];
        command.extend((0..500).flat_map(|n| [format!("bad-{part}-{n}"), "theirs".to_string()]));
        server.command(&command.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(store.erasures().await.unwrap().is_empty());
    }
    assert_eq!(lines(&server, &["ZCARD", "taiji:unreadable:{erased}"]), ":1000\r\n");
    assert_eq!(lines(&server, &["HLEN", "taiji:unreadable:{erased}:v"]), ":1000\r\n");
}

#[tokio::test]
async fn audit_02_a_queue_of_another_type_stops_its_own_shard_and_is_named() {
    let server = RedisServer::start();
    let store = open(&server).await;
    fill(&store).await;
    let users: Vec<String> = (0..20).map(|user| format!("u{user}")).collect();
    let of_shard = |shard: u32| users.iter().filter(move |user| keys::shard_of(user, 2) == shard).count();
    server.command(&["SET", "taiji:due:{0}:2", "theirs"]);
    let entries: Vec<DueEntry> =
        users.iter().map(|user| DueEntry { user: user.clone(), class: 1, due_ms: 1 }).collect();
    assert!(store.mark_due(Queue::Due, &entries).await.unwrap_err().is_unreadable());
    let claimed = store.claim(Queue::Due, 100, Duration::from_secs(60)).await.unwrap();
    assert_eq!(claimed.len(), of_shard(1));
    assert!(claimed.iter().all(|claim| keys::shard_of(&claim.user, 2) == 1));
    assert_eq!(store.queue_depth(Queue::Due).await.unwrap().leased, of_shard(1));
    store.sweep_step(&["s".into()], "").await.unwrap();
    let named = store.misused_keys(&["s".into()]).await.unwrap();
    assert_eq!(named, ["taiji:due:{0}:2 holds a string, not a zset"]);
    server.command(&["RENAME", "taiji:due:{0}:2", "taiji:due:{0}:s:2"]);
    assert!(store.mark_due(Queue::Due, &entries).await.unwrap_err().is_unreadable(), "nor in the other form");
    let named = store.misused_keys(&["s".into()]).await.unwrap();
    assert_eq!(named, ["taiji:due:{0}:s:2 holds a string, not a zset"]);
    server.command(&["DEL", "taiji:due:{0}:s:2"]);
    assert!(store.misused_keys(&["s".into()]).await.unwrap().is_empty());
    store.mark_due(Queue::Due, &entries).await.unwrap();
    assert_eq!(store.claim(Queue::Due, 100, Duration::from_secs(60)).await.unwrap().len(), of_shard(0));
}

/// An id that lost its body is none, so that a repeat heals it (half of a transaction).
#[tokio::test]
async fn audit_11_an_id_without_its_body_is_absent_and_a_repeat_heals_it() {
    let server = RedisServer::start();
    let store = open(&server).await;
    let batch =
        |id: &str, ts_ms| UserBatch { user: "u".into(), records: vec![conformance::engagement(ts_ms, id, "item")] };
    store.append(&["s".into()], &[batch("new", 9)]).await.unwrap();
    for place in ["BEFORE", "AFTER"] {
        server.command(&["LINSERT", "taiji:{u}:h:e", place, "new", &format!("lost-{place}")]);
    }
    // (After the id its own body would be cut off; put right by the id once more.)
    server.command(&["LREM", "taiji:{u}:h:e", "1", "new"]);
    server.command(&["LINSERT", "taiji:{u}:h:e", "AFTER", "lost-AFTER", "new"]);
    for id in ["lost-BEFORE", "lost-AFTER"] {
        assert_eq!(store.append(&["s".into()], &[batch(id, 5)]).await.unwrap()[0].accepted, 1, "{id}");
        assert_eq!(store.append(&["s".into()], &[batch(id, 5)]).await.unwrap()[0].accepted, 0, "{id} again");
    }
    assert_eq!(store.append(&["s".into()], &[batch("new", 9)]).await.unwrap()[0].accepted, 0);
    let history = store.histories(&["u".into()]).await.unwrap().remove(0).unwrap();
    let ids: Vec<&str> = history.engagements.iter().map(|behaviour| behaviour.event_id.as_str()).collect();
    assert_eq!(ids, ["new", "lost-BEFORE", "lost-AFTER"]);
}
