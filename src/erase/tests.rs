//! The whole job on a real store: from any crash, beside another job, beside refreshes, and over reloads of an index.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::event::ActionClass;
use crate::feature::{Group, GroupBlob, Version};
use crate::proto::{Behaviour, CrossGroup, TextGroup};
use crate::refresh::{UserEra, look_back, shown_neighbour};
use crate::retrieve::{FaissUserIndex, IndexShape, VectorTail, build_main, encode_f16};
use crate::store::{
    DueEntry, DueQueue, EmbeddedOptions, EmbeddedStore, Erasures, FeaturePut, Features, FeedCursor, Feeds, FreshVector,
    Health, Histories, PutBody, PutOutcome, Queue, Record, RecordBody, UserBatch, UserHistory,
};
use proptest::prelude::*;
use prost::Message;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) const SPACES: [&str; 2] = ["s1", "s2"];
/// A minute ahead of every clock in these tests, so that such an event starts a new life.
const AHEAD_MS: i64 = 60_000;

pub(super) fn open(folder: &Path) -> Arc<EmbeddedStore> {
    let options = EmbeddedOptions { cache_bytes: 4 << 20, ..EmbeddedOptions::default() };
    EmbeddedStore::open(folder, options).unwrap()
}

pub(super) async fn append(store: &EmbeddedStore, user: &str, ts_ms: i64) {
    let behaviour = Behaviour { item_id: "i".into(), action: "click".into(), ..Behaviour::default() };
    let body = RecordBody::Behaviour { class: ActionClass::Engagement, behaviour };
    let record = Record { ts_ms, event_id: format!("e{ts_ms}"), former_id: None, weight: 1.0, body };
    store.append(&[SPACES[0].into()], &[UserBatch { user: user.into(), records: vec![record] }]).await.unwrap();
}

pub(super) async fn history(store: &EmbeddedStore, user: &str) -> UserHistory {
    store.histories(&[user.to_string()]).await.unwrap().remove(0).unwrap_or_default()
}

pub(super) async fn shown(store: &EmbeddedStore, space: &str, user: &str) -> Option<UserEra> {
    let stored = store.features(space, &[user.to_string()]).await.unwrap().remove(0);
    stored.as_ref().and_then(shown_neighbour)
}

/// One refresh's writes in its order, up to the put; the look back is the caller's.
async fn refresh(store: &EmbeddedStore, space: &str, user: &UserEra, neighbour: Option<&UserEra>) -> PutOutcome {
    let seq = history(store, &user.user).await.state.seq;
    if let Some(neighbour) = neighbour {
        store.add_referrer(space, &neighbour.user, &user.user).await.unwrap();
    }
    let version = Version { seq, turn: 0 };
    let vector = Some(encode_f16(&[1.0, 0.0]));
    store.append_vector(space, &FreshVector { user: user.user.clone(), era: user.era, version, vector }).await.unwrap();
    let cross =
        CrossGroup { item_ids: neighbour.map(|seen| seen.user.clone()).into_iter().collect(), ..Default::default() };
    let text = TextGroup {
        neighbour_user_id: neighbour.map(|seen| seen.user.clone()).unwrap_or_default(),
        neighbour_era: neighbour.map_or(0, |seen| seen.era),
        ..TextGroup::default()
    };
    let blob = |group, bytes: Vec<u8>| GroupBlob { group, bytes: bytes.into(), tier: 1, version, expires_at_ms: 0 };
    let groups = vec![blob(Group::Cross, cross.encode_to_vec()), blob(Group::Text, text.encode_to_vec())];
    let body = PutBody::Write { groups, prompt_hash: 7, embedding: vec![] };
    store.put(space, FeaturePut { user: user.user.clone(), era: user.era, version, tier: 1, body }).await.unwrap()
}

fn seen(user: &str, era: u64) -> UserEra {
    UserEra { user: user.into(), era }
}

/// "hub" shows "friend" and is shown by r0 … in both spaces; "bystander" shows "friend"; "hub" waits for a refresh.
pub(super) async fn world(store: &EmbeddedStore, referrers: usize) {
    for user in ["hub", "friend", "bystander"] {
        append(store, user, 10).await;
    }
    for space in SPACES {
        store.note_space(space).await.unwrap();
        refresh(store, space, &seen("hub", 0), Some(&seen("friend", 0))).await;
        refresh(store, space, &seen("bystander", 0), Some(&seen("friend", 0))).await;
    }
    for queue in Queue::ALL {
        store.mark_due(queue, &[DueEntry { user: "hub".into(), class: 1, due_ms: 1 }]).await.unwrap();
    }
    for place in 0..referrers {
        let user = format!("r{place}");
        append(store, &user, 10).await;
        for space in SPACES {
            refresh(store, space, &seen(&user, 0), Some(&seen("hub", 0))).await;
        }
    }
}

