//! When a worker looks at the queue: its poll is an hour away in all of these.

use super::*;
use crate::config::RefreshSettings;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

struct Running {
    store: Arc<dyn FeatureStore>,
    llm: Arc<GatedLlm>,
    settings: Settings,
    space: String,
    wake: Arc<Notify>,
    stop: watch::Sender<bool>,
    ended: JoinHandle<Result<(), crate::store::StoreError>>,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start(concurrency: usize, fast_path: bool) -> Running {
        Running::start_with(GatedLlm::new(false, Duration::ZERO), concurrency, fast_path, |_| {})
    }

    fn start_with(
        llm: Arc<GatedLlm>,
        concurrency: usize,
        fast_path: bool,
        change: impl FnOnce(&mut RefreshSettings),
    ) -> Running {
        let (folder, mut settings) = (tempfile::tempdir().unwrap(), eager());
        let refresh = &mut settings.refresh;
        (refresh.poll_ms, refresh.concurrency, refresh.fast_path) = (3_600_000, concurrency, fast_path);
        change(refresh);
        let store = embedded(folder.path());
        let refresher = refresher(store.clone(), bundle(llm.clone()), &settings);
        let (wake, space) = (Arc::new(Notify::new()), SPACE.to_string());
        let worker = Worker::new(refresher, wake.clone(), Listeners { arrivals: Arc::default(), changes: None });
        let (stop, stopped) = watch::channel(false);
        let ended = tokio::spawn(async move { worker.run(stopped).await });
        Running { store, llm, settings, space, wake, stop, ended, _folder: folder }
    }

    async fn take_in(&self, user: &str, items: &[usize]) {
        take_in(self.store.as_ref(), &self.space, &self.settings, &[events(user, items)]).await;
    }

    async fn until_at_the_llm(&self, calls: usize) {
        eventually("calls of the llm", async || (self.llm.begun() == calls).then_some(())).await;
    }

    async fn until_refreshed(&self, user: &str, seq: u64) {
        let at = async || marks(self.store.as_ref(), &self.space, user).await.refreshed_seq;
        eventually("the refresh", async || (at().await == Some(seq)).then_some(())).await;
    }

    async fn end(self) {
        self.stop.send_replace(true);
        self.ended.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_left_due_at_once_is_claimed_without_a_ring() {
    let running = Running::start(4, false);
    running.take_in("a", &[]).await;
    running.wake.notify_one();
    running.until_at_the_llm(1).await;
    running.take_in("a", &[9]).await;
    running.llm.open();
    running.until_refreshed("a", 6).await;
    assert_eq!(running.llm.begun(), 2);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn places_that_free_one_by_one_are_all_used() {
    let running = Running::start(4, false);
    let users: Vec<String> = (0..40).map(|user| format!("u{user}")).collect();
    for user in &users {
        running.take_in(user, &[]).await;
    }
    running.wake.notify_one();
    running.until_at_the_llm(4).await;
    running.llm.open();
    for user in &users {
        running.until_refreshed(user, 5).await;
    }
    assert_eq!(running.llm.begun(), users.len());
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fast_path_is_rung_while_every_place_is_taken() {
    let running = Running::start(1, true);
    running.take_in("a", &[]).await;
    running.wake.notify_one();
    running.until_at_the_llm(1).await;
    running.take_in("b", &[]).await;
    running.wake.notify_one();
    let groups = async || stored(running.store.as_ref(), &running.space, "b").await.groups;
    let quick = eventually("the quick answer", async || groups().await.pop()).await;
    assert_eq!((quick.tier, running.llm.begun()), (0, 1));
    running.llm.open();
    running.until_refreshed("b", 5).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_04_a_refresh_ends_at_its_deadline_and_its_lease_with_it() {
    let running = Running::start_with(GatedLlm::new(false, Duration::ZERO), 1, false, |refresh| {
        // The lease would be renewed ten times within the deadline, and for ever without one.
        (refresh.lease_ms, refresh.deadline_ms, refresh.retry_ms) = (100, 500, 0);
    });
    running.take_in("a", &[]).await;
    running.wake.notify_one();
    running.until_at_the_llm(1).await;
    let begun = Instant::now();
    // Due again at once, so that it is claimed a second time: the first call was given up.
    running.until_at_the_llm(2).await;
    let took = begun.elapsed();
    println!("audit 04: a refresh whose model call hangs is given up after {} ms of 500 ms", took.as_millis());
    assert!(took >= Duration::from_millis(400), "{took:?}");
    assert_eq!((running.llm.running(), running.llm.calls.lock().overlaps), (1, 0));
    running.llm.open();
    running.until_refreshed("a", 5).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_04_a_worker_whose_model_makes_no_step_takes_nobody() {
    let llm = GatedLlm::new(true, Duration::ZERO);
    *llm.stalled.lock() = Some(STALL);
    let running = Running::start_with(llm, 4, true, |refresh| refresh.poll_ms = 10);
    running.take_in("a", &[]).await;
    running.wake.notify_one();
    let depth = running.store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!((depth.classes.iter().map(|(_, users, _)| users).sum::<usize>(), depth.leased), (1, 0));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(running.llm.begun(), 0);
    assert!(stored(running.store.as_ref(), &running.space, "a").await.groups.is_empty(), "nor does the fast path");
    *running.llm.stalled.lock() = Some(STALL / 2);
    running.until_refreshed("a", 5).await;
    running.end().await;
}
