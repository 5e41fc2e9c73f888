//! The embedded store against the conformance checks, and what only it can show: restarts, erasures, compacted feeds.
//! Kills and failing disks have a file of their own, [`super::crash_tests`].
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::event::ActionClass;
use crate::feature::Version;
use crate::proto::Behaviour;
use crate::store::codec;
use crate::store::conformance::{self, Subject};
use crate::store::{
    DueEntry, DueQueue, Erasures, FeaturePut, Features, FeedCursor, Feeds, FreshVector, Histories, PROFILE_CAP,
    PutBody, PutOutcome, PutRefusal, Queue, Record, RecordBody, UserBatch,
};
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;

/// A store in a folder of its own with a clock that stands still until moved.
fn subject() -> (TempDir, Subject) {
    let folder = tempfile::tempdir().unwrap();
    let time = Arc::new(AtomicI64::new(1_700_000_000_000));
    let store = EmbeddedStore::open(folder.path(), options(&time)).unwrap();
    let advance = move |ms| {
        time.fetch_add(ms, Ordering::Relaxed);
    };
    (folder, Subject { store, advance: Box::new(advance) })
}

fn options(time: &Arc<AtomicI64>) -> EmbeddedOptions {
    let time = time.clone();
    EmbeddedOptions {
        clock: Arc::new(move || time.load(Ordering::Relaxed)),
        flush_interval: Duration::from_millis(50),
        cache_bytes: 8 << 20,
        ..EmbeddedOptions::default()
    }
}

pub(super) fn click(ts_ms: i64, event_id: &str, item: &str) -> Record {
    let behaviour = Behaviour {
        ts_ms,
        event_id: event_id.into(),
        item_id: item.into(),
        action: "click".into(),
        ..Behaviour::default()
    };
    let body = RecordBody::Behaviour { class: ActionClass::Engagement, behaviour };
    Record { ts_ms, event_id: event_id.into(), former_id: None, weight: 1.0, body }
}

pub(super) fn batch(user: &str, records: Vec<Record>) -> UserBatch {
    UserBatch { user: user.into(), records }
}

#[tokio::test]
async fn conforms_on_one_thread() {
    let (_folder, subject) = subject();
    conformance::check_all(&subject).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_on_many_threads() {
    let (_folder, subject) = subject();
    conformance::check_all(&subject).await;
}

#[test]
fn agrees_with_the_model() {
    let (_folder, subject) = subject();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    conformance::model::check(&subject, &runtime, 150);
}

#[tokio::test]
async fn a_restart_keeps_everything_and_voids_leases() {
    let folder = tempfile::tempdir().unwrap();
    let time = Arc::new(AtomicI64::new(1_700_000_000_000));
    let store = EmbeddedStore::open(folder.path(), options(&time)).unwrap();
    store.append(&["s".into()], &[batch("u", vec![click(1, "e", "i")])]).await.unwrap();
    let due = |user: &str, class, due_ms| DueEntry { user: user.into(), class, due_ms };
    store.mark_due(Queue::Due, &[due("done", 0, 1), due("taken", 1, 2), due("waits", 2, 3)]).await.unwrap();
    let claims = store.claim(Queue::Due, 2, Duration::from_secs(60)).await.unwrap();
    store.mark_due(Queue::Due, &[due("taken", 0, 9)]).await.unwrap();
    assert!(store.release(Queue::Due, &claims[0]).await.unwrap());
    let vector = FreshVector { user: "u".into(), era: 0, version: Version::default(), vector: None };
    for _ in 0..5 {
        store.append_vector("s", &vector).await.unwrap();
    }
    let newer = FreshVector { user: "v".into(), version: Version { seq: 2, turn: 0 }, ..vector.clone() };
    let late = FreshVector { version: Version { seq: 1, turn: 0 }, ..newer.clone() };
    store.append_vector("s", &newer).await.unwrap();
    store.append_vector("s", &late).await.unwrap();
    let before = (store.histories(&["u".into()]).await.unwrap(), store.stats().await.unwrap().users);
    drop(store);

    let store = EmbeddedStore::open(folder.path(), options(&time)).unwrap();
    assert_eq!((store.histories(&["u".into()]).await.unwrap(), store.stats().await.unwrap().users), before);
    assert!(!store.release(Queue::Due, &claims[1]).await.unwrap(), "leases of the dead process are void");
    let again = store.claim(Queue::Due, 9, Duration::from_secs(60)).await.unwrap();
    let shape: Vec<_> = again.iter().map(|claim| (claim.user.as_str(), claim.class, claim.due_ms)).collect();
    assert_eq!(shape, [("taken", 0, 2), ("waits", 2, 3)]);
    let feed = store.vectors_after("s", &FeedCursor::default(), 9).await.unwrap();
    assert_eq!(feed.entries, [vector.clone(), newer], "the latest entry of each user; a late writer changed nothing");
    store.append_vector("s", &vector).await.unwrap();
    assert_eq!(store.vectors_after("s", &feed.cursor, 9).await.unwrap().entries, [vector], "ids go on");
}

#[tokio::test]
async fn an_erasure_and_its_note_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let time = Arc::new(AtomicI64::new(1_700_000_000_000));
    let open = || EmbeddedStore::open(folder.path(), options(&time)).unwrap();
    let store = open();
    store.note_space("s").await.unwrap();
    store.append(&["s".into()], &[batch("u", vec![click(10, "e", "i")])]).await.unwrap();
    store.add_referrer("s", "u", "r").await.unwrap();
    let noted = store.note_erasure("u").await.unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.erasures().await.unwrap(), std::slice::from_ref(&noted), "noted, nothing done yet");
    let state = store.erase_user(&noted).await.unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.erase_user(&noted).await.unwrap(), state, "once, also over a restart");
    assert_eq!((state.era, state.seq, state.erased_before_ms), (1, 1, 1_700_000_000_000));
    assert_eq!(store.referrers("s", "u").await.unwrap(), ["r"]);
    assert_eq!(store.spaces().await.unwrap(), ["s"]);
    let late = store.append(&["s".into()], &[batch("u", vec![click(10, "e", "i")])]).await.unwrap().remove(0);
    assert_eq!((late.accepted, late.duplicates), (0, 1));
    store.finish_erasure(&noted, state.era).await.unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.erasures().await.unwrap()[0].finished_era, Some(1));
    assert!(store.note_erasure("u").await.unwrap().id > noted.id);
}

