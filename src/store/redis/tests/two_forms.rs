//! The queue of all spaces beside those of single spaces: what a program of before left, marks and leases is found, moved, and nobody
//! is lost or taken twice. The program of before is 0.1.0's own functions, out of the fixture that it left.

use super::upgrade::as_the_first_build;
use super::*;
use crate::store::redis::keys::shard_of;
use crate::store::{Claim, DueEntry, Erasures, Member, Members, Queue, Record, RecordBody};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;
use testkit::fixture;

const SPACE: &str = "space";
const LEASE: Duration = Duration::from_secs(600);
const SHARDS: u32 = 2;

/// A server that a busy machine starves for half a second is not given up: a release that is sent again finds its lease gone.
async fn open(server: &RedisServer) -> Arc<RedisStore> {
    let assurance = Assurance { read_deadline: Duration::from_secs(10), ..Assurance::default() };
    let options = RedisOptions { assurance, ..options(SHARDS) };
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options).await.unwrap();
    store.note_space(SPACE).await.unwrap();
    store
}

/// A server that 0.1.0 left, and a store of this program on it.
async fn opened_after_the_first_build() -> (RedisServer, Arc<RedisStore>) {
    let server = RedisServer::start();
    as_the_first_build(&server);
    let store = open(&server).await;
    (server, store)
}

async fn migration(server: &RedisServer) -> Migration {
    Migration::look(Address::parse(&server.operators_url()).unwrap(), &options(SHARDS)).await.unwrap()
}

async fn learn(store: &RedisStore, id: &str) {
    let member = Member { id: id.into(), roles: "infer".into(), epochs: vec![] };
    store.announce(&member).await.unwrap();
}

fn entry(user: &str, class: u8, due_ms: i64) -> DueEntry {
    DueEntry { user: user.into(), class, due_ms }
}

async fn claim(store: &RedisStore, queue: Queue) -> Vec<Claim> {
    store.claim(queue, 10_000, LEASE).await.unwrap()
}

/// Who is claimed and released, in the order of names.
async fn served(store: &RedisStore, queue: Queue) -> Vec<String> {
    let mut users = Vec::new();
    for claim in claim(store, queue).await {
        assert!(store.release(queue, &claim).await.unwrap(), "{}", claim.user);
        users.push(claim.user);
    }
    users.sort();
    users
}

/// Keys of queues, without those of what is put aside.
fn queue_keys(server: &RedisServer) -> BTreeSet<String> {
    let kinds = ["due", "lease", "leased", "awaited", "fast"];
    let found = kinds.map(|kind| server.command(&["KEYS", &format!("taiji:{kind}:*")]));
    found.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with("taiji:")).map(String::from).collect()
}

fn is_of_a_space(key: &str) -> bool {
    key.contains(&format!("}}:{SPACE}"))
}

#[tokio::test]
async fn audit_18_marks_of_the_old_form_are_claimed_and_made_until_the_migration() {
    let (server, store) = opened_after_the_first_build().await;
    for (user, queue) in [("old due", SPACE.to_string()), ("old fast", format!("{SPACE}.fast"))] {
        let shard = shard_of(user, SHARDS);
        server.command(&["ZADD", &format!("taiji:due:{{{shard}}}:{queue}:1"), "1", user]);
    }
    store.mark_due(Queue::Due, &[entry("new due", 2, 1)]).await.unwrap();
    store.mark_due(Queue::Fast, &[entry("new fast", 1, 1)]).await.unwrap();
    store.mark_awaited(&["waited".into()], 1, 1).await.unwrap();
    assert!(
        queue_keys(&server).iter().all(|key| is_of_a_space(key)),
        "a program of before finds them: {:?}",
        queue_keys(&server)
    );
    assert_eq!(served(&store, Queue::Due).await, ["new due", "old due", "waited"]);
    assert_eq!(served(&store, Queue::Fast).await, ["new fast", "old fast"]);

    store.mark_due(Queue::Due, &[entry("before", 2, 1)]).await.unwrap();
    migration(&server).await.apply().await.unwrap();
    // This process has not noticed yet.
    store.mark_due(Queue::Due, &[entry("late", 2, 1)]).await.unwrap();
    let forms: Vec<bool> = queue_keys(&server).iter().map(|key| is_of_a_space(key)).collect();
    assert!(forms.contains(&true) && forms.contains(&false), "{:?}", queue_keys(&server));
    learn(&store, "01").await;
    store.mark_due(Queue::Due, &[entry("after", 2, 1), entry("late", 1, 1)]).await.unwrap();
    store.mark_due(Queue::Fast, &[entry("after", 1, 1)]).await.unwrap();
    assert!(!queue_keys(&server).iter().any(|key| is_of_a_space(key)), "who waits in the old form is brought along");
    assert_eq!(served(&store, Queue::Due).await, ["after", "before", "late"]);
    assert_eq!(served(&store, Queue::Fast).await, ["after"]);
    assert_eq!(queue_keys(&server), BTreeSet::new());
}

