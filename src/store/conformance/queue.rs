//! Due queue, leases and the sweep.

use super::*;
use crate::store::{Claim, DueEntry, Queue, QueueDepth, SWEEP_CLASS};
use std::time::Duration;

const LEASE: Duration = Duration::from_millis(100);

pub(super) async fn check(subject: &Subject) {
    order(subject).await;
    marking_again(subject).await;
    leases(subject).await;
    marked_while_leased(subject).await;
    two_queues(subject).await;
    sweep(subject).await;
    several_spaces(subject).await;
    awaited(subject).await;
    awaited_while_leased(subject).await;
}

async fn now(subject: &Subject) -> i64 {
    subject.store.now_ms().await.unwrap()
}

/// The queue is one for all: a check begins by taking out whom the checks before left there.
pub(super) async fn now_of_an_empty_queue(subject: &Subject) -> i64 {
    (subject.advance)(10_000_000);
    while let claims = claim(subject, 1000).await
        && !claims.is_empty()
    {
        for claim in claims {
            assert!(subject.store.release(Queue::Due, &claim).await.unwrap());
        }
    }
    assert_eq!(subject.store.queue_depth(Queue::Due).await.unwrap(), QueueDepth::default());
    now(subject).await
}

async fn mark(subject: &Subject, user: &str, class: u8, due_ms: i64) {
    subject.store.mark_due(Queue::Due, &[DueEntry { user: user.into(), class, due_ms }]).await.unwrap();
}

async fn claim(subject: &Subject, limit: usize) -> Vec<Claim> {
    subject.store.claim(Queue::Due, limit, LEASE).await.unwrap()
}

fn names(claims: &[Claim]) -> Vec<&str> {
    claims.iter().map(|claim| claim.user.as_str()).collect()
}

async fn order(subject: &Subject) {
    let now_ms = now_of_an_empty_queue(subject).await;
    for (user, class, due_ms) in
        [("c", 2, now_ms - 9), ("b", 1, now_ms), ("a", 1, now_ms - 1), ("later", 0, now_ms + 50)]
    {
        mark(subject, user, class, due_ms).await;
    }
    let depth = subject.store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!(depth.classes, [(0, 1, now_ms + 50), (1, 2, now_ms - 1), (2, 1, now_ms - 9)]);
    assert_eq!(names(&claim(subject, 2).await), ["a", "b"], "class, then age; not before its time");
    assert_eq!(names(&claim(subject, 9).await), ["c"]);
    let other = subject.store.claim(Queue::Fast, 9, LEASE).await.unwrap();
    assert!(claim(subject, 9).await.is_empty() && other.is_empty());
    let depth = subject.store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!(depth, QueueDepth { classes: vec![(0, 1, now_ms + 50)], leased: 3 });
    (subject.advance)(50);
    assert_eq!(names(&claim(subject, 9).await), ["later"]);
}

async fn marking_again(subject: &Subject) {
    let now_ms = now_of_an_empty_queue(subject).await;
    mark(subject, "u", 2, now_ms - 5).await;
    mark(subject, "u", 1, now_ms).await;
    mark(subject, "u", 3, now_ms + 500).await;
    let depth = subject.store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!(depth.classes, [(1, 1, now_ms - 5)], "the lower class and the earlier time, once");
    let claims = claim(subject, 9).await;
    assert_eq!((claims[0].class, claims[0].due_ms, claims.len()), (1, now_ms - 5, 1));
}

async fn leases(subject: &Subject) {
    let now_ms = now_of_an_empty_queue(subject).await;
    mark(subject, "u", 1, now_ms).await;
    let first = claim(subject, 1).await.remove(0);
    (subject.advance)(99);
    assert!(claim(subject, 1).await.is_empty(), "an unexpired lease holds");
    assert!(subject.store.renew(Queue::Due, &first, LEASE).await.unwrap());
    (subject.advance)(99);
    assert!(claim(subject, 1).await.is_empty(), "a renewed lease holds");
    (subject.advance)(1);
    let second = claim(subject, 1).await.remove(0);
    assert_eq!((second.due_ms, second.class), (now_ms, 1), "it keeps its place");
    assert!(!subject.store.renew(Queue::Due, &first, LEASE).await.unwrap(), "the old token holds nothing");
    assert!(!subject.store.release(Queue::Due, &first).await.unwrap());
    assert!(subject.store.release(Queue::Due, &second).await.unwrap());
    assert!(!subject.store.release(Queue::Due, &second).await.unwrap(), "released once");
    (subject.advance)(1000);
    assert!(claim(subject, 1).await.is_empty(), "released users are gone");
    mark(subject, "u", 1, now_ms).await;
    let third = claim(subject, 1).await.remove(0);
    (subject.advance)(100);
    assert!(!subject.store.renew(Queue::Due, &third, LEASE).await.unwrap(), "too late, even if nobody took the user");
    assert_eq!(claim(subject, 1).await.len(), 1);
}