#[tokio::test]
async fn of_an_erased_user_only_the_counters_are_left() {
    let (folder, subject) = subject();
    let user = "nobody else's name";
    let records = vec![click(10, "e", "i"), Record { body: RecordBody::Query("q".into()), ..click(11, "f", "i") }];
    subject.store.append(&["s".into()], &[batch(user, records)]).await.unwrap();
    let body = PutBody::Write { groups: vec![], prompt_hash: 1, embedding: vec![1, 2] };
    let put = FeaturePut { user: user.into(), era: 0, version: Version::default(), tier: 1, body };
    assert_eq!(subject.store.put("s", put.clone()).await.unwrap(), PutOutcome::Written { current_seq: 2 });
    subject.store.add_referrer("s", user, "r").await.unwrap();
    let noted = subject.store.note_erasure(user).await.unwrap();
    subject.store.erase_user(&noted).await.unwrap();
    assert_eq!(subject.store.put("s", put).await.unwrap(), PutOutcome::Refused(PutRefusal::Era));
    subject.store.remove_referrer("s", user, "r").await.unwrap();
    drop(subject);
    let engine = Engine::open(folder.path(), "taiji", 1 << 20).unwrap();
    assert_eq!(engine.users.prefix(keys::of_state(user)).count(), 0);
    assert_eq!(engine.states.prefix(keys::of_state(user)).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_appends_of_the_same_events_count_each_once() {
    let (_folder, subject) = subject();
    let store = subject.store.clone();
    let tasks = (0..8).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..50 {
                let event = |user: &str| batch(user, vec![click(n, &format!("e{n}"), "shared item")]);
                let mut users = [event("a"), event("b"), event(&format!("own {task}"))];
                users.rotate_left(task % 3);
                store.append(&["s".into()], &users).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let kept = store.histories(&["a".into(), "b".into()]).await.unwrap();
    for history in kept.into_iter().flatten() {
        assert_eq!((history.state.seq, history.engagements.len(), history.state.weight), (50, 50, 50.0));
    }
    assert_eq!(store.item_user_counts(&["shared item".into()]).await.unwrap(), [crate::store::ITEM_USERS_CAP]);
    assert_eq!(store.stats().await.unwrap().users, 10);
}

#[tokio::test]
async fn a_full_profile_drops_its_oldest_attribute_but_never_an_opt_out() {
    let (_folder, subject) = subject();
    let profile = |ts_ms: i64, name: &str| Record {
        ts_ms,
        event_id: format!("p{ts_ms}"),
        former_id: None,
        weight: 1.0,
        body: RecordBody::Profile([(name.to_string(), serde_json::json!(true))].into()),
    };
    let append = async |record: Record| {
        let outcome = subject.store.append(&["s".into()], &[batch("u", vec![record])]).await.unwrap().remove(0);
        (outcome.accepted, outcome.duplicates)
    };
    assert_eq!(append(profile(1, "cross_opt_out")).await, (1, 0));
    for ts_ms in 2..=(PROFILE_CAP as i64 + 1) {
        assert_eq!(append(profile(ts_ms, &format!("a{ts_ms}"))).await, (1, 0));
    }
    let kept = subject.store.histories(&["u".into()]).await.unwrap().remove(0).unwrap().profile;
    assert_eq!(kept.len(), PROFILE_CAP);
    assert!(kept.contains_key("cross_opt_out") && !kept.contains_key("a2"));
    assert_eq!(append(profile(2, "a2")).await, (0, 1), "what was dropped is no news when it comes again");
}

#[tokio::test]
async fn audit_08_erased_events_ahead_of_the_clock_stay_duplicates() {
    let (_folder, subject) = subject();
    conformance::erase::ahead_of_the_clock(&subject).await;
}

#[tokio::test]
async fn audit_08_a_value_of_zero_is_known_under_its_former_id() {
    let (_folder, subject) = subject();
    conformance::queue::former_ids(&subject).await;
}

#[tokio::test]
async fn audit_12_the_sweep_passes_over_bulk_history() {
    let (_folder, subject) = subject();
    conformance::queue::held_back(&subject).await;
}

#[tokio::test]
async fn audit_08_who_has_been_quiet_for_long_is_found_and_erased_while_nothing_comes() {
    let (_folder, subject) = subject();
    conformance::erase::quiet(&subject).await;
}

#[tokio::test]
async fn audit_18_queues_of_single_spaces_are_moved_when_a_folder_opens() {
    let folder = tempfile::tempdir().unwrap();
    let time = Arc::new(AtomicI64::new(1_700_000_000_000));
    let store = EmbeddedStore::open(folder.path(), options(&time)).unwrap();
    store.mark_due(Queue::Due, &[DueEntry { user: "both".into(), class: 2, due_ms: 5 }]).await.unwrap();
    // As programs of before leave them; more than one write moves.
    let due = &store.inner.engine.due;
    let mut batch = store.inner.engine.batch();
    for user in 0..10_001 {
        batch.insert(due, keys::of_due_in("space", &format!("u{user}")), codec::encode_due(3, i64::MAX));
    }
    for (queue, user, class, due_ms) in
        [("space", "both", 1, 9), ("other", "both", 3, 7), ("space", "one", 1, 3), ("space.fast", "quick", 1, 2)]
    {
        batch.insert(due, keys::of_due_in(queue, user), codec::encode_due(class, due_ms));
    }
    store.inner.engine.commit("test", batch).unwrap();
    drop(store);

    for _ in 0..2 {
        let store = EmbeddedStore::open(folder.path(), options(&time)).unwrap();
        let left = store.inner.engine.due.iter().map(|entry| entry.key().unwrap().to_vec()).collect::<Vec<_>>();
        let of_a_space = left.iter().filter(|key| keys::parse_due(key).is_none_or(|(.., is_of_space)| is_of_space));
        assert_eq!((of_a_space.count(), left.len()), (0, 10_004));
        let shape = async |queue| -> Vec<(String, u8, i64)> {
            let claims = store.claim(queue, 9, Duration::from_secs(60)).await.unwrap();
            claims.into_iter().map(|claim| (claim.user, claim.class, claim.due_ms)).collect()
        };
        assert_eq!(shape(Queue::Due).await, [("one".into(), 1, 3), ("both".into(), 1, 5)]);
        assert_eq!(shape(Queue::Fast).await, [("quick".into(), 1, 2)]);
    }
    // 0.1.0 takes a key apart as a space and a user, and must be able to.
    assert_eq!(keys::of_due(Queue::Due, "u"), keys::of_due_in("", "u"));
    assert_eq!(keys::of_due(Queue::Fast, "u"), keys::of_due_in(".fast", "u"));
}
