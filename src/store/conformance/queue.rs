//! Due queue, leases and the sweep.

use super::*;
use crate::store::{Claim, DueEntry, QueueDepth, SWEEP_CLASS};
use std::time::Duration;

const LEASE: Duration = Duration::from_millis(100);

pub(super) async fn check(subject: &Subject) {
    order(subject).await;
    marking_again(subject).await;
    leases(subject).await;
    marked_while_leased(subject).await;
    sweep(subject).await;
    awaited(subject).await;
    awaited_while_leased(subject).await;
}

async fn now(subject: &Subject) -> i64 {
    subject.store.now_ms().await.unwrap()
}

async fn mark(subject: &Subject, space: &str, user: &str, class: u8, due_ms: i64) {
    subject.store.mark_due(space, &[DueEntry { user: user.into(), class, due_ms }]).await.unwrap();
}

async fn claim(subject: &Subject, space: &str, limit: usize) -> Vec<Claim> {
    subject.store.claim(space, limit, LEASE).await.unwrap()
}

fn names(claims: &[Claim]) -> Vec<&str> {
    claims.iter().map(|claim| claim.user.as_str()).collect()
}

async fn order(subject: &Subject) {
    let (space, now_ms) = ("queue order", now(subject).await);
    for (user, class, due_ms) in
        [("c", 2, now_ms - 9), ("b", 1, now_ms), ("a", 1, now_ms - 1), ("later", 0, now_ms + 50)]
    {
        mark(subject, space, user, class, due_ms).await;
    }
    let depth = subject.store.queue_depth(space).await.unwrap();
    assert_eq!(depth.classes, [(0, 1, now_ms + 50), (1, 2, now_ms - 1), (2, 1, now_ms - 9)]);
    assert_eq!(names(&claim(subject, space, 2).await), ["a", "b"], "class, then age; not before its time");
    assert_eq!(names(&claim(subject, space, 9).await), ["c"]);
    assert!(claim(subject, space, 9).await.is_empty() && claim(subject, "queue other", 9).await.is_empty());
    let depth = subject.store.queue_depth(space).await.unwrap();
    assert_eq!(depth, QueueDepth { classes: vec![(0, 1, now_ms + 50)], leased: 3 });
    (subject.advance)(50);
    assert_eq!(names(&claim(subject, space, 9).await), ["later"]);
}

async fn marking_again(subject: &Subject) {
    let (space, now_ms) = ("queue again", now(subject).await);
    mark(subject, space, "u", 2, now_ms - 5).await;
    mark(subject, space, "u", 1, now_ms).await;
    mark(subject, space, "u", 3, now_ms + 500).await;
    let depth = subject.store.queue_depth(space).await.unwrap();
    assert_eq!(depth.classes, [(1, 1, now_ms - 5)], "the lower class and the earlier time, once");
    let claims = claim(subject, space, 9).await;
    assert_eq!((claims[0].class, claims[0].due_ms, claims.len()), (1, now_ms - 5, 1));
}

async fn leases(subject: &Subject) {
    let (space, now_ms) = ("queue leases", now(subject).await);
    mark(subject, space, "u", 1, now_ms).await;
    let first = claim(subject, space, 1).await.remove(0);
    (subject.advance)(99);
    assert!(claim(subject, space, 1).await.is_empty(), "an unexpired lease holds");
    assert!(subject.store.renew(space, &first, LEASE).await.unwrap());
    (subject.advance)(99);
    assert!(claim(subject, space, 1).await.is_empty(), "a renewed lease holds");
    (subject.advance)(1);
    let second = claim(subject, space, 1).await.remove(0);
    assert_eq!((second.due_ms, second.class), (now_ms, 1), "it keeps its place");
    assert!(!subject.store.renew(space, &first, LEASE).await.unwrap(), "the old token holds nothing");
    assert!(!subject.store.release(space, &first).await.unwrap());
    assert!(subject.store.release(space, &second).await.unwrap());
    assert!(!subject.store.release(space, &second).await.unwrap(), "released once");
    (subject.advance)(1000);
    assert!(claim(subject, space, 1).await.is_empty(), "released users are gone");
    mark(subject, space, "u", 1, now_ms).await;
    let third = claim(subject, space, 1).await.remove(0);
    (subject.advance)(100);
    assert!(!subject.store.renew(space, &third, LEASE).await.unwrap(), "too late, even if nobody took the user");
    assert_eq!(claim(subject, space, 1).await.len(), 1);
}

