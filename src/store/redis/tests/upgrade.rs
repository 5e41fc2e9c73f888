//! Two builds on one server, layouts, members, functions that are gone: what an upgrade and an operator may do to us.

use super::*;
use crate::store::redis::functions;
use crate::store::redis::link::Link;
use crate::store::redis::members;
use crate::store::{DueEntry, FeedCursor, Member, Members, Queue, Record, RecordBody, StoreError};
use std::collections::BTreeMap;
use testkit::redis::RIGHTS;

fn address(url: &str) -> Address {
    Address::parse(url).unwrap()
}

async fn open(url: &str) -> StoreResult<Arc<RedisStore>> {
    RedisStore::open(address(url), options(2)).await
}

async fn append(store: &RedisStore, user: &str, n: i64) -> StoreResult<u64> {
    let query = Record {
        ts_ms: n,
        event_id: format!("e{n}"),
        former_id: None,
        weight: 1.0,
        body: RecordBody::Query("tea".into()),
    };
    let batch = UserBatch { user: user.into(), records: vec![query] };
    Ok(store.append(&["s".into()], &[batch]).await?[0].state.seq)
}

/// What 0.1.0 leaves: its schema, its shards, its library under its own name.
pub(super) fn as_the_first_build(server: &RedisServer) {
    server.command(&["HSET", "taiji:epoch", "schema", "1", "shards", "2"]);
    let loaded = server.command(&[
        "FUNCTION",
        "LOAD",
        "#!lua name=taiji_1\nredis.register_function('taiji_1_append', function() return 'first' end)",
    ]);
    assert!(loaded.starts_with('$'), "{loaded}");
}

fn libraries(server: &RedisServer) -> String {
    server.command(&["FUNCTION", "LIST"])
}

#[tokio::test]
async fn audit_09_a_build_loads_beside_the_first_one_and_touches_neither_its_functions_nor_its_schema() {
    let server = RedisServer::start();
    as_the_first_build(&server);
    let store = open(&server.url()).await.unwrap();
    assert_eq!(append(&store, "u", 1).await.unwrap(), 1);
    assert_eq!(server.command(&["FCALL", "taiji_1_append", "0"]), "$5\r\nfirst\r\n");
    assert_eq!(server.command(&["HGET", "taiji:epoch", "schema"]), "$1\r\n1\r\n");
    assert_eq!(server.command(&["HEXISTS", "taiji:epoch", "written"]), ":0\r\n", "only `migrate apply` raises it");
    assert!(libraries(&server).contains(functions::library()));
}

#[tokio::test]
async fn audit_09_a_program_opens_what_its_range_of_layouts_covers() {
    let server = RedisServer::start();
    drop(open(&server.url()).await.unwrap());
    let set = |written: &str, readable_from: &str, schema: &str| {
        let fields = ["HSET", "taiji:epoch", "written", written, "readable_from", readable_from, "schema", schema];
        server.command(&fields);
    };
    for (written, readable_from, schema, part) in [
        ("1", "1", "1", ""),
        ("2", "1", "1", ""),
        ("3", "1", "1", ""),
        ("3", "3", "3", ""),
        ("4", "1", "1", "use a newer program"),
        ("4", "4", "4", "use a newer program"),
        ("2", "0", "1", "of an earlier release"),
    ] {
        set(written, readable_from, schema);
        let opened = open(&server.url()).await;
        match opened.err().map(|error| error.to_string()) {
            None => assert_eq!(part, "", "{written} {readable_from}"),
            Some(text) => assert!(!part.is_empty() && text.contains(part), "{written} {readable_from}: {text}"),
        }
    }
    set("2", "1", "99");
    assert!(matches!(open(&server.url()).await.err(), Some(StoreError::Open { .. })), "of somebody else");
}