/// What an erased hub must look like, however the job got there. Times differ between runs and are left out.
pub(super) async fn check_erased(store: &EmbeddedStore, referrers: usize) {
    let kept = history(store, "hub").await;
    assert_eq!((kept.state.era, kept.state.seq, kept.engagements.len()), (1, 1, 0));
    assert!(store.erasures().await.unwrap().iter().all(|erasure| erasure.finished_era == Some(1)));
    for space in SPACES {
        assert_eq!(store.features(space, &["hub".into()]).await.unwrap(), [None]);
        assert_eq!(store.referrers(space, "friend").await.unwrap(), ["bystander"]);
        assert!(store.referrers(space, "hub").await.unwrap().is_empty());
        assert_eq!(shown(store, space, "bystander").await, Some(seen("friend", 0)), "nobody else's");
        let feed = store.vectors_after(space, &FeedCursor::default(), 1000).await.unwrap().entries;
        let mine: Vec<_> = feed.into_iter().filter(|fresh| fresh.user == "hub").collect();
        assert_eq!(mine, [tombstone("hub", 1)]);
        for place in 0..referrers {
            assert_eq!(shown(store, space, &format!("r{place}")).await, None);
        }
    }
    assert!(store.claim(Queue::Fast, 9, Duration::from_secs(60)).await.unwrap().is_empty());
    let mut due: Vec<String> = Vec::new();
    for claim in store.claim(Queue::Due, 1000, Duration::from_secs(60)).await.unwrap() {
        assert!(store.release(Queue::Due, &claim).await.unwrap());
        due.push(claim.user);
    }
    due.sort();
    let mut expected: Vec<String> = (0..referrers).map(|place| format!("r{place}")).collect();
    expected.sort();
    assert_eq!(due, expected, "every referrer is due, the erased user is not");
}

/// Says "go on" so many times.
pub(super) fn steps(count: usize) -> impl Fn() -> bool + Sync {
    let left = AtomicUsize::new(count);
    move || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each number is a life of the process: so many steps, then the store is opened anew.
    #[test]
    fn from_any_crashes_the_job_reaches_the_same_end(lives in proptest::collection::vec(0usize..14, 0..5), referrers in 0usize..4) {
        let folder = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let store = open(folder.path());
            world(&store, referrers).await;
            store.note_erasure("hub").await.unwrap();
            drop(store);
            for life in lives {
                let store = open(folder.path());
                let erasure = store.erasures().await.unwrap().remove(0);
                let _ = carry_out(store.as_ref(), &erasure, &steps(life)).await;
            }
            let store = open(folder.path());
            let erasure = store.erasures().await.unwrap().remove(0);
            carry_out(store.as_ref(), &erasure, &|| true).await.unwrap();
            check_erased(&store, referrers).await;
        });
    }
}