async fn marked_while_leased(subject: &Subject) {
    let (space, now_ms) = ("queue marked", now(subject).await);
    mark(subject, space, "u", 1, now_ms - 10).await;
    let first = claim(subject, space, 1).await.remove(0);
    mark(subject, space, "u", 3, now_ms + 20).await;
    mark(subject, space, "u", 2, now_ms + 30).await;
    assert!(claim(subject, space, 1).await.is_empty(), "not given out twice");
    assert!(subject.store.release(space, &first).await.unwrap());
    let depth = subject.store.queue_depth(space).await.unwrap();
    assert_eq!(depth.classes, [(2, 1, now_ms + 20)], "the new marks stay, merged");
    (subject.advance)(20);
    let second = claim(subject, space, 1).await.remove(0);
    mark(subject, space, "u", 0, now_ms + 500).await;
    (subject.advance)(100);
    let third = claim(subject, space, 1).await.remove(0);
    assert_eq!((third.class, third.due_ms), (0, now_ms + 20), "a lease that ran out merges both");
    assert!(!subject.store.release(space, &second).await.unwrap());
}

/// Bulk history holds users back from the sweep; events of another kind, a put and letting go end that.
pub async fn held_back(subject: &Subject) {
    let (store, space) = (&subject.store, "queue held");
    let bulk = |user: &str, ts_ms: i64| UserBatch {
        user: user.into(),
        records: vec![engagement(ts_ms, &format!("b{ts_ms}"), "i")],
    };
    let live = |user: &str, ts_ms: i64| UserBatch {
        user: user.into(),
        records: vec![engagement(ts_ms, &format!("l{ts_ms}"), "i")],
    };
    let refreshed = async |user: &str, seq: u64| {
        let version = Version { seq, turn: 0 };
        put(subject, space, write_put(user, version, 1, 1, vec![blob(Group::Intra, 1, version, 1, 0)])).await;
    };
    // Behind before: an event of now came first and was not refreshed yet.
    store.append(space, &[live("held behind", 1)]).await.unwrap();
    for user in ["held new", "held behind", "held live", "held repeat", "held put", "held gone"] {
        store.append_bulk(space, &[bulk(user, 2)]).await.unwrap();
        store.append_bulk(space, &[bulk(user, 3), bulk(user, 4)]).await.unwrap();
    }
    store.append(space, &[live("held live", 5)]).await.unwrap();
    // Delivered again, bulk history changes nothing; so does an event that is no news.
    store.append_bulk(space, &[bulk("held repeat", 2)]).await.unwrap();
    store.append(space, &[bulk("held repeat", 3)]).await.unwrap();
    refreshed("held put", 3).await;
    // Up to date, then bulk history again.
    store.append(space, &[live("held again", 1)]).await.unwrap();
    refreshed("held again", 1).await;
    store.append_bulk(space, &[bulk("held again", 2)]).await.unwrap();
    store.let_go(&["held gone".into(), "held unknown".into()]).await.unwrap();

    let found = async || {
        let (mut held, mut place) = (Vec::new(), String::new());
        loop {
            let (some, next) = store.held_back(space, &place).await.unwrap();
            held.extend(some.into_iter().filter(|user| user.starts_with("held")));
            if next.is_empty() {
                held.sort();
                return held;
            }
            place = next;
        }
    };
    assert_eq!(found().await, ["held again", "held new", "held repeat"]);
    store.sweep(space).await.unwrap();
    let swept = async || {
        let claims = store.claim(space, 10_000, LEASE).await.unwrap();
        let mut users: Vec<String> = claims.iter().map(|claim| claim.user.clone()).collect();
        users.retain(|user| user.starts_with("held"));
        users.sort();
        for claim in &claims {
            store.release(space, claim).await.unwrap();
        }
        users
    };
    assert_eq!(swept().await, ["held behind", "held gone", "held live"]);
    assert_eq!(store.stats().await.unwrap().held, 3, "counted by the sweep");
    // An event of now: from then on the sweep finds them.
    store.append(space, &[live("held new", 9), live("held again", 9)]).await.unwrap();
    store.sweep(space).await.unwrap();
    assert_eq!(swept().await, ["held again", "held behind", "held gone", "held live", "held new"]);
    assert_eq!((found().await, store.stats().await.unwrap().held), (vec!["held repeat".to_string()], 1));
    store.let_go(&["held repeat".into()]).await.unwrap();
    store.sweep(space).await.unwrap();
    assert!(swept().await.contains(&"held repeat".to_string()));
    assert_eq!(store.stats().await.unwrap().held, 0);
}

