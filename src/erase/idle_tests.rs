//! Idle users on a real store: from any crash, beside the Eraser, beside erasures that were asked for, and beside news.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::idle::{carry_out_idle, plan};
use super::tests::{SPACES, append, check_erased, history, open, shown, steps, world};
use super::*;
use crate::store::{EmbeddedStore, Erasures, Features, Histories, IdleErasure};

fn spaces() -> Vec<String> {
    SPACES.map(String::from).into()
}

async fn plan_hub(store: &EmbeddedStore) -> IdleErasure {
    plan(store, "hub", 1, &spaces()).await.unwrap().unwrap()
}

fn eraser(store: &Arc<EmbeddedStore>) -> Eraser {
    Eraser::new(store.clone(), Arc::new(Metrics::new().unwrap()), 1_000_000, Duration::from_secs(60))
}

/// One round of it.
async fn erase_noted(store: &Arc<EmbeddedStore>) {
    eraser(store).carry_out_all(&watch::channel(false).1).await.unwrap();
}

fn idle_users() -> (IdleUsers, watch::Sender<bool>) {
    let (stop, stopped) = watch::channel(false);
    let metrics = Arc::new(Metrics::new().unwrap());
    (IdleUsers { ttl_ms: 0, every: Duration::from_secs(1), metrics, stop: stopped }, stop)
}

/// After step n the process dies; the next one goes on with what it left, the Eraser, or the idle job where nothing was erased yet.
#[tokio::test]
async fn audit_08_a_crash_after_each_step_of_an_idle_erasure_is_healed() {
    for crash_after in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        world(&store, 2).await;
        let idle = plan_hub(&store).await;
        let ended = carry_out_idle(store.as_ref(), &idle, &steps(crash_after)).await;
        drop(store);
        let store = open(folder.path());
        let is_erasers = crash_after % 2 == 0;
        if is_erasers {
            erase_noted(&store).await;
        }
        let left = store.idle_erasures().await.unwrap();
        assert_eq!(left.is_empty(), ended.is_ok() || is_erasers && crash_after > 0, "after {crash_after} steps");
        for idle in left {
            assert!(carry_out_idle(store.as_ref(), &idle, &|| true).await.unwrap());
        }
        assert_eq!(store.referrers("s1", "friend").await.unwrap(), ["bystander"], "the user's own notes are gone");
        erase_noted(&store).await;
        assert_eq!(
            (store.idle_erasures().await.unwrap(), store.unfinished_erasures().await.unwrap()),
            (vec![], vec![])
        );
        check_erased(&store, 2).await;
        if ended.is_ok() {
            assert!(crash_after > 3, "{crash_after} steps are too few for two spaces");
            return;
        }
    }
}

/// Wherever the job stands when something comes: what came after the last look is kept.
#[tokio::test]
async fn audit_08_news_beside_any_step_of_an_idle_erasure_are_kept() {
    for steps_before in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        world(&store, 1).await;
        let idle = plan_hub(&store).await;
        let ended = carry_out_idle(store.as_ref(), &idle, &steps(steps_before)).await;
        // The Eraser has its list of before, or looks now.
        let listed = store.unfinished_erasures().await.unwrap();
        append(&store, "hub", 20).await;
        for erasure in listed {
            carry_out(store.as_ref(), &erasure, &|| true).await.unwrap();
        }
        erase_noted(&store).await;
        let took_place = carry_out_idle(store.as_ref(), &idle, &|| true).await.unwrap();
        assert_eq!(took_place, steps_before > 0, "the `seq` is compared in the first step");
        erase_noted(&store).await;
        let kept: Vec<i64> = history(&store, "hub").await.engagements.iter().map(|kept| kept.ts_ms).collect();
        let expected = if took_place { vec![20] } else { vec![20, 10] };
        assert_eq!(kept, expected, "after {steps_before} steps");
        let is_shown = shown(&store, "s1", "r0").await.is_some();
        assert_eq!(is_shown, !took_place, "others show whoever was not erased");
        assert_eq!(
            store.erasures().await.unwrap().len(),
            usize::from(took_place),
            "nothing is noted but what took place"
        );
        assert_eq!(store.idle_erasures().await.unwrap(), []);
        if ended.is_ok() {
            return;
        }
    }
}

/// An erasure that was asked for and is not finished is left alone, before the idle job and amid it.
#[tokio::test]
async fn audit_08_an_idle_erasure_stands_back_behind_one_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    world(&store, 2).await;
    store.note_erasure("hub").await.unwrap();
    assert_eq!(plan(store.as_ref(), "hub", 1, &spaces()).await.unwrap(), None);
    erase_noted(&store).await;
    check_erased(&store, 2).await;

    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    world(&store, 2).await;
    let idle = plan_hub(&store).await;
    let asked_for = store.note_erasure("hub").await.unwrap();
    for users in store.unfinished_erasures().await.unwrap() {
        store.erase_user(&users).await.unwrap();
    }
    assert!(carry_out_idle(store.as_ref(), &idle, &|| true).await.unwrap(), "it covers this one");
    assert_eq!(store.unfinished_erasures().await.unwrap(), [asked_for], "its steps are still to be done");
    erase_noted(&store).await;
    check_erased(&store, 2).await;
}

#[tokio::test]
async fn audit_08_a_step_erases_few_users_and_ends_when_it_is_to() {
    const USERS: usize = 120;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for user in 0..USERS {
        append(&store, &format!("u{user}"), 10).await;
    }
    let (mut chore, stop) = idle_users();
    let left = async || {
        let users: Vec<String> = (0..USERS).map(|user| format!("u{user}")).collect();
        let found = store.states(&["s1".into()], &users).await.unwrap();
        found.into_iter().flatten().filter(|marks| marks.state.has_events()).count()
    };
    assert_eq!(chore.step(store.as_ref(), "").await.unwrap(), "", "the first look only notes");
    stop.send_replace(true);
    assert_eq!((chore.step(store.as_ref(), "").await.unwrap().as_str(), left().await), (":", USERS));
    stop.send_replace(false);
    let (mut place, mut steps) = (":".to_string(), Vec::new());
    while !place.is_empty() {
        place = chore.step(store.as_ref(), &place).await.unwrap();
        steps.push(left().await);
    }
    // What was left over comes first, and is one of the step's users no more.
    assert_eq!(steps, [69, 19, 0]);
    assert_eq!(chore.metrics.erasures.with_label_values(&["idle"]).get(), USERS as u64);
}
