//! Records that cannot be read, in every key of both stores: each harms its own user or item, and no start ends over one.

use crate::worlds::{click, data_plane_bundle, now_ms, write_lines};
use serde_json::{Value, json};
use std::path::Path;
use testkit::TAIJI;
use testkit::process::{Answer, SOON, Server, Setup, call, percent, run_with, wait_until};
use testkit::redis::RedisServer;

const GOOD: usize = 12;
const NEW_LIFE: &str = "new life";
/// What may stand in the place of a value.
const KINDS: [&str; 5] = ["empty", "cut", "foreign", "json", "format"];

fn good() -> Vec<String> {
    (0..GOOD).map(|user| format!("good-{user}")).collect()
}

/// A value of that kind in the place of this one.
fn garbage(kind: &str, value: &[u8]) -> Vec<u8> {
    match kind {
        "empty" => Vec::new(),
        "cut" => value[..value.len() / 2].to_vec(),
        "foreign" => (0..300u32).map(|n| (n * 7 + 0xF0) as u8).collect(),
        "json" => b"{\"their\": [1, {}".to_vec(),
        // The first byte of our records says how they are written.
        _ => [&[0xEE], value].concat(),
    }
}

/// A click of each user; those of a new life are later than the erasure.
fn post_events(server: &Server, users: &[String], name: &str) -> Value {
    let start = now_ms() + if name == NEW_LIFE { 60_000 } else { -50_000 };
    let click = |(place, user): (usize, &String)| click(user, &format!("{name} {user}"), start + place as i64);
    let events: Vec<Value> = users.iter().enumerate().map(click).collect();
    server.post("/v1/events", &json!({ "events": events })).expect_status(202).json()
}

fn delete(server: &Server, user: &str) -> Answer {
    call(server.public(), "DELETE", &format!("/v1/users/{}", percent(user)), &[], b"").expect("answer")
}

fn strings(value: &Value) -> Vec<Option<String>> {
    value.as_array().expect("a column").iter().map(|cell| cell.as_str().map(String::from)).collect()
}

/// Reads a thousand users, these among them: the answer is 200, and all but the bad ones are whole.
fn check_reads(server: &Server, bad: &[String]) -> Vec<Option<String>> {
    let mut users = [good(), bad.to_vec()].concat();
    let known = users.len();
    users.extend((known..1000).map(|n| format!("nobody-{n}")));
    let columns = server.columns(&users);
    let reasons = strings(&columns["groups"]["intra"]["reason"]);
    assert!(reasons[..GOOD].iter().all(Option::is_none), "{:?}", &reasons[..GOOD]);
    assert!(reasons[known..].iter().all(|reason| reason.as_deref() == Some("no_features")));
    let feast = json!({ "features": ["taiji_intra:sparse_ids"], "entities": { "user_id": users } });
    let feast = server.post("/get-online-features", &feast).expect_status(200).json();
    let statuses = strings(&feast["results"][1]["statuses"]);
    for (place, reason) in reasons.iter().enumerate() {
        let wanted = match reason.as_deref() {
            None => "PRESENT",
            // Garbage may look like a time that is over.
            Some("expired") => "OUTSIDE_MAX_AGE",
            Some(_) => "NOT_FOUND",
        };
        assert_eq!(statuses[place].as_deref(), Some(wanted), "{}: {reason:?}", users[place]);
    }
    reasons[GOOD..known].to_vec()
}

/// Good and bad users' events in one call: refused are exactly events of bad users, by their index. Returns who was refused.
fn check_events(server: &Server, bad: &[String], name: &str) -> Vec<String> {
    let users = [good(), bad.to_vec()].concat();
    let told = post_events(server, &users, name);
    let rejected = told["rejected"].as_array().expect("rejected");
    assert_eq!(told["accepted"].as_u64(), Some((users.len() - rejected.len()) as u64), "{told}");
    let index = |rejection: &Value| rejection["index"].as_u64().expect("index") as usize;
    assert!(rejected.iter().all(|rejection| index(rejection) >= GOOD && rejection["field"] == "user_id"), "{told}");
    rejected.iter().map(|rejection| users[index(rejection)].clone()).collect()
}

/// A refresh and the history of a user are that user's own trouble, and say so.
fn check_own_trouble(server: &Server, bad: &[String]) {
    for user in bad {
        let refresh = server.post(&format!("/v1/users/{}/refresh", percent(user)), &json!({}));
        assert!([202, 404, 500].contains(&refresh.status), "{user}: {}", refresh.text());
        let history = server.get(&format!("/v1/users/{}/history", percent(user)));
        assert!([200, 404, 500].contains(&history.status), "{user}: {}", history.text());
        for answer in [refresh, history].into_iter().filter(|answer| answer.status == 500) {
            let (_, code, message) = answer.error();
            assert!(code == "corrupt_record" && message.contains("DELETE /v1/users/"), "{user}: {message}");
        }
    }
}