#[tokio::test]
async fn audit_09_apply_raises_written_once_and_clean_closes_the_way_back() {
    let server = RedisServer::start();
    as_the_first_build(&server);
    server.command(&[
        "FUNCTION",
        "LOAD",
        "#!lua name=taiji_1_0\nredis.register_function('taiji_1_0_x', function() end)",
    ]);
    let look = async || Migration::look(address(&server.operators_url()), &options(2)).await.unwrap();
    let early = look().await.look_for_leftovers(true).await.unwrap();
    assert!(early.objections[0].contains("apply"), "{:?}", early.objections);
    look().await.apply().await.unwrap();
    assert_eq!(look().await.steps, []);
    let epoch = |field: &str| server.command(&["HGET", "taiji:epoch", field]);
    assert_eq!(
        [epoch("schema"), epoch("readable_from"), epoch("written")].map(|text| text
            .lines()
            .nth(1)
            .unwrap()
            .to_string()),
        ["1", "1", "3"]
    );

    let migration = look().await;
    let asked = migration.look_for_leftovers(false).await.unwrap();
    assert!(asked.objections.iter().any(|text| text.contains("--no-0.1.0-left")), "{:?}", asked.objections);
    let ready = migration.look_for_leftovers(true).await.unwrap();
    assert_eq!((ready.steps.len(), ready.objections.len()), (3, 0), "{:?}", ready.objections);
    migration.clean(&ready).await.unwrap();
    let left = libraries(&server);
    assert!(
        left.contains(functions::library()) && !left.contains("taiji_1\r\n") && !left.contains("taiji_1_0"),
        "{left}"
    );
    assert_eq!(
        [epoch("schema"), epoch("readable_from")].map(|text| text.lines().nth(1).unwrap().to_string()),
        ["3", "3"]
    );
    assert_eq!(look().await.look_for_leftovers(false).await.unwrap().steps, []);
    assert_eq!(append(&open(&server.url()).await.unwrap(), "u", 1).await.unwrap(), 1);
}

#[tokio::test]
async fn audit_09_clean_refuses_while_another_build_lives_and_spares_the_functions_of_other_namespaces() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    let member = Member { id: "00ab".into(), roles: "api,infer".into(), epochs: vec![3, 4] };
    store.announce(&member).await.unwrap();
    let load = |name: &str| {
        let source = format!("#!lua name={name}\nredis.register_function('{name}_x', function() end)");
        server.command(&["FUNCTION", "LOAD", &source]);
    };
    for name in ["taiji_1_aaaaaaaaaaaa", "taiji_1_bbbbbbbbbbbb", "taiji_1_cccccccccccc"] {
        load(name);
    }
    server.command(&["HSET", "taiji:member:0b", "library", "taiji_1_aaaaaaaaaaaa", "build", "0.0.9", "roles", "api"]);
    server.command(&["HSET", "other:member:0c", "library", "taiji_1_bbbbbbbbbbbb"]);
    server.command(&["SET", "third:member:0d", "no entry"]);
    let look = async || Migration::look(address(&server.operators_url()), &options(2)).await.unwrap();
    let refused = look().await.look_for_leftovers(false).await.unwrap();
    assert_eq!(refused.objections.len(), 1, "{:?}", refused.objections);
    assert!(
        refused.objections[0].contains("0.0.9") && refused.objections[0].contains("0b"),
        "{:?}",
        refused.objections
    );

    server.command(&["DEL", "taiji:member:0b"]);
    let migration = look().await;
    let cleaning = migration.look_for_leftovers(false).await.unwrap();
    assert_eq!(cleaning.objections, [""; 0]);
    migration.clean(&cleaning).await.unwrap();
    let left = libraries(&server);
    let is_left = ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"].map(|name| left.contains(name));
    assert_eq!(is_left, [false, true, false]);
}

