//! Upgrades: stores that 0.1.0 left are opened, migrated and served; and two builds take turns on one Redis under load.
//!
//! `tests/fixtures/upgrade` was written by 0.1.0 itself (its `make.py` says how). The second build of the load test is this one with
//! `TAIJI_REHEARSAL`, which makes it another build; `make upgrade-check OLD=…` takes a real earlier program instead.

use crate::worlds::click;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Instant;
use testkit::process::{Ended, SOON, Server, Setup, call, command, run, wait_until};
use testkit::redis::RedisServer;
use testkit::{TAIJI, demo_bundle, fixture};

/// News that 0.1.0 had taken in and nobody had refreshed.
const BEHIND: &str = "user-5";

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("folder") {
        let (path, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("entry");
        if path.is_dir() {
            copy_all(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("file");
        }
    }
}

/// The bundle that wrote the fixtures; its encoder is the demo's.
fn bundle(folder: &Path) -> PathBuf {
    let bundle = folder.join("bundle");
    copy_all(&fixture("upgrade/bundle"), &bundle);
    copy_all(&demo_bundle().join("encoder"), &bundle.join("encoder"));
    bundle
}

/// What 0.1.0 answered last, by user.
fn expected(store: &str) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(fixture("upgrade/expected.json")).expect("expected.json");
    let mut all: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(&text).expect("json");
    all.remove(store).expect(store)
}

/// Everything is there as it was, counted once, and goes on: what was due is refreshed, old events are duplicates, new ones news.
fn serves_what_was_left(setup: &Setup, store: &str) {
    let mut server = setup.start();
    for (user, was) in expected(store) {
        let history = server.history(&user).expect("a history");
        for (field, value) in was["history"].as_object().expect("fields") {
            assert_eq!(history[field], *value, "{user}: {field}");
        }
        let row = server.row(&user, "intra,cross");
        if user != BEHIND {
            assert_eq!(row["groups"]["intra"], was["row"]["groups"]["intra"], "{user}");
        }
        assert_eq!(row["status"], "PRESENT", "{user}");
    }
    assert_eq!(server.row("erased", "intra")["status"], "MISSING");
    let behind = [BEHIND.to_string()];
    server.wait_for_features(&behind, SOON);
    let again = json!({ "events": [click("user-0", "user-0 click 3", 1_700_000_003_000), click("user-0", "new", 1_700_000_100_000)] });
    let told = server.post("/v1/events", &again).expect_status(202).json();
    assert_eq!((told["accepted"].as_u64(), told["duplicates"].as_u64()), (Some(1), Some(1)), "{told}");
    server.wait_for_features(&["user-0".to_string()], SOON);
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
}

#[test]
fn audit_09_a_redis_that_0_1_0_left_is_opened_migrated_and_served() {
    let (folder, server) = (tempfile::tempdir().expect("tempdir"), RedisServer::start());
    server.replay(&std::fs::read(fixture("upgrade/redis.aof")).expect("redis.aof"));
    let setup = Setup::canned(&bundle(folder.path()), folder.path()).on(&server.url());
    serves_what_was_left(&setup, "redis");
    assert_eq!(server.command(&["HGET", "taiji:epoch", "schema"]), "$1\r\n1\r\n", "the way back is open");

    let url = server.operators_url();
    let migrate = |actions: &[&str]| run(command(&TAIJI, &[&["migrate", "--store", &url], actions].concat()));
    assert!(migrate(&["plan"]).expect_code(0).stdout.contains("allow layout"));
    migrate(&["clean", "--no-0.1.0-left"]).expect_code(69);
    migrate(&["apply"]).expect_code(0);
    let mut running = setup.start();
    let refused = migrate(&["clean"]).expect_code(69);
    assert!(refused.stderr.contains("--no-0.1.0-left"), "{}", refused.stderr);
    migrate(&["clean", "--no-0.1.0-left"]).expect_code(0);
    assert!(!server.command(&["FUNCTION", "LIST"]).contains("taiji_1\r\n"));
    running.wait_for_features(&["user-0".to_string()], SOON);
    assert_eq!(running.stop(), Some(0), "{}", running.stderr());
    assert_eq!(setup.start().row("user-1", "intra")["status"], "PRESENT", "opened again");
}

#[test]
fn audit_09_a_folder_that_0_1_0_left_is_opened_and_served() {
    let folder = tempfile::tempdir().expect("tempdir");
    let store = folder.path().join("store");
    copy_all(&fixture("upgrade/embedded"), &store);
    // Git keeps no empty folders.
    for keyspace in std::fs::read_dir(store.join("keyspaces")).expect("keyspaces") {
        std::fs::create_dir_all(keyspace.expect("entry").path().join("tables")).expect("tables");
    }
    serves_what_was_left(&Setup::canned(&bundle(folder.path()), &store), "embedded");
}