/// Every bad user is erased, and begins anew.
fn check_erasures(server: &Server, bad: &[String]) {
    let before = server.metric("taiji_erasures_total{result=\"finished\"}");
    for user in bad {
        delete(server, user).expect_status(202);
    }
    wait_until("every erasure", SOON, || {
        let finished = server.metric("taiji_erasures_total{result=\"finished\"}") - before;
        (finished >= bad.len() as f64).then_some(())
    });
    let reasons = check_reads(server, bad);
    assert!(reasons.iter().all(|reason| reason.as_deref() == Some("no_features")), "{reasons:?}");
    assert!(check_events(server, bad, NEW_LIFE).is_empty());
    server.wait_for_features(bad, SOON);
}

fn check_items(server: &Server, id: &str) {
    let before = server.metric("taiji_catalogue_items{part=\"overlay\"}");
    server.post("/v1/items", &json!({ "items": [{ "id": id, "title": format!("The {id}") }] })).expect_status(202);
    wait_until("a new item beside the bad ones", SOON, || {
        (server.metric("taiji_catalogue_items{part=\"overlay\"}") > before).then_some(())
    });
}

/// `taiji feed` and `taiji backfill` of a file with events of bad users: they go on to its end, and say how many were refused.
fn check_files(server: &Server, folder: &Path, redis: &RedisServer) {
    let file = folder.join("events.jsonl");
    let users = [good(), vec!["bad-st".to_string()]].concat();
    write_lines(&file, users.iter().map(|user| click(user, &format!("file {user}"), now_ms() - 10_000)));
    let file = file.display().to_string();
    let feed = run_with(&TAIJI, &["feed", "--file", &file, "--http", &format!("http://{}", server.public())], &[]);
    let told = feed.expect_code(0).stdout;
    assert!(told.contains(&format!("{GOOD} accepted")) && told.contains("1 rejected"), "{told}");
    let bundle = folder.join("bundle").display().to_string();
    let arguments = ["backfill", "--file", &file, "--store", &redis.url(), "--bundle", &bundle];
    let told = run_with(&TAIJI, &arguments, &[]).expect_code(0).stdout;
    assert!(told.contains("1 rejected (1 of them because the store cannot read their users)"), "{told}");
}

fn setup(folder: &Path) -> Setup {
    let bundle = data_plane_bundle(folder);
    Setup::canned(&bundle, &folder.join("store")).env("TAIJI__REFRESH__FAST_PATH", "true")
}

/// The keys of a user on Redis, and what may stand there.
const USER_KEYS: [&str; 8] = ["st", "h:e", "h:i", "q", "prof", "f", "refs", "st.seq"];

fn redis_keys(redis: &RedisServer, pattern: &str) -> Vec<String> {
    redis.command(&["KEYS", pattern]).lines().filter(|line| line.starts_with("taiji:")).map(String::from).collect()
}

/// Spoils one key of each of the users, and tells whose features cannot be read now.
fn spoil_users(redis: &RedisServer, space: &str) -> Vec<String> {
    let mut bad = Vec::new();
    for part in USER_KEYS {
        let user = format!("bad-{part}");
        let key = match part {
            "f" | "refs" => format!("taiji:{{{user}}}:{part}:{space}"),
            "st.seq" => format!("taiji:{{{user}}}:st"),
            _ => format!("taiji:{{{user}}}:{part}"),
        };
        if part == "st.seq" {
            redis.command(&["HSET", &key, "seq", "abc"]);
        } else {
            redis.command(&["DEL", &key]);
            redis.command(&["SET", &key, "theirs"]);
        }
        bad.push(user);
    }
    for (field, value) in [("intra", "cut"), ("intra", &"\u{FFFD}".repeat(100)), ("rev", "x"), ("r", "1 x")] {
        let user = format!("bad-{field}-{}", value.len());
        redis.command(&["HSET", &format!("taiji:{{{user}}}:f:{space}"), field, value]);
        bad.push(user);
    }
    for (list, elements) in [("h:e", vec!["their", "own", "list"]), ("q", vec!["one"])] {
        let user = format!("bad-list-{list}");
        let key = format!("taiji:{{{user}}}:{list}");
        redis.command(&["DEL", &key]);
        redis.command(&[vec!["RPUSH", &key], elements].concat());
        bad.push(user);
    }
    bad
}

