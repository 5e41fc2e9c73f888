//! Several workers on one Redis: a user is refreshed by one at a time, but for a lease that ran out.

use super::*;
use crate::store::redis::{Address, Timeouts};
use crate::store::{Queue, RedisOptions, RedisStore};
use testkit::redis::RedisServer;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A worker with a connection of its own.
struct Replica {
    store: Arc<dyn FeatureStore>,
    refresher: Arc<Refresher>,
    stop: watch::Sender<bool>,
    running: Option<JoinHandle<Result<(), StoreError>>>,
}

impl Replica {
    async fn new(server: &RedisServer, llm: &Arc<GatedLlm>, settings: &Settings) -> Replica {
        let timeouts = Timeouts { connect: SOON, response: SOON, retries: 3 };
        let options = RedisOptions {
            namespace: "taiji".into(),
            cluster: String::new(),
            shards: 4,
            timeouts,
            assurance: Default::default(),
        };
        let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options).await.unwrap();
        let refresher = refresher(store.clone(), bundle(llm.clone()), settings);
        Replica { store, refresher, stop: watch::Sender::new(false), running: None }
    }

    fn start(mut self) -> Replica {
        let listeners = Listeners { arrivals: Arc::default(), changes: None };
        let worker = Worker::new(self.refresher.clone(), Arc::new(Notify::new()), listeners);
        let stopped = self.stop.subscribe();
        self.running = Some(tokio::spawn(async move { worker.run(stopped).await }));
        self
    }

    /// Dies at once: nothing is finished or released.
    fn kill(&mut self) {
        self.running.take().unwrap().abort();
    }

    fn quick(&self) -> u64 {
        self.refresher.metrics.refreshes.with_label_values(&["fast"]).get()
    }

    async fn end(mut self) -> u64 {
        self.stop.send_replace(true);
        self.running.take().unwrap().await.unwrap().unwrap();
        self.written()
    }

    fn space(&self) -> &'static str {
        SPACE
    }

    fn written(&self) -> u64 {
        self.refresher.metrics.refreshes.with_label_values(&["written"]).get()
    }
}

/// Waits until the users' features have read every event, and nobody waits or is leased.
async fn all_done(replica: &Replica, users: &[String]) {
    eventually("every user refreshed", async || {
        let marks = replica.store.states(&[replica.space().to_string()], users).await.unwrap();
        let behind = marks.iter().flatten().any(|marks| marks.refreshed_seq < Some(marks.state.seq));
        let depth = replica.store.queue_depth(Queue::Due).await.unwrap();
        (!behind && depth.classes.is_empty() && depth.leased == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_replicas_share_the_users_and_never_work_on_one_at_once() {
    let (server, mut settings) = (RedisServer::with(&[]), eager());
    settings.refresh.fast_path = true;
    settings.refresh.concurrency = 6;
    let llm = GatedLlm::new(true, Duration::from_millis(15));
    let replicas =
        [Replica::new(&server, &llm, &settings).await.start(), Replica::new(&server, &llm, &settings).await.start()];
    let users: Vec<String> = (0..30).map(|user| format!("u{user}")).collect();
    for round in 0..12 {
        // Events come through both, while both refresh; most users are marked again while they are leased.
        let replica = &replicas[round % 2];
        let batches: Vec<UserBatch> = users.iter().map(|user| events(user, &[20 + round])).collect();
        take_in(replica.store.as_ref(), replica.space(), &settings, &batches).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    all_done(&replicas[0], &users).await;
    let quick: u64 = replicas.iter().map(Replica::quick).sum();
    assert!(quick <= 30, "a quick answer is made once a user: {quick}");
    let [first, second] = replicas;
    let written = [first.end().await, second.end().await];
    let calls = llm.calls.lock();
    assert_eq!(calls.overlaps, 0, "a user at two replicas at once");
    assert_eq!(written.iter().sum::<u64>() as usize, calls.begun.len(), "every answer was written");
    assert!(written.iter().all(|written| *written >= 30), "both worked: {written:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_refresh_longer_than_its_lease_keeps_it_by_renewing() {
    let (server, mut settings) = (RedisServer::with(&[]), eager());
    settings.refresh.lease_ms = 3000;
    let llm = GatedLlm::new(false, Duration::ZERO);
    let replicas =
        [Replica::new(&server, &llm, &settings).await.start(), Replica::new(&server, &llm, &settings).await.start()];
    let space = replicas[0].space().to_string();
    take_in(replicas[0].store.as_ref(), &space, &settings, &[events("u", &[])]).await;
    eventually("the call", async || (llm.running() == 1).then_some(())).await;
    // More than two leases long, looked at all the time by the replica that has nothing else to do.
    tokio::time::sleep(Duration::from_millis(7000)).await;
    assert_eq!((llm.begun(), llm.running()), (1, 1));
    llm.open();
    all_done(&replicas[0], &["u".to_string()]).await;
    assert_eq!(llm.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_replicas_user_is_taken_up_when_the_lease_has_run_out() {
    let (server, mut settings) = (RedisServer::with(&[]), eager());
    settings.refresh.lease_ms = 1500;
    let llm = GatedLlm::new(false, Duration::ZERO);
    let mut killed = Replica::new(&server, &llm, &settings).await.start();
    let space = killed.space().to_string();
    take_in(killed.store.as_ref(), &space, &settings, &[events("u", &[])]).await;
    eventually("the call", async || (llm.running() == 1).then_some(())).await;
    killed.kill();
    eventually("its end", async || (llm.running() == 0).then_some(())).await;
    let other = Replica::new(&server, &llm, &settings).await.start();
    llm.open();
    all_done(&other, &["u".to_string()]).await;
    let begun: Vec<Instant> = llm.calls.lock().begun.iter().map(|(_, at)| *at).collect();
    assert_eq!(begun.len(), 2);
    // The first call began a moment after its lease.
    assert!(begun[1] - begun[0] > Duration::from_millis(1400), "{:?}", begun[1] - begun[0]);
    assert_eq!(other.end().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_slept_through_a_lease_can_neither_renew_nor_release_the_next_ones() {
    let (server, settings) = (RedisServer::with(&[]), eager());
    let llm = GatedLlm::new(false, Duration::ZERO);
    let sleeper = Replica::new(&server, &llm, &settings).await;
    let space = sleeper.space().to_string();
    take_in(sleeper.store.as_ref(), &space, &settings, &[events("u", &[])]).await;
    let lease = Duration::from_millis(200);
    let claim = sleeper.store.claim(Queue::Due, 1, lease).await.unwrap().remove(0);
    let other = Replica::new(&server, &llm, &settings).await.start();
    eventually("the other's call", async || (llm.running() == 1).then_some(())).await;
    assert!(!sleeper.store.renew(Queue::Due, &claim, lease).await.unwrap());
    assert!(!sleeper.store.release(Queue::Due, &claim).await.unwrap());
    assert_eq!(sleeper.store.queue_depth(Queue::Due).await.unwrap().leased, 1, "the other's lease stands");
    llm.open();
    all_done(&sleeper, &["u".to_string()]).await;
    assert_eq!(other.end().await, 1);
}