#[test]
fn audit_09_two_builds_of_this_tree_take_turns_under_load() {
    let rehearsed = |setup: Setup| setup.env("TAIJI_REHEARSAL", "later");
    let plain = |setup| setup;
    for (redis, keys) in [
        (take_turns(&plain, &rehearsed, "two builds of this tree"), 2),
        // Who opens a namespace first writes its epoch.
        (take_turns(&rehearsed, &plain, "two builds of this tree, the later one first"), 3),
    ] {
        let spaces = redis.command(&["SMEMBERS", "taiji:spaces"]);
        let space = spaces.lines().last().expect("a space");
        let written = ["taiji:{user 0}:st", &format!("taiji:{{user 0}}:f:{space}"), "taiji:epoch"];
        for key in &written[..keys] {
            assert_eq!(redis.command(&["HGET", key, "rehearsal"]), "$5\r\nlater\r\n", "{key} has what nobody knows");
        }
    }
}

#[test]
fn audit_18_one_sweep_after_the_way_back_nobody_is_behind() {
    way_back(&|setup| setup, &|setup: Setup| setup.env("TAIJI_REHEARSAL", "later"), "two builds of this tree");
}

/// The new program migrates and takes in events that it does not refresh; the old one comes back alone.
fn way_back(old: &dyn Fn(Setup) -> Setup, new: &dyn Fn(Setup) -> Setup, name: &str) {
    let (folder, redis) = (tempfile::tempdir().expect("tempdir"), RedisServer::start());
    redis.replay(&std::fs::read(fixture("upgrade/redis.aof")).expect("redis.aof"));
    let bundle = bundle(folder.path());
    let member = || Setup::canned(&bundle, folder.path()).on(&redis.operators_url());
    let users: Vec<String> = (0..USERS).map(user).collect();
    let post = |server: &Server, round: i64| {
        let events: Vec<Value> =
            users.iter().map(|user| click(user, &format!("{user} {round}"), 1_700_000_000_000 + round)).collect();
        server.post("/v1/events", &json!({ "events": events })).expect_status(202);
    };
    let mut after = new(member()).flag("--roles", "api").start();
    post(&after, 1);
    applied(&redis.operators_url()).expect_code(0);
    let moved = queued(&redis, "taiji:due:{*}:?");
    // It writes the new form from the start on.
    assert_eq!(after.stop(), Some(0), "{}", after.stderr());
    let mut after = new(member()).flag("--roles", "api").start();
    post(&after, 2);
    assert_eq!(after.stop(), Some(0), "{}", after.stderr());
    let marked = queued(&redis, "taiji:due:{*}:?");
    assert_eq!([moved, marked].map(|count| count >= USERS), [true; 2], "{moved} moved, {marked} marked");

    let interval_ms = 2_000;
    let back = old(member()).env("TAIJI__REFRESH__SWEEP_INTERVAL_MS", &interval_ms.to_string()).start();
    let begun = Instant::now();
    back.wait_for_features(&users, SOON);
    println!(
        "audit 18: after the way back ({name}), with a sweep every {interval_ms} ms, nobody of {USERS} is behind after {} ms",
        begun.elapsed().as_millis()
    );
}

/// Users in the sorted sets of these names.
fn queued(redis: &RedisServer, pattern: &str) -> usize {
    let keys = redis.command(&["KEYS", pattern]);
    let keys = keys.lines().filter(|line| line.starts_with("taiji:"));
    let count =
        |key: &str| redis.command(&["ZCARD", key]).trim().trim_start_matches(':').parse::<usize>().expect("count");
    keys.map(count).sum()
}

/// Run by `make upgrade-check OLD=…`.
#[test]
#[ignore = "needs the program of an earlier release"]
fn upgrade_check() {
    let old = std::env::var("TAIJI_OLD").expect("OLD=<an earlier release's program>");
    let _ = take_turns(&|setup| setup.of(&old), &|setup| setup, &old);
    way_back(&|setup| setup.of(&old), &|setup| setup, &old);
}

const USERS: usize = 40;
/// Events a user at most: none may leave a history of 100.
const ROUNDS: usize = 90;
/// How far the load has come when a step begins: old, both, new, migrated, both, old.
const STEPS: [usize; 5] = [15, 30, 45, 60, 75];

/// What the load sees.
#[derive(Default)]
struct Load {
    /// Public ports that may be asked.
    ports: RwLock<Vec<String>>,
    rounds: AtomicUsize,
    reads: AtomicUsize,
    unreadable: Mutex<Vec<String>>,
    ended: AtomicBool,
}

fn user(n: usize) -> String {
    format!("user {n}")
}