/// Every single place where a crash can come: after step n the rest is done by the next life.
#[tokio::test]
async fn a_crash_after_each_step_is_healed() {
    for crash_after in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        world(&store, 2).await;
        let erasure = store.note_erasure("hub").await.unwrap();
        let stopped = carry_out(store.as_ref(), &erasure, &steps(crash_after)).await;
        drop(store);
        let store = open(folder.path());
        if stopped.is_ok() {
            check_erased(&store, 2).await;
            assert!(crash_after > 15, "{crash_after} steps are too few for two spaces and two referrers");
            return;
        }
        let erasure = store.erasures().await.unwrap().remove(0);
        carry_out(store.as_ref(), &erasure, &|| true).await.unwrap();
        check_erased(&store, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_jobs_at_once_do_what_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    world(&store, 20).await;
    let erasure = store.note_erasure("hub").await.unwrap();
    let jobs = [(); 2].map(|()| {
        let (store, erasure) = (store.clone(), erasure.clone());
        tokio::spawn(async move { carry_out(store.as_ref(), &erasure, &|| true).await.unwrap() })
    });
    for job in jobs {
        job.await.unwrap();
    }
    check_erased(&store, 20).await;
}

#[tokio::test]
async fn a_job_that_goes_on_late_leaves_the_new_life_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    world(&store, 1).await;
    let erasure = store.note_erasure("hub").await.unwrap();
    // The job dies when the user is hidden and nobody else was visited.
    job::hide(store.as_ref(), &erasure, &SPACES.map(String::from), &|| true).await.unwrap();
    append(&store, "hub", store.now_ms().await.unwrap() + AHEAD_MS).await;
    append(&store, "new", 10).await;
    let outcome = refresh(&store, "s1", &seen("hub", 1), Some(&seen("friend", 0))).await;
    assert_eq!(outcome, PutOutcome::Written { current_seq: 2 });
    refresh(&store, "s1", &seen("new", 0), Some(&seen("hub", 1))).await;
    let before = (history(&store, "hub").await, store.features("s1", &["hub".into()]).await.unwrap());

    carry_out(store.as_ref(), &erasure, &|| true).await.unwrap();
    assert_eq!((history(&store, "hub").await, store.features("s1", &["hub".into()]).await.unwrap()), before);
    assert_eq!(shown(&store, "s1", "new").await, Some(seen("hub", 1)), "who shows the new life goes on");
    assert_eq!(store.referrers("s1", "hub").await.unwrap(), ["new"]);
    let mut friends = store.referrers("s1", "friend").await.unwrap();
    friends.sort();
    assert_eq!(friends, ["bystander", "hub"]);
    assert_eq!(shown(&store, "s1", "r0").await, None, "who showed the old one does not");
    let due: Vec<String> = store
        .claim(Queue::Due, 9, Duration::from_secs(60))
        .await
        .unwrap()
        .into_iter()
        .map(|claim| claim.user)
        .collect();
    assert!(due.contains(&"hub".to_string()), "the mark of the new life is there: {due:?}");
    let feed = store.vectors_after("s1", &FeedCursor::default(), 100).await.unwrap().entries;
    let mine: Vec<_> = feed.iter().filter(|fresh| fresh.user == "hub").map(|fresh| fresh.era).collect();
    assert!(mine == [1] && feed.iter().any(|fresh| fresh.user == "hub" && fresh.vector.is_some()), "not hidden");
}

#[tokio::test]
async fn a_refresh_under_way_is_refused_or_looks_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    world(&store, 0).await;
    append(&store, "late", 10).await;
    let erasure = store.note_erasure("hub").await.unwrap();
    carry_out(store.as_ref(), &erasure, &|| true).await.unwrap();

    // The hub's own refresh had read era 0.
    let outcome = refresh(&store, "s1", &seen("hub", 0), None).await;
    assert!(matches!(outcome, PutOutcome::Refused(_)), "{outcome:?}");
    // Another user's had read the hub's history and puts after the job has passed.
    refresh(&store, "s1", &seen("late", 0), Some(&seen("hub", 0))).await;
    assert_eq!(shown(&store, "s1", "late").await, Some(seen("hub", 0)));
    assert!(look_back(store.as_ref(), "s1", &seen("late", 0), &seen("hub", 0)).await.unwrap());
    assert_eq!(shown(&store, "s1", "late").await, None);
    assert!(store.referrers("s1", "hub").await.unwrap().is_empty());
    let due = store.claim(Queue::Due, 9, Duration::from_secs(60)).await.unwrap();
    assert_eq!(due.iter().map(|claim| claim.user.as_str()).collect::<Vec<_>>(), ["late"]);
    // Nothing moved: nothing is done.
    refresh(&store, "s1", &seen("late", 0), Some(&seen("friend", 0))).await;
    assert!(!look_back(store.as_ref(), "s1", &seen("late", 0), &seen("friend", 0)).await.unwrap());
    assert_eq!(shown(&store, "s1", "late").await, Some(seen("friend", 0)));
    // Erased itself between put and look back: the note of whom it showed goes.
    let erasure = store.note_erasure("late").await.unwrap();
    store.erase_user(&erasure).await.unwrap();
    assert!(!look_back(store.as_ref(), "s1", &seen("late", 0), &seen("friend", 0)).await.unwrap());
    assert_eq!(store.referrers("s1", "friend").await.unwrap(), ["bystander"]);
}