async fn marked_while_leased(subject: &Subject) {
    let now_ms = now_of_an_empty_queue(subject).await;
    mark(subject, "u", 1, now_ms - 10).await;
    let first = claim(subject, 1).await.remove(0);
    mark(subject, "u", 3, now_ms + 20).await;
    mark(subject, "u", 2, now_ms + 30).await;
    assert!(claim(subject, 1).await.is_empty(), "not given out twice");
    assert!(subject.store.release(Queue::Due, &first).await.unwrap());
    let depth = subject.store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!(depth.classes, [(2, 1, now_ms + 20)], "the new marks stay, merged");
    (subject.advance)(20);
    let second = claim(subject, 1).await.remove(0);
    mark(subject, "u", 0, now_ms + 500).await;
    (subject.advance)(100);
    let third = claim(subject, 1).await.remove(0);
    assert_eq!((third.class, third.due_ms), (0, now_ms + 20), "a lease that ran out merges both");
    assert!(!subject.store.release(Queue::Due, &second).await.unwrap());
}

/// A user stands in both queues independently, and is forgotten in both.
async fn two_queues(subject: &Subject) {
    let now_ms = now_of_an_empty_queue(subject).await;
    let entry = DueEntry { user: "both".into(), class: 1, due_ms: now_ms };
    for queue in Queue::ALL {
        subject.store.mark_due(queue, std::slice::from_ref(&entry)).await.unwrap();
    }
    let taken = subject.store.claim(Queue::Fast, 9, LEASE).await.unwrap();
    assert_eq!(names(&taken), ["both"]);
    assert!(!subject.store.renew(Queue::Due, &taken[0], LEASE).await.unwrap(), "a lease is one queue's");
    assert_eq!(subject.store.queue_depth(Queue::Due).await.unwrap().classes, [(1, 1, now_ms)]);
    subject.store.mark_due(Queue::Fast, &[entry]).await.unwrap();
    subject.store.forget_due("both").await.unwrap();
    assert_eq!(subject.store.queue_depth(Queue::Due).await.unwrap(), QueueDepth::default());
    assert!(subject.store.release(Queue::Fast, &taken[0]).await.unwrap(), "a lease that runs stays");
    assert_eq!(subject.store.queue_depth(Queue::Fast).await.unwrap(), QueueDepth::default());
}

/// Who is behind in one of the live spaces is behind.
async fn several_spaces(subject: &Subject) {
    let (store, user, version) = (&subject.store, "spaces", Version { seq: 2, turn: 0 });
    let live = ["queue live".to_string(), "queue second".to_string()];
    now_of_an_empty_queue(subject).await;
    let refreshed = async |space: &str, seq: u64| {
        let version = Version { seq, ..version };
        put(subject, space, write_put(user, version, 1, 1, vec![blob(Group::Intra, 1, version, 1, 0)])).await;
    };
    let append = async |ts_ms: i64| {
        let batch = UserBatch { user: user.into(), records: vec![engagement(ts_ms, &format!("e{ts_ms}"), "i")] };
        store.append(&live, &[batch]).await.unwrap().remove(0).refreshed_seq
    };
    let is_swept = async |spaces: &[String]| {
        store.sweep(spaces).await.unwrap();
        let claims = claim(subject, 10_000).await;
        for claim in &claims {
            store.release(Queue::Due, claim).await.unwrap();
        }
        names(&claims).contains(&user)
    };
    assert_eq!((append(1).await, append(2).await), (None, None));
    refreshed(&live[0], 2).await;
    assert_eq!(append(2).await, None, "nothing in the second");
    refreshed(&live[1], 1).await;
    assert_eq!(append(2).await, Some(1), "the least");
    let marks = store.states(&live, &[user.into()]).await.unwrap().remove(0).unwrap();
    assert_eq!((marks.state.seq, marks.refreshed_seq), (2, Some(1)));
    assert_eq!(store.states(&live[..1], &[user.into()]).await.unwrap()[0].unwrap().refreshed_seq, Some(2));
    assert!(is_swept(&live).await && !is_swept(&live[..1]).await && is_swept(&live[1..]).await);
    // Behind in one of them is behind before: bulk history holds nobody back then.
    let bulk = UserBatch { user: user.into(), records: vec![engagement(3, "bulk", "i")] };
    store.append_bulk(&live, &[bulk]).await.unwrap();
    assert!(is_swept(&live).await);
    refreshed(&live[0], 3).await;
    refreshed(&live[1], 3).await;
    assert!(!is_swept(&live).await);
    let bulk = UserBatch { user: user.into(), records: vec![engagement(4, "more bulk", "i")] };
    store.append_bulk(&live, &[bulk]).await.unwrap();
    assert!(!is_swept(&live).await, "held back");
}

