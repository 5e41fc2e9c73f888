//! What is active is swapped while refreshes and reads are under way: each keeps the one view it took.

use super::*;
use crate::api::{self, ApiState, ReaderBudget, Waiting};
use crate::erase::Eraser;
use crate::event::EventDecoder;
use crate::feature::DecodedGroup;
use crate::http::ApiKeys;
use crate::ingest::Ingest;
use crate::listen::Routes;
use crate::publish::ServedFeed;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Where epoch 2 writes; epoch 1 writes into [`SPACE`].
const OTHER: &str = "other space";

/// A process with two bundles, of which one is active.
struct World {
    store: Arc<dyn FeatureStore>,
    live: Arc<Live>,
    bundles: [Arc<Bundle>; 2],
    llm: Arc<GatedLlm>,
    refresher: Arc<Refresher>,
    arrivals: Arc<Arrivals>,
    settings: Settings,
    served: Arc<ServedFeed>,
    metrics: Arc<Metrics>,
    port: api::Port,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(is_open: bool) -> World {
        let (folder, settings) = (tempfile::tempdir().unwrap(), eager());
        let (store, llm) = (embedded(folder.path()), GatedLlm::new(is_open, Duration::ZERO));
        let of = |epoch, space| testing::bundle(epoch, space, Some(testing::models(llm.clone())));
        let bundles = [of(1, SPACE), of(2, OTHER)];
        let live = Live::new(bundles[0].clone());
        let metrics = Arc::new(Metrics::new().unwrap());
        let (refresh, retrieve) = (settings.refresh.clone(), settings.retrieve.clone());
        let refresher = Arc::new(Refresher::new(store.clone(), live.clone(), metrics.clone(), refresh, retrieve));
        let (arrivals, actions) = (Arc::<Arrivals>::default(), settings.events.actions.clone());
        let served = Arc::new(ServedFeed::new(1.0, metrics.clone()));
        let state = ApiState {
            store: store.clone(),
            live: live.clone(),
            ingest: Arc::new(Ingest::new(store.clone(), actions.clone(), DuePolicy::new(&settings.refresh))),
            decoder: EventDecoder::new(actions, Default::default()),
            eraser: Arc::new(Eraser::new(store.clone(), metrics.clone(), 0, SOON)),
            metrics: metrics.clone(),
            limits: settings.server.clone(),
            keys: ApiKeys::default(),
            wake: Arc::new(Notify::new()),
            served: Some(served.clone()),
            readers: ReaderBudget::new(&settings.refresh),
            waiting: Waiting::new(&settings.server, arrivals.clone(), FastQueue::new(&settings.refresh)),
        };
        let port = api::Port::new(Arc::new(state));
        let (arrivals, _folder) = (arrivals, folder);
        World { store, live, bundles, llm, refresher, arrivals, settings, served, metrics, port, _folder }
    }

    fn swap(&self, epoch: usize, turn: u64) {
        self.live.swap(self.bundles[epoch - 1].clone(), turn);
    }

    /// Epoch, space and turn of every group that a user has in a space.
    async fn written(&self, space: &str, user: &str) -> Vec<(u64, String, u64)> {
        let groups = stored(self.store.as_ref(), space, user).await.groups;
        let meta = |blob| DecodedGroup::decode(blob).unwrap().meta().clone();
        groups.iter().map(meta).map(|meta| (meta.epoch, meta.space, meta.turn)).collect()
    }

    async fn ask(&self, request: Request<Body>) -> Value {
        let response = self.port.answer(request).await;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = Request::post(path).header("content-type", "application/json");
        self.ask(request.body(Body::from(body.to_string())).unwrap()).await
    }
}

/// Which epoch writes into a space.
fn epoch_of(space: &str) -> u64 {
    match space {
        SPACE => 1,
        OTHER => 2,
        _ => panic!("no such space: {space}"),
    }
}