/// One bad member in every key of many.
fn spoil_members(redis: &RedisServer, space: &str) {
    let hash = |key: &str, field: &str, value: &str| redis.command(&["HSET", key, field, value]);
    for key in redis_keys(redis, &format!("taiji:vec:*:{space}")) {
        redis.command(&["ZADD", &key, "0.5", "foreign", "1", "nobody's"]);
        hash(&format!("{key}:v"), "foreign", "theirs");
        hash(&format!("{key}:v"), "nobody's", "0 1 0 ");
    }
    // In both forms of the queue.
    for (shard, form) in (0..8).flat_map(|shard| [(shard, String::new()), (shard, format!(":{space}"))]) {
        hash(&format!("taiji:leased:{{{shard}}}{form}"), "foreign", "theirs");
        redis.command(&["ZADD", &format!("taiji:lease:{{{shard}}}{form}"), "1", "foreign"]);
        redis.command(&["ZADD", &format!("taiji:due:{{{shard}}}{form}:1"), "1", &"x".repeat(500)]);
        redis.command(&["ZADD", &format!("taiji:due:{{{shard}}}{form}:1"), "1", "a\nb"]);
    }
    redis.command(&["ZADD", "taiji:items:{items}", "0.5", "foreign", "inf", "far"]);
    hash("taiji:items:{items}:v", "foreign", "{\"id\": 7");
    hash("taiji:erased:{erased}", "foreign", "theirs");
    redis.command(&["SADD", "taiji:spaces", &"s".repeat(400)]);
    hash("taiji:epoch", "later", "1");
    redis.command(&["SET", "taiji:users", "many"]);
    redis.command(&["SET", "taiji:item:{i1}:users", "theirs"]);
}