#[tokio::test]
async fn audit_09_leases_of_the_first_build_are_told_from_ours() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    as_the_first_build(&server);
    store.mark_due(Queue::Due, &[DueEntry { user: "u".into(), class: 1, due_ms: 1 }]).await.unwrap();
    let claims = store.claim(Queue::Due, 1, Duration::from_secs(600)).await.unwrap();
    let leftovers = async || {
        let migration = Migration::look(address(&server.operators_url()), &options(2)).await.unwrap();
        migration.look_for_leftovers(true).await.unwrap().objections
    };
    assert_eq!(leftovers().await, [""; 0], "ours do not stand in the way");
    assert!(store.renew(Queue::Due, &claims[0], Duration::from_secs(600)).await.unwrap());
    let ends = (unix_ms() + 600_000).to_string();
    server.command(&["ZADD", "elsewhere:lease:{0}:x", &ends, "v"]);
    server.command(&["HSET", "elsewhere:leased:{0}:x", "v", "9876543210 1 5"]);
    assert!(leftovers().await[0].contains("elsewhere:lease:{0}:x"), "{:?}", leftovers().await);
    server.command(&["ZADD", "elsewhere:lease:{0}:x", "5", "v"]);
    assert_eq!(leftovers().await, [""; 0], "it has run out");
    assert!(store.release(Queue::Due, &claims[0]).await.unwrap());
}

#[tokio::test]
async fn audit_09_an_entry_tells_what_a_process_is_expires_and_is_taken_back() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    let member = Member { id: "00ab".into(), roles: "api,infer".into(), epochs: vec![3, 4] };
    store.announce(&member).await.unwrap();
    let link = Link::open(address(&server.url()), &options(2)).await.unwrap();
    let found = members::all(&link).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].roles.as_str(), found[0].library.as_str()), ("api,infer", functions::library()));
    let fields = server.command(&["HGETALL", "taiji:member:00ab"]);
    for part in ["epochs", "3,4", "layouts", "1-3", "time", "written", env!("CARGO_PKG_VERSION")] {
        assert!(fields.contains(part), "{part}: {fields}");
    }
    let expiry: i64 = server.command(&["PTTL", "taiji:member:00ab"]).trim().trim_start_matches(':').parse().unwrap();
    assert!((1..=30_000).contains(&expiry), "{expiry}");
    server.command(&["HSET", "taiji:epoch", "written", "9"]);
    assert!(matches!(store.announce(&member).await, Err(StoreError::Open { .. })), "migrated under us");
    server.command(&["FLUSHALL"]);
    store.announce(&member).await.unwrap();
    assert_eq!(server.command(&["HGET", "taiji:epoch", "shards"]), "$1\r\n2\r\n", "an emptied server is initialised");
    store.leave("00ab").await.unwrap();
    assert_eq!(members::all(&link).await.unwrap(), []);
}