/// Bulk history holds users back from the sweep; events of another kind, a put and a release end that.
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
    store.append(&[space.to_string()], &[live("held behind", 1)]).await.unwrap();
    for user in ["held new", "held behind", "held live", "held repeat", "held put", "held gone"] {
        store.append_bulk(&[space.to_string()], &[bulk(user, 2)]).await.unwrap();
        store.append_bulk(&[space.to_string()], &[bulk(user, 3), bulk(user, 4)]).await.unwrap();
    }
    store.append(&[space.to_string()], &[live("held live", 5)]).await.unwrap();
    // Delivered again, bulk history changes nothing; so does an event that is no news.
    store.append_bulk(&[space.to_string()], &[bulk("held repeat", 2)]).await.unwrap();
    store.append(&[space.to_string()], &[bulk("held repeat", 3)]).await.unwrap();
    refreshed("held put", 3).await;
    // Up to date, then bulk history again.
    store.append(&[space.to_string()], &[live("held again", 1)]).await.unwrap();
    refreshed("held again", 1).await;
    store.append_bulk(&[space.to_string()], &[bulk("held again", 2)]).await.unwrap();
    store.release_held_back(&["held gone".into(), "held unknown".into()]).await.unwrap();

    let found_in = async |space: &str| {
        let (mut held, mut place) = (Vec::new(), String::new());
        loop {
            let (some, next) = store.held_back(&[space.to_string()], &place).await.unwrap();
            held.extend(some.into_iter().filter(|user| user.starts_with("held")));
            if next.is_empty() {
                held.sort();
                return held;
            }
            place = next;
        }
    };
    let found = async || found_in(space).await;
    assert_eq!(found().await, ["held again", "held new", "held repeat"]);
    // A space of a new bundle has not seen what came before the bulk history either.
    assert_eq!(found_in("queue held elsewhere").await, ["held new", "held put", "held repeat"]);
    store.sweep(&[space.to_string()]).await.unwrap();
    let swept = async || {
        let claims = store.claim(Queue::Due, 10_000, LEASE).await.unwrap();
        let mut users: Vec<String> = claims.iter().map(|claim| claim.user.clone()).collect();
        users.retain(|user| user.starts_with("held"));
        users.sort();
        for claim in &claims {
            store.release(Queue::Due, claim).await.unwrap();
        }
        users
    };
    assert_eq!(swept().await, ["held behind", "held gone", "held live"]);
    assert_eq!(store.stats().await.unwrap().held, 3, "counted by the sweep");
    // An event of now: from then on the sweep finds them.
    store.append(&[space.to_string()], &[live("held new", 9), live("held again", 9)]).await.unwrap();
    store.sweep(&[space.to_string()]).await.unwrap();
    assert_eq!(swept().await, ["held again", "held behind", "held gone", "held live", "held new"]);
    assert_eq!((found().await, store.stats().await.unwrap().held), (vec!["held repeat".to_string()], 1));
    store.release_held_back(&["held repeat".into()]).await.unwrap();
    store.sweep(&[space.to_string()]).await.unwrap();
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
    now_of_an_empty_queue(subject).await;
    for user in ["sweep new", "sweep fresh", "sweep stale", "sweep quick", "sweep waits", "sweep leased"] {
        append(subject, user, &[engagement(1, "e", "i")]).await;
    }
    for (user, tier) in [("sweep fresh", 1), ("sweep stale", 1), ("sweep quick", 0)] {
        put(subject, space, write_put(user, version, tier, 1, vec![blob(Group::Intra, 1, version, tier, 0)])).await;
    }
    append(subject, "sweep stale", &[engagement(2, "f", "i")]).await;
    mark(subject, "sweep leased", 0, 0).await;
    assert_eq!(claim(subject, 1).await.len(), 1);
    mark(subject, "sweep waits", 0, now(subject).await + 1_000_000).await;
    let marked = subject.store.sweep(&[space.to_string()]).await.unwrap();
    let claims = subject.store.claim(Queue::Due, 10_000, LEASE).await.unwrap();
    assert_eq!(marked, claims.len());
    assert!(claims.iter().all(|claim| claim.class == SWEEP_CLASS));
    let swept: Vec<&str> = names(&claims).into_iter().filter(|user| user.starts_with("sweep")).collect();
    assert_eq!(swept, ["sweep new", "sweep quick", "sweep stale"]);
    assert_eq!(
        subject.store.sweep(&[space.to_string()]).await.unwrap(),
        0,
        "all of them stand in the queue or are leased"
    );
}