#[tokio::test]
async fn audit_18_an_empty_namespace_begins_with_one_queue() {
    let server = RedisServer::start();
    let store = open(&server).await;
    store.mark_due(Queue::Due, &[entry("u", 1, 1)]).await.unwrap();
    assert!(!queue_keys(&server).iter().any(|key| is_of_a_space(key)));
    assert_eq!(served(&store, Queue::Due).await, ["u"]);
    assert_eq!(migration(&server).await.steps, []);
}

#[tokio::test]
async fn audit_18_callers_leases_and_held_users_survive_the_move() {
    let server = RedisServer::start();
    as_the_first_build(&server);
    let time = Arc::new(AtomicI64::new(unix_ms()));
    let address = Address::parse(&server.url()).unwrap();
    let store = RedisStore::open_with_clock(address, options(SHARDS), Some(time.clone())).await.unwrap();
    store.note_space(SPACE).await.unwrap();
    let (now_ms, live) = (store.now_ms().await.unwrap(), [SPACE.to_string()]);
    let history = |user: &str| UserBatch { user: user.into(), records: vec![conformance::engagement(1, "e", "i")] };
    store.append_bulk(&live, &[history("held")]).await.unwrap();
    let entries = [entry("waits", 3, now_ms + 900_000), entry("routine", 3, now_ms + 500), entry("taken", 1, now_ms)];
    store.mark_due(Queue::Due, &entries).await.unwrap();
    let lease = store.claim(Queue::Due, 1, LEASE).await.unwrap().remove(0);
    assert_eq!(lease.user, "taken");
    store.mark_due(Queue::Due, &[entry("taken", 2, now_ms)]).await.unwrap();
    store.mark_awaited(&["routine".into(), "absent".into()], now_ms, now_ms + 50).await.unwrap();

    let plan = migration(&server).await;
    assert!(matches!(plan.steps[..], [Step::MoveQueues { .. }, Step::RaiseWritten { .. }]), "{:?}", plan.steps);
    plan.apply().await.unwrap();
    plan.apply().await.unwrap();
    let left: Vec<String> = queue_keys(&server).into_iter().filter(|key| is_of_a_space(key)).collect();
    assert_eq!(left.len(), 2, "the lease that runs stays where programs of before look for it: {left:?}");
    let depth = store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!((depth.classes, depth.leased), (vec![(0, 2, now_ms), (3, 1, now_ms + 900_000)], 1));
    // The callers leave: everybody stands where they stood.
    time.fetch_add(50, Ordering::Relaxed);
    let depth = store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!(depth.classes, [(3, 3, now_ms)]);
    assert_eq!(served(&store, Queue::Due).await, ["absent"]);
    assert!(store.renew(Queue::Due, &lease, LEASE).await.unwrap(), "found in the old form");
    learn(&store, "01").await;
    assert!(store.renew(Queue::Due, &lease, LEASE).await.unwrap(), "after this process has noticed, too");
    assert!(claim(&store, Queue::Due).await.is_empty(), "nobody is leased twice");
    assert!(store.release(Queue::Due, &lease).await.unwrap());
    assert_eq!(served(&store, Queue::Due).await, ["taken"], "marked while it was leased");
    time.fetch_add(450, Ordering::Relaxed);
    assert_eq!(served(&store, Queue::Due).await, ["routine"]);
    assert_eq!(store.held_back(&live, "").await.unwrap().0, ["held"]);
    store.sweep(&live).await.unwrap();
    assert!(claim(&store, Queue::Due).await.is_empty(), "the sweep passes over them as before");
    time.fetch_add(900_000, Ordering::Relaxed);
    assert_eq!(served(&store, Queue::Due).await, ["waits"]);
}