/// An event that is kept under the id of a program before is a duplicate.
pub async fn former_ids(subject: &Subject) {
    let user = "former";
    append(subject, user, &[engagement(1, "old", "i"), query(2, "old q")]).await;
    let zero = |record: Record, former: &str| Record { former_id: Some(former.into()), ..record };
    let outcome = append(
        subject,
        user,
        &[
            zero(engagement(1, "new", "i"), "old"),
            zero(query(2, "new q"), "old q"),
            zero(profile(3, "p", &[("a", 1), ("b", 2)]), "old p"),
            engagement(4, "next", "i"),
            zero(impression(5, "other", "i"), "unheard of"),
        ],
    )
    .await;
    assert_eq!((outcome.accepted, outcome.duplicates), (3, 2));
    let again = append(subject, user, &[zero(impression(5, "other", "i"), "unheard of")]).await;
    assert_eq!(again.duplicates, 1);
    // A profile stands in no list; its attributes know whose they are. The new id may sort above the former, or below.
    append(subject, user, &[profile(6, "m", &[("c", 1)])]).await;
    for new in ["z", "a"] {
        let outcome = append(subject, user, &[zero(profile(6, new, &[("c", 1)]), "m")]).await;
        assert_eq!(outcome.duplicates, 1, "{new}");
    }
    assert_eq!(append(subject, user, &[zero(profile(6, "z", &[("c", 1)]), "another")]).await.accepted, 1);
    // Ahead of the clock, erased, and sent by a program before.
    let ahead_ms = now(subject).await + 3_600_000;
    append(subject, user, &[engagement(ahead_ms, "ahead old", "i")]).await;
    let erasure = subject.store.note_erasure(user).await.unwrap();
    subject.store.erase_user(&erasure).await.unwrap();
    let outcome = append(subject, user, &[zero(engagement(ahead_ms, "ahead new", "i"), "ahead old")]).await;
    assert_eq!(outcome.duplicates, 1);
}

async fn sweep(subject: &Subject) {
    let (space, version) = ("queue sweep", Version { seq: 1, turn: 0 });
    for user in ["sweep new", "sweep fresh", "sweep stale", "sweep quick", "sweep waits", "sweep leased"] {
        append(subject, user, &[engagement(1, "e", "i")]).await;
    }
    for (user, tier) in [("sweep fresh", 1), ("sweep stale", 1), ("sweep quick", 0)] {
        put(subject, space, write_put(user, version, tier, 1, vec![blob(Group::Intra, 1, version, tier, 0)])).await;
    }
    append(subject, "sweep stale", &[engagement(2, "f", "i")]).await;
    mark(subject, space, "sweep leased", 0, 0).await;
    assert_eq!(claim(subject, space, 1).await.len(), 1);
    mark(subject, space, "sweep waits", 0, now(subject).await + 1_000_000).await;
    let marked = subject.store.sweep(space).await.unwrap();
    let claims = subject.store.claim(space, 10_000, LEASE).await.unwrap();
    assert_eq!(marked, claims.len());
    assert!(claims.iter().all(|claim| claim.class == SWEEP_CLASS));
    let swept: Vec<&str> = names(&claims).into_iter().filter(|user| user.starts_with("sweep")).collect();
    assert_eq!(swept, ["sweep new", "sweep quick", "sweep stale"]);
    assert_eq!(subject.store.sweep(space).await.unwrap(), 0, "all of them stand in the queue or are leased");
}