async fn wait_for(subject: &Subject, user: &str, until_ms: i64) {
    let now_ms = now(subject).await;
    subject.store.mark_awaited(&[user.into()], now_ms, until_ms).await.unwrap();
}

/// Class and due time of one who is claimed, or nobody.
async fn claimed(subject: &Subject) -> Option<(String, u8, i64)> {
    let claim = claim(subject, 1).await.pop()?;
    assert!(subject.store.release(Queue::Due, &claim).await.unwrap());
    Some((claim.user, claim.class, claim.due_ms))
}

/// While a caller waits a user goes first; afterwards they stand where they stood.
async fn awaited(subject: &Subject) {
    let now_ms = now_of_an_empty_queue(subject).await;
    mark(subject, "other", 1, now_ms).await;
    wait_for(subject, "new", now_ms + 50).await;
    assert_eq!(claimed(subject).await, Some(("new".into(), 0, now_ms)), "before everybody");
    assert_eq!(claimed(subject).await, Some(("other".into(), 1, now_ms)));
    for (user, class, due_ms) in [("routine", 3, now_ms + 500), ("urgent", 1, now_ms - 5), ("good", 0, now_ms - 1)] {
        mark(subject, user, class, due_ms).await;
    }
    for user in ["routine", "urgent", "good", "absent"] {
        wait_for(subject, user, now_ms + 50).await;
    }
    let depth = subject.store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!(depth.classes, [(0, 4, now_ms - 5)]);
    // One is waited for by a second caller, for longer.
    wait_for(subject, "urgent", now_ms + 80).await;
    (subject.advance)(50);
    let depth = subject.store.queue_depth(Queue::Due).await.unwrap();
    assert_eq!(depth.classes.iter().map(|(class, users, _)| (*class, *users)).collect::<Vec<_>>(), [(0, 2), (3, 2)]);
    (subject.advance)(30);
    let mut order = Vec::new();
    while let Some((user, class, due_ms)) = claimed(subject).await {
        order.push((user, class, due_ms));
    }
    let expected =
        [("good".to_string(), 0, now_ms - 1), ("urgent".into(), 1, now_ms - 5), ("absent".into(), 3, now_ms)];
    assert_eq!(
        order, expected,
        "class 0 for good stays; the others go back, and who stood nowhere to the sweep's class"
    );
    (subject.advance)(420);
    assert_eq!(claimed(subject).await, Some(("routine".into(), 3, now_ms + 500)), "not before its own time");
}

/// A lease that runs out gives nobody a place before everybody that no caller wants any more.
async fn awaited_while_leased(subject: &Subject) {
    let now_ms = now_of_an_empty_queue(subject).await;
    wait_for(subject, "u", now_ms + 50).await;
    let taken = claim(subject, 1).await.remove(0);
    assert_eq!(taken.class, 0);
    (subject.advance)(60);
    assert_eq!(subject.store.queue_depth(Queue::Due).await.unwrap().leased, 1);
    (subject.advance)(40);
    let again = claim(subject, 1).await.remove(0);
    assert_eq!((again.class, again.due_ms), (3, now_ms), "the process died, and the caller is gone");
    wait_for(subject, "u", now_ms + 110).await;
    (subject.advance)(20);
    assert_eq!(subject.store.queue_depth(Queue::Due).await.unwrap().leased, 1);
    assert!(subject.store.release(Queue::Due, &again).await.unwrap());
    assert_eq!(claimed(subject).await.map(|(_, class, _)| class), Some(3), "marked while leased, and over");
}