#[tokio::test]
async fn audit_18_clean_takes_leases_along_and_waits_for_processes_that_have_not_noticed() {
    let (server, store) = opened_after_the_first_build().await;
    learn(&store, "0a").await;
    store.mark_due(Queue::Due, &[entry("taken", 1, 1), entry("other", 2, i64::MAX >> 12)]).await.unwrap();
    let lease = claim(&store, Queue::Due).await.remove(0);
    migration(&server).await.apply().await.unwrap();
    let refused = migration(&server).await.look_for_leftovers(true).await.unwrap();
    assert!(refused.objections.iter().any(|text| text.contains("has not noticed yet")), "{:?}", refused.objections);
    // The first time says what was known before, the second what is known since.
    learn(&store, "0a").await;
    learn(&store, "0a").await;
    let looked = migration(&server).await;
    let cleaning = looked.look_for_leftovers(true).await.unwrap();
    assert_eq!(cleaning.objections, [""; 0]);
    looked.clean(&cleaning).await.unwrap();
    assert!(!queue_keys(&server).iter().any(|key| is_of_a_space(key)), "{:?}", queue_keys(&server));
    assert!(store.renew(Queue::Due, &lease, LEASE).await.unwrap());
    learn(&store, "0a").await;
    assert_eq!(store.forms.now().forms, 1, "nothing else is read any more");
    assert!(store.release(Queue::Due, &lease).await.unwrap());
    assert_eq!(store.queue_depth(Queue::Due).await.unwrap().classes, [(2, 1, i64::MAX >> 12)]);
}

/// What the processes of a load see.
#[derive(Default)]
struct Load {
    /// Users under a lease.
    held: Mutex<BTreeSet<String>>,
    served: Mutex<BTreeMap<String, Instant>>,
    claims: AtomicUsize,
    twice: AtomicUsize,
    ended: AtomicBool,
}

