//! What one record that cannot be read does to others in a folder: nothing.
#![allow(clippy::unwrap_used)]

use super::keys::Kind;
use super::*;
use crate::event::Item;
use crate::feature::{Group, Version};
use crate::store::{
    DueEntry, DueQueue, Erasures, Features, FeedCursor, Feeds as _, FreshVector, Histories, Queue, RecordKind,
    UserBatch, UserMarks, conformance,
};
use std::collections::BTreeMap;

const USERS: [&str; 3] = ["ann", "bob", "cat"];
const SPACE: &str = "s";

fn open(folder: &Path) -> Arc<EmbeddedStore> {
    EmbeddedStore::open(folder, EmbeddedOptions { cache_bytes: 8 << 20, ..EmbeddedOptions::default() }).unwrap()
}

fn everything(user: &str) -> UserBatch {
    let many = |n: i64| conformance::engagement(10 + n, &format!("e{n}"), "item");
    let mut records: Vec<_> = (0..20).map(many).collect();
    records.extend([
        conformance::impression(4, "seen", "item"),
        conformance::query(5, "asked"),
        conformance::profile(6, "told", &[("age", 1)]),
    ]);
    UserBatch { user: user.into(), records }
}

/// Every user has something under each kind of key.
async fn fill(store: &EmbeddedStore) -> Version {
    store.note_space(SPACE).await.unwrap();
    for user in USERS {
        let batch = everything(user);
        store.append(&[SPACE.into()], &[batch]).await.unwrap();
        let later = vec![conformance::engagement(99, "last", "item")];
        store.append(&[SPACE.into()], &[UserBatch { user: user.into(), records: later }]).await.unwrap();
        store.add_referrer(SPACE, user, "friend").await.unwrap();
    }
    let version = Version { seq: 24, turn: 0 };
    for user in USERS {
        let groups = [Group::Intra, Group::Cross, Group::Text].map(|group| conformance::blob(group, 1, version, 1, 0));
        store.put(SPACE, conformance::write_put(user, version, 1, 1, groups.into())).await.unwrap();
        let vector = Some(vec![0; 8]);
        store.append_vector(SPACE, &FreshVector { user: user.into(), era: 0, version, vector }).await.unwrap();
    }
    version
}

/// What may stand in the place of a value: nothing, half of it, foreign bytes, JSON, an unknown format.
fn garbage(value: &[u8]) -> [Vec<u8>; 5] {
    let foreign = (0..300u32).map(|n| (n * 7 + 0xF0) as u8).collect();
    [vec![], value[..value.len() / 2].to_vec(), foreign, b"{\"a\": [".to_vec(), [&[0xEE], value].concat()]
}

