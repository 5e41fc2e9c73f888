//! Append and histories: order, duplicates, caps, counters.

use super::*;
use crate::store::{HISTORY_CAP, ITEM_USERS_CAP, QUERY_CAP};

pub(super) async fn check(subject: &Subject) {
    order_and_content(subject).await;
    duplicates_change_nothing(subject).await;
    a_full_list_refuses_what_sorts_below_it(subject).await;
    queries(subject).await;
    profiles(subject).await;
    one_call_with_repeats_and_many_users(subject).await;
    users_of_items(subject).await;
    assert_eq!(subject.store.histories(&["nobody".into()]).await.unwrap(), [None]);
    assert!(subject.store.append(&["space".into()], &[]).await.unwrap().is_empty());
}

async fn order_and_content(subject: &Subject) {
    let user = "append order {%} ü";
    let outcome = append(subject, user, &[engagement(20, "b", "i2"), engagement(10, "z", "i1")]).await;
    assert_eq!((outcome.accepted, outcome.duplicates, outcome.refreshed_seq), (2, 0, None));
    let outcome = append(subject, user, &[engagement(20, "a", "i3"), impression(30, "c", "i4")]).await;
    assert_eq!((outcome.state.seq, outcome.state.weight), (4, 4.0));
    let kept = history(subject, user).await;
    let order: Vec<&str> = kept.engagements.iter().map(|behaviour| behaviour.event_id.as_str()).collect();
    assert_eq!(order, ["b", "a", "z"], "newest first, by time, then id");
    let RecordBody::Behaviour { behaviour, .. } = impression(30, "c", "i4").body else { unreachable!() };
    assert_eq!(kept.impressions, [behaviour], "every field comes back");
    assert_eq!(kept.state, outcome.state);
}

async fn duplicates_change_nothing(subject: &Subject) {
    let user = "append duplicates";
    let first = append(subject, user, &[engagement(10, "e", "i"), impression(11, "i", "i"), query(12, "q")]).await;
    let before = history(subject, user).await;
    // The id counts, in whichever list it is kept and whatever else differs.
    let again = [engagement(10, "e", "i"), engagement(99, "i", "x"), impression(9, "q", "x"), query(99, "e")];
    let outcome = append(subject, user, &again).await;
    assert_eq!((outcome.accepted, outcome.duplicates, outcome.state), (0, 4, first.state));
    assert_eq!(history(subject, user).await, before);
    let none = append(subject, "append never", &[]).await;
    assert_eq!((none.accepted, none.duplicates, none.state), (0, 0, Default::default()));
    assert_eq!(subject.store.histories(&["append never".into()]).await.unwrap(), [None], "no event, no user");
}

async fn a_full_list_refuses_what_sorts_below_it(subject: &Subject) {
    let user = "append full";
    let many: Vec<Record> = (0..HISTORY_CAP as i64).map(|n| engagement(100 + n, &format!("e{n:03}"), "i")).collect();
    append(subject, user, &many).await;
    let late = append(subject, user, &[engagement(99, "late", "i"), engagement(100, "e", "i")]).await;
    assert_eq!((late.accepted, late.duplicates), (0, 2), "older, or the same time and a lower id");
    let newer = append(subject, user, &[engagement(100, "e000x", "i"), impression(1, "old", "i")]).await;
    assert_eq!(newer.accepted, 2, "above the last kept; the impressions are not full");
    let pushed_out = append(subject, user, &[engagement(100, "e000", "i")]).await;
    assert_eq!((pushed_out.accepted, pushed_out.state.seq), (0, HISTORY_CAP as u64 + 2), "redelivery of what fell off");
    let kept = history(subject, user).await;
    assert_eq!((kept.engagements.len(), kept.engagements[99].event_id.as_str()), (HISTORY_CAP, "e000x"));
}

async fn queries(subject: &Subject) {
    let user = "append queries";
    let many: Vec<Record> = (0..QUERY_CAP as i64).map(|n| query(100 + n, &format!("q{n:02}"))).collect();
    append(subject, user, &many).await;
    let outcome = append(subject, user, &[query(99, "late"), query(105, "q05"), query(200, "new")]).await;
    assert_eq!((outcome.accepted, outcome.duplicates), (1, 2), "too old, kept already, new");
    let kept = history(subject, user).await.queries;
    assert_eq!((kept.len(), &kept[0], kept[19].0), (QUERY_CAP, &(200, "query new".to_string()), 101));
}

async fn profiles(subject: &Subject) {
    let user = "append profile";
    append(subject, user, &[profile(20, "p2", &[("age", 2), ("city", 2)])]).await;
    let older = append(subject, user, &[profile(10, "p1", &[("age", 1)]), profile(20, "p2", &[("age", 9)])]).await;
    assert_eq!((older.accepted, older.state.seq), (0, 1), "no newer attribute");
    let partly = append(subject, user, &[profile(15, "p3", &[("age", 3), ("job", 3)])]).await;
    assert_eq!(partly.accepted, 1, "one attribute is news");
    let tie = append(subject, user, &[profile(20, "p3", &[("city", 7)]), profile(20, "p0", &[("city", 8)])]).await;
    assert_eq!(tie.accepted, 1, "of equal times the higher id wins, whichever comes first");
    let kept = history(subject, user).await.profile;
    let shape: Vec<_> = kept.iter().map(|(name, (ts, value))| (name.as_str(), *ts, value.as_i64().unwrap())).collect();
    assert_eq!(shape, [("age", 20, 2), ("city", 20, 7), ("job", 15, 3)]);
}

async fn one_call_with_repeats_and_many_users(subject: &Subject) {
    let batch = |user: &str, records: Vec<Record>| UserBatch { user: user.into(), records };
    let batches = [
        batch("append call a", vec![engagement(1, "x", "i"), engagement(1, "x", "i"), query(2, "x")]),
        batch("append call b", vec![engagement(1, "x", "i")]),
        batch("append call a", vec![engagement(1, "x", "i"), engagement(5, "y", "i")]),
    ];
    let outcomes = subject.store.append(&["space".into()], &batches).await.unwrap();
    let shape: Vec<_> = outcomes.iter().map(|o| (o.accepted, o.duplicates, o.state.seq)).collect();
    assert_eq!(shape, [(1, 2, 1), (1, 0, 1), (1, 1, 2)]);
    let users = ["append call b", "nobody", "append call a"].map(String::from);
    let kept = subject.store.histories(&users).await.unwrap();
    let lengths: Vec<_> =
        kept.iter().map(|history| history.as_ref().map(|history| history.engagements.len())).collect();
    assert_eq!(lengths, [Some(1), None, Some(2)], "in the order asked");
}

async fn users_of_items(subject: &Subject) {
    let counts = async |item: &str| subject.store.item_user_counts(&[item.into(), "no item".into()]).await.unwrap();
    append(subject, "item user 0", &[engagement(1, "a", "popular"), engagement(2, "b", "popular")]).await;
    append(subject, "item user 1", &[impression(1, "a", "popular"), engagement(2, "b", "")]).await;
    assert_eq!(counts("popular").await, [1, 0], "one user twice, and an impression");
    for user in 1..ITEM_USERS_CAP + 3 {
        append(subject, &format!("item user {user}"), &[engagement(3, "c", "popular")]).await;
        append(subject, &format!("item user {user}"), &[engagement(3, "c", "popular")]).await;
        assert_eq!(counts("popular").await[0], (user + 1).min(ITEM_USERS_CAP));
    }
}
