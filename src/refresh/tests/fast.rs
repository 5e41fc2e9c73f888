//! The fast path: first its answer, then the LLM's, and neither harms the other.

use super::*;
use crate::feature::{DecodedGroup, Group, Version, flags};
use crate::retrieve::{UserIndex, VectorTail, encode_f16};
use crate::store::{FeedCursor, FreshVector, Queue};
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::Notify;

fn fast() -> Settings {
    let mut settings = eager();
    settings.refresh.fast_path = true;
    settings
}

fn intra(stored: &StoredFeatures) -> Option<crate::proto::IntraGroup> {
    let blob = stored.groups.iter().find(|blob| blob.group == Group::Intra)?;
    match DecodedGroup::decode(blob).unwrap() {
        DecodedGroup::Intra(intra) => Some(intra),
        other => panic!("{other:?}"),
    }
}

fn listeners() -> Listeners {
    Listeners { arrivals: Arc::default(), changes: Some(Arc::default()) }
}

async fn vector_version(store: &dyn FeatureStore, space: &str, user: &str) -> Option<Version> {
    let feed = store.vectors_after(space, &FeedCursor::default(), 1000).await.unwrap().entries;
    feed.into_iter().find(|fresh| fresh.user == user).map(|fresh| fresh.version)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_features_gets_a_quick_answer_and_then_the_llms() {
    let (folder, settings) = (tempfile::tempdir().unwrap(), fast());
    let (store, llm) = (embedded(folder.path()), GatedLlm::new(false, Duration::ZERO));
    let refresher = refresher(store.clone(), bundle(llm.clone()), &settings);
    let (space, listeners) = (SPACE.to_string(), listeners());
    let worker = Worker::new(refresher.clone(), Arc::new(Notify::new()), listeners.clone());
    let users = ["a", "b", "c"];
    take_in(store.as_ref(), &space, &settings, &users.map(|user| events(user, &[9]))).await;
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(async move { worker.run(stopped).await });
    for user in users {
        let quick = eventually("a quick answer", async || intra(&stored(store.as_ref(), &space, user).await)).await;
        let meta = quick.meta.unwrap();
        assert_eq!(
            (meta.tier, meta.seq, meta.flags, meta.fallback_reason.as_str()),
            (0, 6, flags::FALLBACK, "fast_path")
        );
        assert!(!quick.has_llm_feature && quick.sparse_ids.len() == 8 && quick.sparse_ids.iter().all(|id| *id > 0));
        assert_eq!(marks(store.as_ref(), &space, user).await.refreshed_seq, None, "no refresh");
        assert_eq!(vector_version(store.as_ref(), &space, user).await, Some(Version { seq: 0, turn: 1 }));
    }
    eventually("all of them at the llm", async || (llm.running() == 3).then_some(())).await;
    let refreshes = |result: &str| refresher.metrics.refreshes.with_label_values(&[result]).get();
    eventually("the count", async || (refreshes("fast") == 3).then_some(())).await;
    assert_eq!((refreshes("written"), listeners.changes.as_ref().unwrap().take(9).len()), (0, 3));
    llm.open();
    for user in users {
        let wanted = |stored: StoredFeatures| intra(&stored).filter(|intra| intra.has_llm_feature);
        let made = eventually("the llm's", async || wanted(stored(store.as_ref(), &space, user).await)).await;
        assert_eq!(made.meta.unwrap().tier, 1);
        assert_eq!(marks(store.as_ref(), &space, user).await.refreshed_seq, Some(6));
        assert_eq!(vector_version(store.as_ref(), &space, user).await, Some(Version { seq: 6, turn: 0 }));
    }
    eventually("the count", async || (refreshes("written") == 3).then_some(())).await;
    stop.send_replace(true);
    running.await.unwrap().unwrap();
    assert_eq!(refreshes("fast"), 3, "once a user");
    for queue in Queue::ALL {
        let depth = store.queue_depth(queue).await.unwrap();
        assert!(depth.classes.is_empty() && depth.leased == 0, "{queue:?}: {depth:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fills_gaps_and_leaves_what_lives_alone() {
    let (folder, mut settings) = (tempfile::tempdir().unwrap(), fast());
    settings.refresh.ttl_ms = 1000;
    let clock = Arc::new(AtomicI64::new(1_000_000));
    let time = clock.clone();
    let options = EmbeddedOptions {
        cache_bytes: 4 << 20,
        clock: Arc::new(move || time.load(Ordering::SeqCst)),
        ..EmbeddedOptions::default()
    };
    let store: Arc<dyn FeatureStore> = EmbeddedStore::open(folder.path(), options).unwrap();
    let refresher = refresher(store.clone(), bundle(GatedLlm::new(true, Duration::ZERO)), &settings);
    let space = SPACE.to_string();
    assert_eq!(refresher.quick("nobody").await.unwrap(), Quick::Needless);
    let only_profile = UserBatch { user: "mute".into(), records: events("mute", &[]).records[..1].to_vec() };
    store.append(std::slice::from_ref(&space), &[events("u", &[]), only_profile]).await.unwrap();
    assert_eq!(refresher.quick("mute").await.unwrap(), Quick::Needless, "nothing to embed");
    assert_eq!(refresher.quick("u").await.unwrap(), Quick::Written { seq: 5 });
    assert_eq!(refresher.quick("u").await.unwrap(), Quick::Needless, "not twice");
    assert_eq!(refresher.refresh("u", 1).await.unwrap(), Refreshed::Written { seq: 5, current_seq: 5 }, "no skip");
    assert_eq!(refresher.quick("u").await.unwrap(), Quick::Needless, "never over the llm's");
    clock.fetch_add(999, Ordering::SeqCst);
    assert_eq!(refresher.quick("u").await.unwrap(), Quick::Needless);
    clock.fetch_add(1, Ordering::SeqCst);
    assert_eq!(refresher.quick("u").await.unwrap(), Quick::Written { seq: 5 }, "expired");
    let again = stored(store.as_ref(), &space, "u").await;
    assert!(again.groups.iter().all(|blob| blob.tier == 0) && again.groups.len() == 3);
    assert_eq!(marks(store.as_ref(), &space, "u").await.refreshed_seq, Some(5), "the mark of the llm's stays");
    assert_eq!(vector_version(store.as_ref(), &space, "u").await, Some(Version { seq: 5, turn: 0 }), "and its vector");
}

#[test]
fn a_quick_vector_gives_way_to_every_llm_made_one_and_not_to_an_erasure_before_it() {
    let vector = |version: Version, place: usize| {
        let mut values = [0.0; DIM];
        values[place] = 1.0;
        FreshVector { user: "u".into(), era: 0, version, vector: Some(encode_f16(&values)) }
    };
    let (quick, made) = (vector(Version { seq: 0, turn: 1 }, 0), vector(Version { seq: 1, turn: 0 }, 1));
    for order in [[&quick, &made], [&made, &quick]] {
        let index = FaissUserIndex::empty(DIM).unwrap();
        order.iter().for_each(|fresh| index.apply(fresh).unwrap());
        let mut wanted = [0.0; DIM];
        wanted[1] = 1.0;
        let found = index.search(&wanted, 1, "").unwrap();
        assert!(found[0].similarity > 0.99, "{found:?}");
    }
    let index = FaissUserIndex::empty(DIM).unwrap();
    index.apply(&crate::erase::tombstone("u", 0)).unwrap();
    index.apply(&quick).unwrap();
    assert_eq!(index.sizes(), (0, 1), "the life after the erasure is found");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opted_out_is_not_indexed_by_it_either() {
    let (folder, settings) = (tempfile::tempdir().unwrap(), fast());
    let store = embedded(folder.path());
    let refresher = refresher(store.clone(), bundle(GatedLlm::new(true, Duration::ZERO)), &settings);
    let mut batch = events("u", &[]);
    let attributes = [("cross_opt_out".to_string(), true.into())].into();
    batch.records.push(Record {
        ts_ms: 2,
        event_id: "out".into(),
        former_id: None,
        weight: 1.0,
        body: RecordBody::Profile(attributes),
    });
    store.append(&[SPACE.into()], &[batch]).await.unwrap();
    assert_eq!(refresher.quick("u").await.unwrap(), Quick::Written { seq: 6 });
    assert_eq!(vector_version(store.as_ref(), SPACE, "u").await, None);
}

/// The LLM and the fast path write the same users at the same time: in the end the LLM's answer stands, and whoever is shown is
/// noted as shown, so that their erasure finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn beside_the_llm_no_note_of_a_neighbour_is_lost() {
    let (folder, settings) = (tempfile::tempdir().unwrap(), fast());
    let (store, bundle) = (embedded(folder.path()), bundle(GatedLlm::new(true, Duration::ZERO)));
    let refresher = refresher(store.clone(), bundle.clone(), &settings);
    let space = SPACE.to_string();
    let names: Vec<String> = (0..60).map(|user| format!("u{user}")).collect();
    for (place, user) in names.iter().enumerate() {
        store.append(std::slice::from_ref(&space), &[events(user, &[20 + place % 50])]).await.unwrap();
        if place < 20 {
            refresher.refresh(user, 1).await.unwrap();
        }
    }
    VectorTail::new(store.clone(), bundle.inference.as_ref().unwrap().index.clone(), space.clone())
        .catch_up()
        .await
        .unwrap();
    for user in &names[20..] {
        let (quick, made) = (refresher.clone(), refresher.clone());
        let (first, second) = (user.clone(), user.clone());
        let quick = tokio::spawn(async move { quick.quick(&first).await.unwrap() });
        let made = tokio::spawn(async move { made.refresh(&second, 1).await.unwrap() });
        quick.await.unwrap();
        assert!(matches!(made.await.unwrap(), Refreshed::Written { .. }));
        let features = stored(store.as_ref(), &space, user).await;
        assert!(features.groups.iter().all(|blob| blob.tier == 1), "{user}");
        let shown = shown_neighbour(&features).expect("a neighbour").user;
        let noted = store.referrers(&space, &shown).await.unwrap();
        assert!(noted.contains(user), "{user} shows {shown}, who is shown by {noted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_is_taken_back_only_where_nobody_is_shown() {
    let (folder, settings) = (tempfile::tempdir().unwrap(), fast());
    let (store, bundle) = (embedded(folder.path()), bundle(GatedLlm::new(true, Duration::ZERO)));
    let refresher = refresher(store.clone(), bundle.clone(), &settings);
    let space = SPACE.to_string();
    store.append(std::slice::from_ref(&space), &[events("hub", &[]), events("u", &[7])]).await.unwrap();
    refresher.refresh("hub", 1).await.unwrap();
    VectorTail::new(store.clone(), bundle.inference.as_ref().unwrap().index.clone(), space.clone())
        .catch_up()
        .await
        .unwrap();
    refresher.refresh("u", 1).await.unwrap();
    assert_eq!(shown_neighbour(&stored(store.as_ref(), &space, "u").await).unwrap().user, "hub");
    drop_note(store.as_ref(), &space, "u", "hub").await.unwrap();
    assert_eq!(store.referrers(&space, "hub").await.unwrap(), ["u"], "what is shown stays noted");
    store.add_referrer(&space, "other", "u").await.unwrap();
    drop_note(store.as_ref(), &space, "u", "other").await.unwrap();
    assert!(store.referrers(&space, "other").await.unwrap().is_empty());
}