#[tokio::test]
async fn audit_02_whatever_stands_in_a_record_harms_nobody_else_and_is_erased() {
    let users = USERS.map(String::from);
    let kinds = [
        None,
        Some(Kind::EngagementsTail),
        Some(Kind::Engagements),
        Some(Kind::ImpressionsTail),
        Some(Kind::QueriesTail),
        Some(Kind::Profile),
        Some(Kind::Features),
        Some(Kind::ReferrerCount),
        Some(Kind::Notes),
    ];
    let (mut spoilt, mut unreadable) = (0, BTreeMap::<&str, usize>::new());
    for kind in kinds {
        for way in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let store = open(folder.path());
            let version = fill(&store).await;
            let engine = &store.inner.engine;
            let (keyspace, key) = match kind {
                None => (&engine.states, keys::of_state("bob")),
                Some(kind @ (Kind::Features | Kind::ReferrerCount)) => {
                    (&engine.users, keys::of_user_in_space("bob", kind, SPACE))
                }
                Some(kind) => (&engine.users, keys::of_user("bob", kind)),
            };
            let value = keyspace.get(&key).unwrap().unwrap_or_default();
            keyspace.insert(&key, garbage(&value)[way].clone()).unwrap();
            spoilt += 1;
            let mut check = |what: &'static str, failed: Vec<Option<StoreError>>| {
                for (place, error) in failed.into_iter().enumerate() {
                    let Some(error) = error else { continue };
                    assert!(place == 1 && error.is_unreadable(), "{kind:?} {way}: {what}: {error}");
                    *unreadable.entry(what).or_default() += 1;
                }
            };
            let histories = store.histories_each(&users).await.unwrap();
            check("histories", histories.into_iter().map(Result::err).collect());
            let states = store.states_each(&[SPACE.into()], &users).await.unwrap();
            check("states", states.into_iter().map(Result::err).collect());
            let groups = store.feature_groups_each(SPACE, &users, &[Group::Intra]).await.unwrap();
            check("groups", groups.into_iter().map(Result::err).collect());
            let more = |user: &str| UserBatch {
                user: user.into(),
                records: vec![conformance::engagement(999, "more", "item")],
            };
            let appended = store.append_each(&[SPACE.into()], &USERS.map(more)).await.unwrap();
            check("appends", appended.into_iter().map(Result::err).collect());
            assert_eq!(store.referrer_counts(SPACE, &users).await.unwrap(), [1, 1, 1], "{kind:?} {way}");
            let intra = conformance::blob(Group::Intra, 1, version, 1, 0);
            match store.put(SPACE, conformance::write_put("bob", version, 1, 1, vec![intra])).await {
                Ok(_) => assert!(kind.is_some() || way == 4, "{way}"),
                Err(error) => assert!(kind.is_none() && error.is_unreadable(), "{kind:?} {way}: {error}"),
            }
            store.sweep_step(&[SPACE.into()], "").await.unwrap();

            let lost = store.states(&[SPACE.into()], &users[1..2]).await.is_err();
            let now = store.now_ms().await.unwrap();
            let erasure = store.note_erasure("bob").await.unwrap();
            let state = store.erase_user(&erasure).await.unwrap();
            if lost {
                assert!(state.seq == 0 && state.era >= now as u64, "{state:?}");
            } else {
                assert!(state.era == 1 && state.seq >= 24, "{kind:?} {way}: {state:?}");
            }
            assert_eq!(store.erase_user(&erasure).await.unwrap(), state, "once an erasure");
            assert_eq!(store.referrers(SPACE, "bob").await.unwrap(), ["friend"]);
            store.finish_erasure(&erasure, state.era).await.unwrap();
            let late = store.now_ms().await.unwrap() + 1000;
            let records = vec![conformance::engagement(late, "anew", "item")];
            let outcome =
                store.append(&[SPACE.into()], &[UserBatch { user: "bob".into(), records }]).await.unwrap().remove(0);
            assert_eq!((outcome.accepted, outcome.state.era), (1, state.era), "{kind:?} {way}");
            assert_eq!(store.histories(&users[1..2]).await.unwrap()[0].as_ref().unwrap().engagements.len(), 1);
        }
    }
    println!("audit 02: {spoilt} ways to spoil a user's record in a folder; of them unreadable: {unreadable:?}");
    assert!(unreadable.len() == 4 && unreadable.values().all(|count| *count > 0), "{unreadable:?}");
}

/// Whatever stands in one user's record, the others who are idle are erased, and so is this one where the counters can be read.
#[tokio::test]
async fn audit_08_one_bad_record_stops_no_idle_erasure() {
    let kinds = [None, Some(Kind::Engagements), Some(Kind::Profile), Some(Kind::Features), Some(Kind::Notes)];
    for (kind, way) in kinds.into_iter().flat_map(|kind| (0..5).map(move |way| (kind, way))) {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        fill(&store).await;
        let engine = &store.inner.engine;
        let (keyspace, key) = match kind {
            None => (&engine.states, keys::of_state("bob")),
            Some(Kind::Features) => (&engine.users, keys::of_user_in_space("bob", Kind::Features, SPACE)),
            Some(kind) => (&engine.users, keys::of_user("bob", kind)),
        };
        let value = keyspace.get(&key).unwrap().unwrap_or_default();
        keyspace.insert(&key, garbage(&value)[way].clone()).unwrap();
        engine.meta.insert(keys::of_idle("theirs"), b"theirs").unwrap();
        engine.meta.insert(keys::QUIET_TIME, b"theirs").unwrap();
        crate::erase::erase_all_idle(store.as_ref()).await;
        let left = store.states_each(&[SPACE.into()], &USERS.map(String::from)).await.unwrap();
        let is_erased = |found: &StoreResult<Option<UserMarks>>| {
            found.as_ref().is_ok_and(|found| found.is_some_and(|marks| !marks.state.has_events()))
        };
        assert!(is_erased(&left[0]) && is_erased(&left[2]), "{kind:?} {way}: {left:?}");
        assert!(is_erased(&left[1]) || kind.is_none(), "{kind:?} {way}: {left:?}");
        assert!(store.idle_erasures().await.unwrap().is_empty(), "{kind:?} {way}");
    }
}