#[test]
fn audit_02_what_cannot_be_read_on_redis_harms_its_own_user_alone() {
    let redis = RedisServer::start();
    let folder = tempfile::tempdir().expect("tempdir");
    let setup = setup(folder.path()).on(&redis.url());
    let mut server = setup.start();
    let plain: Vec<String> = USER_KEYS.iter().map(|part| format!("bad-{part}")).collect();
    let deeper = ["intra-3", "intra-300", "rev-1", "r-3", "list-h:e", "list-q"].map(|name| format!("bad-{name}"));
    let bad = [plain, deeper.to_vec()].concat();
    let all = [good(), bad.clone()].concat();
    post_events(&server, &all, "first");
    let space = server.wait_for_features(&all, SOON)["space"].as_str().expect("space").to_string();

    spoil_members(&redis, &space);
    let spoilt = spoil_users(&redis, &space);
    assert_eq!(spoilt.len(), bad.len());
    let reasons = check_reads(&server, &spoilt);
    let unreadable = reasons.iter().filter(|reason| reason.as_deref() == Some("unreadable")).count();
    println!("audit 02: {unreadable} of 1,000 users unreadable in one read, the others whole; status 200");
    assert_eq!(unreadable, 4, "{reasons:?}");
    let refused = check_events(&server, &spoilt, "second");
    for part in ["st", "h:e", "h:i", "q", "st.seq", "list-h:e"] {
        assert!(refused.contains(&format!("bad-{part}")), "{part}: {refused:?}");
    }
    server.wait_for_features(&good(), SOON);
    check_own_trouble(&server, &spoilt);
    check_items(&server, "after the bad one");
    check_files(&server, folder.path(), &redis);

    // The next start reads all feeds and erasures from the beginning.
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    let mut server = setup.start();
    check_reads(&server, &spoilt);
    check_items(&server, "after the start");
    check_events(&server, &spoilt, "third");
    server.wait_for_features(&good(), SOON);
    check_erasures(&server, &spoilt);
    assert!(server.metric("taiji_store_unreadable_total") >= 5.0);
    let aside = redis_keys(&redis, "taiji:unreadable:*");
    assert!(aside.iter().any(|key| key.contains("{items}")), "{aside:?}");
    assert_eq!(redis.command(&["ZSCORE", "taiji:items:{items}", "foreign"]), "$-1\r\n");
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

fn held_keys(server: &Server) -> Option<String> {
    let answer = call(server.admin(), "GET", "/readyz", &[], b"").ok()?.json();
    let latch = answer["latches"].as_array()?.iter().find(|latch| latch["latch"] == "keys")?.clone();
    latch["reason"].as_str().map(String::from)
}

#[test]
fn audit_02_a_key_of_many_of_another_type_is_named_by_readyz_and_reads_go_on() {
    let redis = RedisServer::start();
    let folder = tempfile::tempdir().expect("tempdir");
    let setup = setup(folder.path()).on(&redis.url());
    let mut server = setup.start();
    post_events(&server, &good(), "first");
    let space = server.wait_for_features(&good(), SOON)["space"].as_str().expect("space").to_string();
    let keys = [
        "taiji:due:{3}:1".to_string(),
        format!("taiji:leased:{{3}}:{space}"),
        format!("taiji:vec:{{3}}:{space}"),
        "taiji:items:{items}:v".to_string(),
        "taiji:erased:{erased}".to_string(),
        "taiji:spaces".to_string(),
    ];
    let kept: Vec<String> = keys.iter().map(|key| format!("{key}.kept")).collect();
    for (key, kept) in keys.iter().zip(&kept) {
        redis.command(&["RENAME", key, kept]);
        redis.command(&["RPUSH", key, "theirs"]);
        let named = wait_until(key, SOON, || held_keys(&server).filter(|reason| reason.contains(key.as_str())));
        assert!(named.contains("list"), "{named}");
        check_reads(&server, &[]);
    }
    // A start in this state waits, and says for what.
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    let (waiting, _) = setup.start_waiting("keys", &keys[2]);
    for (key, kept) in keys.iter().zip(&kept) {
        redis.command(&["DEL", key]);
        redis.command(&["RENAME", kept, key]);
    }
    wait_until("readiness", SOON, || {
        (call(waiting.admin(), "GET", "/readyz", &[], b"").ok()?.status == 200).then_some(())
    });
    check_events(&waiting, &[], "second");
    waiting.wait_for_features(&good(), SOON);
    assert!(!waiting.stderr().contains("panicked"), "{}", waiting.stderr());
    drop(waiting);
    redis.command(&["RENAME", "taiji:epoch", "taiji:epoch.kept"]);
    redis.command(&["SET", "taiji:epoch", "theirs"]);
    let (waiting, _) = setup.start_waiting("store", "taiji:epoch");
    redis.command(&["RENAME", "taiji:epoch.kept", "taiji:epoch"]);
    wait_until("readiness", SOON, || {
        (call(waiting.admin(), "GET", "/readyz", &[], b"").ok()?.status == 200).then_some(())
    });
}

/// Overwrites records of the embedded store's folder: of each keyspace, for each kind of garbage, some user's or any.
fn spoil_folder(folder: &Path) -> usize {
    let database = fjall::Database::builder(folder).open().expect("database");
    let mut spoilt = 0;
    for name in ["states", "users", "due", "feeds", "items", "erased"] {
        let options = fjall::KeyspaceCreateOptions::default;
        let keyspace = database.keyspace(&format!("taiji.{name}"), options).expect("keyspace");
        let entries: Vec<_> = keyspace.iter().map(|entry| entry.into_inner().expect("entry")).collect();
        for kind in KINDS {
            // Of a user: those whose name says so. Of items and feeds: one in five of what is not a good user's.
            let mark = format!("bad-{kind}");
            for (place, (key, value)) in entries.iter().enumerate() {
                let text = String::from_utf8_lossy(key).into_owned();
                let about_many = matches!(name, "feeds" | "items") && !text.contains("good-") && place % 5 == 0;
                if text.contains(&mark) || (about_many && KINDS[place / 5 % 5] == kind && !value.is_empty()) {
                    keyspace.insert(key.clone(), garbage(kind, value)).expect("insert");
                    spoilt += 1;
                }
            }
        }
        keyspace.insert(b"\xFF\xFFforeign key".as_slice(), b"theirs".as_slice()).expect("insert");
    }
    database.persist(fjall::PersistMode::SyncAll).expect("persist");
    spoilt
}

#[test]
fn audit_02_what_cannot_be_read_in_a_folder_harms_its_own_user_alone() {
    let folder = tempfile::tempdir().expect("tempdir");
    let setup = setup(folder.path());
    let mut server = setup.start();
    let bad: Vec<String> = KINDS.iter().map(|kind| format!("bad-{kind}")).collect();
    let all = [good(), bad.clone()].concat();
    post_events(&server, &all, "first");
    server.wait_for_features(&all, SOON);
    for id in 0..20 {
        server.post("/v1/items", &json!({ "items": [{ "id": format!("post-{id}"), "title": "A title" }] }));
    }
    delete(&server, "bad-json").expect_status(202);
    post_events(&server, &bad, "again");
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    let spoilt = spoil_folder(&folder.path().join("store"));
    println!("audit 02: {spoilt} records of a folder spoilt; it opens, serves and erases");

    let mut server = setup.start();
    let reasons = check_reads(&server, &bad);
    assert!(reasons.iter().any(|reason| reason.as_deref() == Some("unreadable")), "{reasons:?}");
    assert!(!check_events(&server, &bad, "second").is_empty());
    server.wait_for_features(&good(), SOON);
    check_own_trouble(&server, &bad);
    check_items(&server, "after the bad ones");
    check_erasures(&server, &bad);
    assert!(server.metric("taiji_store_unreadable_total") >= 5.0);
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    let again = setup.start();
    check_reads(&again, &[]);
    assert!(!again.stderr().contains("panicked"), "{}", again.stderr());
}