#[tokio::test]
async fn no_reload_of_an_index_brings_an_erased_user_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.faiss");
    build_main(&IndexShape { factory: "Flat".into(), dim: 2 }, &[1.0, 0.0, 0.6, 0.8], &path).unwrap();
    let users = || ["hub", "only in the bundle"].map(String::from).to_vec();
    let load = async |store: Arc<EmbeddedStore>| {
        let index: Arc<dyn UserIndex> = Arc::new(FaissUserIndex::load(&path, users(), 2, 1).unwrap());
        VectorTail::new(store.clone(), index.clone(), "s1".into()).catch_up().await.unwrap();
        hide_in_index(store.as_ref(), index.as_ref()).await.unwrap();
        let mut found: Vec<String> =
            index.search(&[1.0, 0.0], 9, "").unwrap().into_iter().map(|neighbour| neighbour.user).collect();
        found.sort();
        found
    };
    let store = open(&folder.path().join("store"));
    world(&store, 0).await;
    assert_eq!(load(store.clone()).await, ["bystander", "hub", "only in the bundle"]);
    let erasure = store.note_erasure("only in the bundle").await.unwrap();
    carry_out(store.as_ref(), &erasure, &|| true).await.unwrap();
    assert_eq!(load(store.clone()).await, ["bystander", "hub"]);
    // Noted only: the process died at once.
    store.note_erasure("hub").await.unwrap();
    drop(store);
    let store = open(&folder.path().join("store"));
    assert_eq!(load(store.clone()).await, ["bystander"], "after a restart, too");
    assert_eq!(history(&store, "hub").await.state.era, 1);

    append(&store, "hub", store.now_ms().await.unwrap() + AHEAD_MS).await;
    refresh(&store, "s1", &seen("hub", 1), None).await;
    assert_eq!(load(store.clone()).await, ["bystander", "hub"], "the new life is found");
}

#[tokio::test]
async fn an_erasure_ends_when_the_change_feed_has_told_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    world(&store, 2).await;
    store.note_erasure("hub").await.unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let changes = Arc::new(ChangeFeed::default());
    let eraser =
        |interval| Eraser::new(store.clone(), metrics.clone(), 1_000_000, interval).telling(Some(changes.clone()));
    let (_stop, stopped) = watch::channel(false);
    eraser(Duration::ZERO).carry_out_all(&stopped).await.unwrap();
    assert_eq!(store.erasures().await.unwrap()[0].finished_era, None, "nobody has published it");
    assert_eq!(store.features("s1", &["hub".into()]).await.unwrap(), [None], "hidden it is");
    let mut told = changes.take(9);
    told.sort();
    assert_eq!(told, ["hub", "r0", "r1"]);
    // The process dies before it is published: its successor knows nothing, but the erasure is unfinished.
    let publisher = {
        let changes = changes.clone();
        tokio::spawn(async move {
            loop {
                changes.added().await;
                changes.told(&changes.take(9));
            }
        })
    };
    changes.give_back(&told);
    eraser(Duration::from_secs(60)).carry_out_all(&stopped).await.unwrap();
    publisher.abort();
    check_erased(&store, 2).await;
}

#[tokio::test]
async fn the_eraser_takes_up_what_was_left_and_forgets_old_tombstones() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    world(&store, 3).await;
    store.note_erasure("hub").await.unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let long = Duration::from_secs(3600);
    let eraser = Arc::new(Eraser::new(store.clone(), metrics.clone(), 1_000_000, long));
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn({
        let eraser = eraser.clone();
        async move { eraser.run(stopped).await }
    });
    let finished = async |count: u64| {
        let reached = async {
            while metrics.erasures.with_label_values(&["finished"]).get() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.expect("the erasures are finished");
    };
    finished(1).await;
    check_erased(&store, 3).await;
    assert_eq!(eraser.erase("nobody").await.unwrap(), 0, "a user nobody knows is noted, too");
    finished(2).await;
    assert_eq!(eraser.erase("friend").await.unwrap(), 2, "bystander, in two spaces");
    assert_eq!(store.features("s1", &["friend".into()]).await.unwrap(), [None]);
    finished(3).await;
    assert_eq!(store.erasures().await.unwrap().len(), 3);
    stop.send_replace(true);
    running.await.unwrap();
    // A retention of nothing: all are forgotten at the next round.
    let forgetful = Eraser::new(store.clone(), metrics, -1_000_000, long);
    forgetful.carry_out_all(&watch::channel(false).1).await.unwrap();
    assert_eq!(store.erasures().await.unwrap(), []);
    assert_eq!(history(&store, "hub").await.state.era, 1, "the counters stay");
}