/// Epochs of the present values of a columnar answer.
fn epochs(answer: &Value) -> Vec<u64> {
    let of = |group: &Value| -> Vec<u64> {
        let column = |name: &str| group[name].as_array().unwrap().clone();
        let rows = column("status").into_iter().zip(column("epoch"));
        rows.filter(|(status, _)| status == "PRESENT").map(|(_, epoch)| epoch.as_u64().unwrap()).collect()
    };
    answer["groups"].as_object().unwrap().values().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_18_a_refresh_writes_the_space_epoch_and_turn_it_began_with() {
    let world = World::new(false);
    world.store.append(&[SPACE.into()], &[events("u", &[9])]).await.unwrap();
    let refresher = world.refresher.clone();
    let under_way = tokio::spawn(async move { refresher.refresh("u", 1).await });
    eventually("the call of the llm", async || (world.llm.running() == 1).then_some(())).await;
    world.swap(2, 1);
    world.llm.open();
    assert_eq!(under_way.await.unwrap().unwrap(), Refreshed::Written { seq: 6, current_seq: 6 });
    let before = vec![(1, SPACE.to_string(), 0); 3];
    assert_eq!(world.written(SPACE, "u").await, before);
    assert!(world.written(OTHER, "u").await.is_empty(), "nothing of it in the space that is active since");
    let vectors = async |space: &str| {
        let page = world.store.vectors_after(space, &Default::default(), 10).await.unwrap();
        page.entries.iter().map(|fresh| fresh.version.turn).collect::<Vec<u64>>()
    };
    assert_eq!((vectors(SPACE).await, vectors(OTHER).await), (vec![0], vec![]));
    assert_eq!(world.refresher.refresh("u", 1).await.unwrap(), Refreshed::Written { seq: 6, current_seq: 6 });
    assert_eq!(world.written(OTHER, "u").await, vec![(2, OTHER.to_string(), 1); 3], "the next one writes there");
    assert_eq!(world.written(SPACE, "u").await, before);
    assert_eq!((vectors(SPACE).await, vectors(OTHER).await), (vec![0], vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_18_a_read_that_waits_answers_from_the_view_it_took() {
    let world = Arc::new(World::new(false));
    let listeners = Listeners { arrivals: world.arrivals.clone(), changes: None };
    let worker = Worker::new(world.refresher.clone(), Arc::new(Notify::new()), listeners);
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(async move { worker.run(stopped).await });
    take_in(world.store.as_ref(), SPACE, &world.settings, &[events("u", &[9])]).await;
    eventually("the call of the llm", async || (world.llm.running() == 1).then_some(())).await;
    let reader = world.clone();
    let reading = tokio::spawn(async move {
        let body = json!({"users": ["u"], "max_staleness_ms": 0, "deadline_ms": 10_000});
        reader.post("/v1/features", body).await
    });
    eventually("the wait", async || (world.metrics.waiting.get() == 1).then_some(())).await;
    world.swap(2, 1);
    world.llm.open();
    let answer = reading.await.unwrap();
    assert_eq!((&answer["space"], &answer["status"]), (&json!(SPACE), &json!(["PRESENT"])), "{answer}");
    assert_eq!(epochs(&answer), [1, 1], "{answer}");
    assert_eq!(answer["provenance"].as_object().unwrap().keys().collect::<Vec<_>>(), ["1"]);
    assert_eq!(answer["provenance"]["1"]["llm"], "llm of epoch 1");
    assert_eq!(world.served.take(9).iter().map(|served| served.space.as_str()).collect::<Vec<_>>(), [SPACE]);
    let next = world.post("/v1/features", json!({"users": ["u"]})).await;
    assert_eq!(next["space"], OTHER, "{next}");
    assert!(epochs(&next).iter().all(|epoch| *epoch == 2), "{next}");
    stop.send_replace(true);
    running.await.unwrap().unwrap();
}

/// Swaps to and fro until told to stop; how often.
async fn flip(world: Arc<World>, stop: Arc<AtomicBool>) -> u64 {
    let mut turn = 1;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        world.swap(1 + turn as usize % 2, turn);
        tokio::task::yield_now().await;
    }
    turn
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn audit_18_no_answer_and_no_refresh_mixes_spaces_while_the_view_is_swapped() {
    const ROUNDS: usize = 60;
    let world = Arc::new(World::new(true));
    let users = ["a", "b"];
    world.store.append(&[SPACE.into()], &users.map(|user| events(user, &[9]))).await.unwrap();
    for epoch in [1, 2] {
        world.swap(epoch, 1);
        for user in users {
            assert!(matches!(world.refresher.refresh(user, 1).await.unwrap(), Refreshed::Written { .. }));
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flipping = tokio::spawn(flip(world.clone(), stop.clone()));
    let refreshing = tokio::spawn({
        let world = world.clone();
        async move {
            for nth in 0..ROUNDS {
                let user = users[nth % 2];
                let batch = UserBatch { user: user.into(), records: vec![engagement(10 + nth, 1000 + nth as i64)] };
                world.store.append(&[SPACE.into()], &[batch]).await.unwrap();
                world.refresher.refresh(user, 1).await.unwrap();
            }
        }
    });
    let (mut answers, mut seen) = (0, std::collections::BTreeSet::new());
    while !refreshing.is_finished() || seen.len() < 2 {
        let answer = world.post("/v1/features", json!({"users": users, "groups": ["intra", "text"]})).await;
        let space = answer["space"].as_str().unwrap().to_string();
        let found = epochs(&answer);
        assert_eq!(found, vec![epoch_of(&space); 4], "{answer}");
        assert_eq!(answer["provenance"].as_object().unwrap().len(), 1, "{answer}");
        let row = world.ask(Request::get("/v1/users/a/features?groups=intra").body(Body::empty()).unwrap()).await;
        let meta = &row["groups"]["intra"]["meta"];
        assert_eq!(meta["space"], row["space"], "{row}");
        assert_eq!(meta["epoch"], epoch_of(row["space"].as_str().unwrap()), "{row}");
        answers += 2;
        seen.insert(space);
    }
    refreshing.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let swaps = flipping.await.unwrap();
    for (space, user) in [(SPACE, "a"), (SPACE, "b"), (OTHER, "a"), (OTHER, "b")] {
        let groups = world.written(space, user).await;
        let turns: std::collections::BTreeSet<u64> = groups.iter().map(|(.., turn)| *turn).collect();
        assert!(groups.len() == 3 && turns.len() == 1, "one refresh wrote them: {groups:?}");
        assert!(groups.iter().all(|(epoch, of, _)| (*epoch, of.as_str()) == (epoch_of(space), space)), "{groups:?}");
    }
    println!("audit 18: {answers} answers and {ROUNDS} refreshes under {swaps} swaps, 0 of two spaces or epochs");
}