async fn wait_for(subject: &Subject, space: &str, user: &str, until_ms: i64) {
    let now_ms = now(subject).await;
    subject.store.mark_awaited(space, &[user.into()], now_ms, until_ms).await.unwrap();
}

/// Class and due time of one who is claimed, or nobody.
async fn claimed(subject: &Subject, space: &str) -> Option<(String, u8, i64)> {
    let claim = claim(subject, space, 1).await.pop()?;
    assert!(subject.store.release(space, &claim).await.unwrap());
    Some((claim.user, claim.class, claim.due_ms))
}

/// While a caller waits a user goes first; afterwards they stand where they stood.
async fn awaited(subject: &Subject) {
    let (space, now_ms) = ("queue awaited", now(subject).await);
    mark(subject, space, "other", 1, now_ms).await;
    wait_for(subject, space, "new", now_ms + 50).await;
    assert_eq!(claimed(subject, space).await, Some(("new".into(), 0, now_ms)), "before everybody");
    assert_eq!(claimed(subject, space).await, Some(("other".into(), 1, now_ms)));
    for (user, class, due_ms) in [("routine", 3, now_ms + 500), ("urgent", 1, now_ms - 5), ("good", 0, now_ms - 1)] {
        mark(subject, space, user, class, due_ms).await;
    }
    for user in ["routine", "urgent", "good", "absent"] {
        wait_for(subject, space, user, now_ms + 50).await;
    }
    let depth = subject.store.queue_depth(space).await.unwrap();
    assert_eq!(depth.classes, [(0, 4, now_ms - 5)]);
    // One is waited for by a second caller, for longer.
    wait_for(subject, space, "urgent", now_ms + 80).await;
    (subject.advance)(50);
    let depth = subject.store.queue_depth(space).await.unwrap();
    assert_eq!(depth.classes.iter().map(|(class, users, _)| (*class, *users)).collect::<Vec<_>>(), [(0, 2), (3, 2)]);
    (subject.advance)(30);
    let mut order = Vec::new();
    while let Some((user, class, due_ms)) = claimed(subject, space).await {
        order.push((user, class, due_ms));
    }
    let expected =
        [("good".to_string(), 0, now_ms - 1), ("urgent".into(), 1, now_ms - 5), ("absent".into(), 3, now_ms)];
    assert_eq!(
        order, expected,
        "class 0 for good stays; the others go back, and who stood nowhere to the sweep's class"
    );
    (subject.advance)(420);
    assert_eq!(claimed(subject, space).await, Some(("routine".into(), 3, now_ms + 500)), "not before its own time");
}

/// A lease that runs out gives nobody a place before everybody that no caller wants any more.
async fn awaited_while_leased(subject: &Subject) {
    let (space, now_ms) = ("queue awaited leases", now(subject).await);
    wait_for(subject, space, "u", now_ms + 50).await;
    let taken = claim(subject, space, 1).await.remove(0);
    assert_eq!(taken.class, 0);
    (subject.advance)(60);
    assert_eq!(subject.store.queue_depth(space).await.unwrap().leased, 1);
    (subject.advance)(40);
    let again = claim(subject, space, 1).await.remove(0);
    assert_eq!((again.class, again.due_ms), (3, now_ms), "the process died, and the caller is gone");
    wait_for(subject, space, "u", now_ms + 110).await;
    (subject.advance)(20);
    assert_eq!(subject.store.queue_depth(space).await.unwrap().leased, 1);
    assert!(subject.store.release(space, &again).await.unwrap());
    assert_eq!(claimed(subject, space).await.map(|(_, class, _)| class), Some(3), "marked while leased, and over");
}