/// Every call of the trait that is a function meets a server without functions.
#[tokio::test]
async fn audit_10_functions_that_are_gone_are_loaded_and_the_call_repeated() {
    let server = RedisServer::start();
    let store = open(&server.url()).await.unwrap();
    let flush = || assert_eq!(server.command(&["FUNCTION", "FLUSH"]), "+OK\r\n");
    for n in 1..=20 {
        flush();
        assert_eq!(append(&store, "u", n).await.unwrap(), n as u64);
    }
    flush();
    store.mark_due(Queue::Due, &[DueEntry { user: "u".into(), class: 1, due_ms: 1 }]).await.unwrap();
    flush();
    let claims = store.claim(Queue::Due, 1, Duration::from_secs(60)).await.unwrap();
    flush();
    assert!(store.renew(Queue::Due, &claims[0], Duration::from_secs(60)).await.unwrap());
    flush();
    assert!(store.release(Queue::Due, &claims[0]).await.unwrap());
    flush();
    assert!(store.items_after(&FeedCursor::default(), 10).await.unwrap().entries.is_empty());
    println!("audit 10: 24 calls right after a FUNCTION FLUSH, 0 failed");
    assert_eq!(store.trouble(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_10_a_take_over_by_a_replica_without_functions_is_healed() {
    let cluster = RedisCluster::start_with_replicas();
    let store = open(&cluster.url()).await.unwrap();
    let users: Vec<String> = (0..50).map(|user| format!("u{user}")).collect();
    let mut seen = BTreeMap::new();
    for user in &users {
        append(&store, user, 1).await.unwrap();
    }
    cluster.wait_for_replicas();
    for place in 0..3 {
        cluster.hand_over(place);
        assert_eq!(cluster.replicas[place].command(&["FUNCTION", "FLUSH"]), "+OK\r\n");
    }
    for user in &users {
        seen.insert(user, append(&store, user, 2).await.unwrap());
    }
    assert!(seen.values().all(|seq| *seq == 2), "{seen:?}");
}

#[tokio::test]
async fn audit_10_where_loading_is_refused_the_store_says_so_until_it_is_allowed() {
    let server = RedisServer::start();
    let user = ["ACL", "SETUSER", "narrow", "on", ">pw", "~taiji:*"].into_iter();
    let user = user.chain(RIGHTS.split(' ')).chain(["-function|load"]);
    server.command(&user.collect::<Vec<_>>());
    let store = open(&server.operators_url().replace("redis://", "redis://narrow:pw@")).await;
    let refused = store.err().unwrap();
    assert!(matches!(&refused, StoreError::Denied { message, .. } if message.contains("function|load")), "{refused}");

    let loads = open(&server.url()).await.unwrap();
    let store = open(&server.operators_url().replace("redis://", "redis://narrow:pw@")).await.unwrap();
    assert_eq!(append(&store, "u", 1).await.unwrap(), 1, "loaded by another process");
    server.command(&["FUNCTION", "FLUSH"]);
    let refused = append(&store, "u", 2).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Denied { message, .. } if message.contains("function|load")), "{refused}");
    let told = store.trouble().expect("unready");
    assert!(told.contains("cannot be loaded") && told.contains("function|load"), "{told}");
    assert!(store.histories(&["u".into()]).await.unwrap()[0].is_some(), "plain reads go on");
    // Whoever loads them: the next call that is answered ends it.
    assert_eq!(append(&loads, "u", 3).await.unwrap(), 2);
    assert_eq!(append(&store, "u", 4).await.unwrap(), 3);
    assert_eq!(store.trouble(), None);
}

/// A function that runs for ever is killed by the operator; ours were only waiting behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_10_a_script_kill_fails_no_call_of_ours() {
    let server = Arc::new(RedisServer::with(&["--busy-reply-threshold", "50"]));
    let store = open(&server.url()).await.unwrap();
    server.command(&[
        "FUNCTION",
        "LOAD",
        "#!lua name=loop\nredis.register_function('loop', function() while true do end end)",
    ]);
    let looping = std::thread::spawn({
        let server = server.clone();
        move || server.command(&["FCALL", "loop", "0"])
    });
    while !server.command(&["PING"]).contains("BUSY") {}
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { append(&store, "u", 1).await })
    };
    let killed = server.command(&["FUNCTION", "KILL"]);
    assert!(killed.starts_with("+OK"), "{killed}");
    assert!(looping.join().unwrap().contains("killed"));
    // Refused while Redis was busy, or stored: the client's repeat is stored either way.
    if let Err(error) = waiting.await.unwrap() {
        assert!(error.is_transient(), "{error}");
    }
    assert_eq!(append(&store, "u", 1).await.unwrap(), 1);
}

/// `RedisServer::url` and `RedisCluster::url` log in as a user with no other rights, so every test here runs with them.
#[tokio::test]
async fn audit_10_the_rights_in_the_readme_are_those_of_the_tests_and_do() {
    let readme = include_str!("../../../../README.md");
    assert!(readme.contains(&format!("~taiji:* {}\n", RIGHTS)), "{RIGHTS}");
    let (server, cluster) = (RedisServer::start(), RedisCluster::start());
    for url in [server.url(), cluster.url()] {
        assert!(url.contains("service:pw@"), "{url}");
        let store = open(&url).await.unwrap();
        assert_eq!(append(&store, "u", 1).await.unwrap(), 1);
        store.incarnation().await.unwrap();
        store.stats().await.unwrap();
        store.sweep(&["s".into()]).await.unwrap();
    }
    assert!(server.command(&["ACL", "GETUSER", "service"]).contains("-@all"), "nothing else is granted");
}