impl Load {
    /// Posts an event of every user, at any port, until it is taken: what a client does that wants to lose nothing.
    fn post(&self, round: usize) {
        let events: Vec<Value> = (0..USERS)
            .map(|n| click(&user(n), &format!("{n} {round}"), 1_700_000_000_000 + (round * 1000) as i64))
            .collect();
        let body = json!({ "events": events }).to_string();
        wait_until("a port that takes events", SOON, || {
            let ports = self.ports.read().expect("ports").clone();
            let port = &ports[round % ports.len()];
            let answer = call(port, "POST", "/v1/events", &[], body.as_bytes()).ok()?;
            (answer.status == 202).then_some(())
        });
        self.rounds.fetch_add(1, Ordering::SeqCst);
    }

    /// Reads all users at every port; each must answer, and a user of whom there are features must have them.
    fn read(&self) {
        let body = json!({ "users": (0..USERS).map(user).collect::<Vec<_>>() }).to_string();
        let mut present = false;
        while !self.ended.load(Ordering::SeqCst) {
            for port in self.ports.read().expect("ports").iter() {
                let answer = call(port, "POST", "/v1/features", &[], body.as_bytes()).expect("an answer");
                let columns = answer.json();
                let all = answer.status == 200 && columns["status"] == json!(vec!["PRESENT"; USERS]);
                present |= all;
                if answer.status != 200 || (present && !all) {
                    self.unreadable.lock().expect("unreadable").push(columns.to_string());
                }
                self.reads.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn wait_for(&self, rounds: usize) {
        wait_until("the load", SOON, || (self.rounds.load(Ordering::SeqCst) >= rounds).then_some(()));
    }

    /// These ports from now on; nobody asks others any more when it returns.
    fn turn_to(&self, servers: &[&Server]) {
        *self.ports.write().expect("ports") = servers.iter().map(|server| server.public().to_string()).collect();
    }
}

/// Old, both, new alone (which migrates), both, old alone, under load: nothing lost, nothing twice, nothing unreadable.
fn take_turns(old: &dyn Fn(Setup) -> Setup, new: &dyn Fn(Setup) -> Setup, name: &str) -> RedisServer {
    let (folder, redis) = (tempfile::tempdir().expect("tempdir"), RedisServer::start());
    let bundle = bundle(folder.path());
    // 0.1.0 lists functions, which the least rights of now do not grant.
    let member = || Setup::canned(&bundle, folder.path()).on(&redis.operators_url());
    let mut before = old(member()).start();
    let load = Load::default();
    load.turn_to(&[&before]);
    let back = std::thread::scope(|scope| {
        scope.spawn(|| load.read());
        scope.spawn(|| (0..ROUNDS).for_each(|round| load.post(round)));
        load.wait_for(STEPS[0]);
        let mut after = new(member()).start();
        load.turn_to(&[&before, &after]);
        load.wait_for(STEPS[1]);
        load.turn_to(&[&after]);
        assert_eq!(before.stop(), Some(0), "{}", before.stderr());
        load.wait_for(STEPS[2]);
        applied(&redis.operators_url()).expect_code(0);
        load.wait_for(STEPS[3]);
        let back = old(member()).start();
        load.turn_to(&[&back, &after]);
        load.wait_for(STEPS[4]);
        load.turn_to(&[&back]);
        assert_eq!(after.stop(), Some(0), "{}", after.stderr());
        load.wait_for(ROUNDS);
        back.wait_for_features(&(0..USERS).map(user).collect::<Vec<_>>(), SOON);
        load.ended.store(true, Ordering::SeqCst);
        back
    });
    let (mut lost, mut doubled) = (0, 0);
    for n in 0..USERS {
        let history = back.history(&user(n)).expect("a history");
        let kept: Vec<&str> = history["engagements"]
            .as_array()
            .expect("engagements")
            .iter()
            .filter_map(|event| event["event_id"].as_str())
            .collect();
        for round in 0..ROUNDS {
            let times = kept.iter().filter(|id| **id == format!("{n} {round}")).count();
            lost += usize::from(times == 0);
            doubled += times.saturating_sub(1);
        }
        doubled += (history["seq"].as_u64().expect("seq") as usize).saturating_sub(ROUNDS);
    }
    let (unreadable, reads) = (load.unreadable.lock().expect("unreadable"), load.reads.load(Ordering::SeqCst));
    println!(
        "audit 09: old → new → old ({name}), {} events and {reads} reads: {lost} lost, {doubled} counted twice, {} reads of 40 users with one unreadable",
        USERS * ROUNDS,
        unreadable.len()
    );
    assert_eq!((lost, doubled, unreadable.first()), (0, 0, None));
    redis
}

fn applied(url: &str) -> Ended {
    run(command(&TAIJI, &["migrate", "--store", url, "apply"]))
}