#[tokio::test]
async fn audit_02_bad_records_about_many_are_put_aside_and_the_folder_opens() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    fill(&store).await;
    let item = |id: &str| Item::of_stored(format!(r#"{{"id":"{id}","title":"t"}}"#).as_bytes()).unwrap();
    store.put_items(&["i1", "i2", "i3"].map(item)).await.unwrap();
    for user in ["gone", "bad"] {
        store.note_erasure(user).await.unwrap();
    }
    let entry = |user: &str| DueEntry { user: user.into(), class: 1, due_ms: 1 };
    store.mark_due(Queue::Due, &USERS.map(entry)).await.unwrap();
    let engine = &store.inner.engine;
    engine.due.insert(keys::of_due(Queue::Due, "bob"), b"theirs").unwrap();
    engine.due.insert(b"\xFF\xFFforeign", b"theirs").unwrap();
    engine.erased.insert(keys::of_state("bad"), b"theirs").unwrap();
    engine.meta.insert([keys::SPACE_PREFIX, b"\xFF"].concat(), b"").unwrap();
    engine.feeds.insert(keys::of_feed("items", 2), b"{").unwrap();
    engine.feeds.insert(keys::of_feed("vectors.s", 2), b"theirs").unwrap();
    engine.feeds.insert([keys::of_feed("vectors.s", 2), b"longer".to_vec()].concat(), b"theirs").unwrap();
    engine.items.insert(keys::of_vector_place(SPACE, "cat"), b"theirs").unwrap();
    engine.items.insert(keys::of_item_users("item"), b"theirs").unwrap();
    drop(store);

    let store = open(folder.path());
    let claimed = store.claim(Queue::Due, 9, Duration::from_secs(60)).await.unwrap();
    let mut claimed: Vec<&str> = claimed.iter().map(|claim| claim.user.as_str()).collect();
    claimed.sort_unstable();
    assert_eq!(claimed, ["ann", "cat"]);
    for _ in 0..2 {
        let page = store.vectors_after(SPACE, &FeedCursor::default(), 100).await.unwrap();
        let users: Vec<&str> = page.entries.iter().map(|entry| entry.user.as_str()).collect();
        assert_eq!((users, page.is_last), (vec!["ann", "cat"], true));
        let page = store.items_after(&FeedCursor::default(), 100).await.unwrap();
        let ids: Vec<&str> = page.entries.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["i1", "i3"]);
        let erasures = store.erasures().await.unwrap();
        assert_eq!(erasures.iter().map(|erasure| erasure.user.as_str()).collect::<Vec<_>>(), ["gone"]);
        assert_eq!(store.spaces().await.unwrap(), [SPACE]);
    }
    assert_eq!(store.item_user_counts(&["item".into()]).await.unwrap(), [0]);
    let version = Version { seq: 25, turn: 0 };
    for user in USERS {
        let fresh = FreshVector { user: user.into(), era: 0, version, vector: Some(vec![1; 8]) };
        store.append_vector(SPACE, &fresh).await.unwrap();
    }
    store.put_items(&["i2"].map(item)).await.unwrap();
    assert_eq!(store.items_after(&FeedCursor::default(), 100).await.unwrap().entries.len(), 3);
    let counts = store.unreadable().met();
    println!("audit 02: put aside in a folder: {counts:?}");
    let wanted = [(RecordKind::Due, 2), (RecordKind::Vector, 2), (RecordKind::Item, 1), (RecordKind::Erasure, 1)];
    for (kind, count) in wanted {
        assert_eq!(counts.get(kind.as_str()), Some(&count), "{counts:?}");
    }
    assert_eq!((counts.get("space"), counts.get("item_users")), (Some(&1), Some(&1)));

    let kept = || store.inner.engine.unreadable.iter().map(|entry| entry.key().unwrap().to_vec()).collect::<Vec<_>>();
    let about = |user: &str| kept().iter().filter(|key| key.starts_with(&keys::of_state(user))).count();
    assert_eq!((about("bob"), about("bad")), (2, 1), "a place in the queue and a vector; an erasure");
    for user in ["bob", "bad"] {
        let erasure = store.note_erasure(user).await.unwrap();
        store.erase_user(&erasure).await.unwrap();
    }
    assert_eq!((about("bob"), about("bad")), (0, 0), "an erasure takes what is left of the user");
    assert!(!kept().is_empty());
    store.expire_erasures(store.now_ms().await.unwrap() + 60_000).await.unwrap();
    assert!(kept().is_empty());
}

#[tokio::test]
async fn audit_02_no_more_than_a_thousand_of_a_source_are_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for part in 0..3 {
        for n in 0..500 {
            store.inner.engine.erased.insert(keys::of_state(&format!("bad-{part}-{n}")), b"theirs").unwrap();
        }
        assert!(store.erasures().await.unwrap().is_empty());
    }
    assert_eq!(store.inner.engine.unreadable.iter().count(), 1000);
}