impl Load {
    /// Claims, notes and releases until told to end; returns when nothing is left.
    async fn work(&self, store: &RedisStore) {
        loop {
            let is_last = self.ended.load(Ordering::SeqCst);
            let claims = store.claim(Queue::Due, 7, LEASE).await.unwrap();
            if claims.is_empty() && is_last {
                return;
            }
            for claim in &claims {
                let is_first = self.held.lock().unwrap().insert(claim.user.clone());
                self.twice.fetch_add(usize::from(!is_first), Ordering::SeqCst);
            }
            tokio::task::yield_now().await;
            for claim in claims {
                self.served.lock().unwrap().insert(claim.user.clone(), Instant::now());
                self.held.lock().unwrap().remove(&claim.user);
                assert!(store.release(Queue::Due, &claim).await.unwrap(), "{}", claim.user);
                self.claims.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

const USERS: usize = 300;
const ROUNDS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_18_a_migration_under_load_loses_nobody_and_nobody_is_taken_twice() {
    let (server, first) = opened_after_the_first_build().await;
    // One process learns at once, one later, one never.
    let stores = [first, open(&server).await, open(&server).await];
    let (load, marked) = (Arc::new(Load::default()), Arc::new(Mutex::new(BTreeMap::new())));
    let mut workers = tokio::task::JoinSet::new();
    for store in stores.clone() {
        let load = load.clone();
        workers.spawn(async move { load.work(&store).await });
    }
    let mut markers = tokio::task::JoinSet::new();
    let rounds = Arc::new(AtomicUsize::new(0));
    for (nth, store) in stores.clone().into_iter().enumerate() {
        let (marked, rounds) = (marked.clone(), rounds.clone());
        markers.spawn(async move {
            for round in 0..ROUNDS {
                let users = (0..USERS).filter(|user| (user + round) % 3 == nth || user % 7 == 0);
                let entries: Vec<DueEntry> =
                    users.map(|user| entry(&format!("u{user}"), ((user + round) % 4) as u8, 1)).collect();
                for some in entries.chunks(10) {
                    store.mark_due(Queue::Due, some).await.unwrap();
                    let now = Instant::now();
                    marked.lock().unwrap().extend(some.iter().map(|entry| (entry.user.clone(), now)));
                }
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    while rounds.load(Ordering::SeqCst) < ROUNDS {
        tokio::task::yield_now().await;
    }
    migration(&server).await.apply().await.unwrap();
    learn(&stores[0], "01").await;
    while rounds.load(Ordering::SeqCst) < 2 * ROUNDS {
        tokio::task::yield_now().await;
    }
    learn(&stores[1], "02").await;
    while let Some(ended) = markers.join_next().await {
        ended.unwrap();
    }
    load.ended.store(true, Ordering::SeqCst);
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    let (marked, served) = (marked.lock().unwrap().clone(), load.served.lock().unwrap().clone());
    // Claimed, at the latest, after the last mark was answered; the queue is empty at the end.
    let lost = marked.keys().filter(|user| !served.contains_key(*user)).count();
    let twice = load.twice.load(Ordering::SeqCst);
    println!(
        "audit 18: {} marks in two forms while the queue is moved, {} claims: {lost} users lost, {twice} leased twice at once",
        USERS * ROUNDS,
        load.claims.load(Ordering::SeqCst)
    );
    assert_eq!((marked.len(), lost, twice), (USERS, 0, 0));
    for store in &stores {
        assert_eq!(store.queue_depth(Queue::Due).await.unwrap(), crate::store::QueueDepth::default());
    }
    assert_eq!(queue_keys(&server), BTreeSet::new());
}

/// 0.1.0, as far as its queue goes: its own functions on its own keys.
struct OldProgram {
    connection: ::redis::aio::MultiplexedConnection,
    space: String,
    shards: u32,
}

impl OldProgram {
    async fn of(server: &RedisServer, space: &str, shards: u32) -> OldProgram {
        let client = ::redis::Client::open(server.operators_url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        OldProgram { connection, space: space.into(), shards }
    }

    async fn call<T: ::redis::FromRedisValue>(&self, name: &str, shard: u32, arguments: &[&str]) -> T {
        let mut call = ::redis::cmd("FCALL");
        call.arg(format!("taiji_1_{name}")).arg(6);
        for class in 0..4 {
            call.arg(format!("taiji:due:{{{shard}}}:{}:{class}", self.space));
        }
        for kind in ["lease", "leased"] {
            call.arg(format!("taiji:{kind}:{{{shard}}}:{}", self.space));
        }
        call.arg("").arg(arguments).query_async(&mut self.connection.clone()).await.unwrap()
    }

    async fn mark(&self, user: &str) {
        let _: i64 = self.call("mark", shard_of(user, self.shards), &["1", user, "1", "1"]).await;
    }

    /// What its sweep does with users who are behind; returns how many it marked.
    async fn sweep(&self, users: &[String]) -> usize {
        let mut marked = 0;
        for user in users {
            marked += self.call::<usize>("mark_absent", shard_of(user, self.shards), &["3", user]).await;
        }
        marked
    }

    /// Everybody who is due, with their tokens.
    async fn claim(&self) -> Vec<(String, String)> {
        let mut claims = Vec::new();
        for shard in 0..self.shards {
            let due: Vec<String> = self.call("peek", shard, &["1000"]).await;
            for place in due.chunks_exact(3) {
                let (class, due_ms, user, token) = (&place[0], &place[1], &place[2], "9".to_string() + &place[1]);
                let taken: Vec<i64> = self.call("take", shard, &["600000", "1", user, class, due_ms, &token]).await;
                claims.extend((taken == [1]).then(|| (user.clone(), token)));
            }
        }
        claims.sort();
        claims
    }

    async fn release(&self, (user, token): &(String, String)) -> bool {
        self.call::<i64>("release", shard_of(user, self.shards), &[user, token]).await == 1
    }
}

fn names(claims: &[(String, String)]) -> Vec<&str> {
    claims.iter().map(|(user, _)| user.as_str()).collect()
}

/// What 0.1.0 left, opened by us; its space is noted.
async fn left_by_0_1_0() -> (RedisServer, Arc<RedisStore>, String) {
    let server = RedisServer::start();
    server.replay(&std::fs::read(fixture("upgrade/redis.aof")).unwrap());
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(SHARDS)).await.unwrap();
    let space = store.spaces().await.unwrap().remove(0);
    store.note_space(&space).await.unwrap();
    (server, store, space)
}

#[tokio::test]
async fn audit_18_beside_the_first_build_nobody_is_taken_twice_before_the_migration() {
    let (server, store, space) = left_by_0_1_0().await;
    let old = OldProgram::of(&server, &space, store.shards).await;
    for claim in old.claim().await {
        assert!(old.release(&claim).await);
    }
    old.mark("a").await;
    store.mark_due(Queue::Due, &[entry("b", 1, 1)]).await.unwrap();
    let ours = store.claim(Queue::Due, 1, LEASE).await.unwrap().remove(0);
    let theirs = old.claim().await;
    assert_eq!([ours.user.as_str(), names(&theirs)[0]].map(|user| user.len()), [1, 1]);
    assert_ne!(ours.user, theirs[0].0);
    // Each marks whom the other holds: due again after the release, not before.
    store.mark_due(Queue::Due, &[entry(&theirs[0].0, 1, 1)]).await.unwrap();
    old.mark(&ours.user).await;
    assert!(old.claim().await.is_empty() && claim(&store, Queue::Due).await.is_empty());
    assert!(old.release(&theirs[0]).await && store.release(Queue::Due, &ours).await.unwrap());
    assert_eq!(served(&store, Queue::Due).await, ["a", "b"]);

    // After the migration it knows the old form alone: whom it marks is found, whom it holds is let alone.
    old.mark("a").await;
    let theirs = old.claim().await;
    migration(&server).await.apply().await.unwrap();
    learn(&store, "01").await;
    store.mark_due(Queue::Due, &[entry("a", 1, 1), entry("b", 1, 1)]).await.unwrap();
    old.mark("c").await;
    assert_eq!(served(&store, Queue::Due).await, ["b", "c"]);
    assert!(old.release(&theirs[0]).await);
    assert_eq!(served(&store, Queue::Due).await, ["a"]);
}

#[tokio::test]
async fn audit_18_old_new_old_one_sweep_later_nobody_is_behind_and_in_no_queue() {
    let (server, store, space) = left_by_0_1_0().await;
    let (old, live) = (OldProgram::of(&server, &space, store.shards).await, [space.clone()]);
    let left: Vec<String> = old.claim().await.into_iter().map(|(user, _)| user).collect();
    migration(&server).await.apply().await.unwrap();
    learn(&store, "01").await;
    let users: Vec<String> = (0..50).map(|user| format!("behind {user}")).collect();
    let record = |user: &String| Record {
        ts_ms: 1,
        event_id: format!("e {user}"),
        former_id: None,
        weight: 1.0,
        body: RecordBody::Query("tea".into()),
    };
    let batches: Vec<UserBatch> =
        users.iter().map(|user| UserBatch { user: user.clone(), records: vec![record(user)] }).collect();
    store.append(&live, &batches).await.unwrap();
    store.mark_due(Queue::Due, &users.iter().map(|user| entry(user, 1, 1)).collect::<Vec<_>>()).await.unwrap();
    let taken = store.claim(Queue::Due, 5, LEASE).await.unwrap();
    assert_eq!(taken.len(), 5);

    // The way back: the old program knows none of these marks until its sweep.
    assert!(old.claim().await.is_empty());
    let marked = old.sweep(&users).await;
    let claims = old.claim().await;
    let forgotten = users.iter().filter(|user| !names(&claims).contains(&user.as_str())).count();
    println!(
        "audit 18: old → new → old: {} users behind, {marked} marked by one sweep of 0.1.0, {forgotten} in no queue",
        users.len()
    );
    assert_eq!((marked, forgotten), (users.len(), 0));

    // And forward again: who still stands in the queue of all spaces is taken once more, but nobody whom the old program holds.
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(SHARDS)).await.unwrap();
    store.note_space(&space).await.unwrap();
    assert!(claim(&store, Queue::Due).await.is_empty());
    for claim in &claims {
        assert!(old.release(claim).await);
    }
    let again = served(&store, Queue::Due).await;
    assert_eq!(again.len(), users.len() - taken.len(), "{again:?} {left:?}");
}

/// As before the migration, and with a process that learns, forgets and learns again.
#[tokio::test]
async fn audit_18_conforms_in_the_old_form_and_between_the_forms() {
    for shards in [1, 4] {
        let server = RedisServer::start();
        server.command(&["HSET", "taiji:epoch", "schema", "1", "shards", &shards.to_string()]);
        let subject = subject(Address::parse(&server.url()).unwrap(), shards).await;
        subject.store.note_space(SPACE).await.unwrap();
        conformance::check_all(&subject).await;
    }
    conformance::check_all(&turning(&RedisServer::start()).await).await;
}

#[test]
fn audit_18_agrees_with_the_model_between_the_forms() {
    let server = RedisServer::with(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let subject = runtime.block_on(turning(&server));
    conformance::model::check(&subject, &runtime, 60);
}

/// A store whose process marks in the other form whenever the clock moves.
async fn turning(server: &RedisServer) -> Subject {
    let time = Arc::new(AtomicI64::new(unix_ms()));
    let address = Address::parse(&server.url()).unwrap();
    let store = RedisStore::open_with_clock(address, options(3), Some(time.clone())).await.unwrap();
    store.note_space(SPACE).await.unwrap();
    let forms = store.clone();
    let advance = move |ms| {
        time.fetch_add(ms, Ordering::Relaxed);
        let written = if forms.forms.written() == 3 { 2 } else { 3 };
        forms.forms.learn(&schema::Epoch {
            schema: Some(1),
            written,
            readable_from: 1,
            shards: 3,
            ..schema::Epoch::default()
        });
    };
    Subject { store, advance: Box::new(advance) }
}
