//! Erasures: every step alone, repeated, and late.

use super::*;
use crate::proto::TextGroup;
use crate::store::{Claim, CrossBlank, DueEntry, Erasure, IdleErasure, IdlePlan, PutRefusal, Queue, UserState};
use std::time::Duration;

const LEASE: Duration = Duration::from_millis(100);

pub(super) async fn check(subject: &Subject) {
    notes(subject).await;
    everything_of_a_user_goes(subject).await;
    applied_once_per_erasure(subject).await;
    a_new_life(subject).await;
    ahead_of_the_clock(subject).await;
    a_user_never_seen(subject).await;
    blanking(subject).await;
    a_blanked_record_is_neither_skipped_nor_filled(subject).await;
    referrers(subject).await;
    due_marks(subject).await;
    the_sweep_passes_over_the_erased(subject).await;
    spaces(subject).await;
}

async fn now(subject: &Subject) -> i64 {
    subject.store.now_ms().await.unwrap()
}

async fn erase(subject: &Subject, user: &str) -> UserState {
    let erasure = subject.store.note_erasure(user).await.unwrap();
    subject.store.erase_user(&erasure).await.unwrap()
}

/// Erasures of these users, in the order the store gives.
async fn noted(subject: &Subject, prefix: &str) -> Vec<(String, Option<u64>)> {
    let all = subject.store.erasures().await.unwrap();
    let mine = all.into_iter().filter(|erasure| erasure.user.starts_with(prefix));
    mine.map(|erasure| (erasure.user, erasure.finished_era)).collect()
}

fn v(seq: u64) -> Version {
    Version { seq, turn: 0 }
}

async fn notes(subject: &Subject) {
    let store = &subject.store;
    let start_ms = now(subject).await;
    let first = store.note_erasure("noted a").await.unwrap();
    let second = store.note_erasure("noted b {%} ü").await.unwrap();
    assert_eq!((first.user.as_str(), first.finished_era), ("noted a", None));
    assert!(first.id >= start_ms.unsigned_abs() && second.id > first.id, "ids rise: {first:?} {second:?}");
    store.finish_erasure(&first, 1).await.unwrap();
    let (a, b) = ("noted a".to_string(), "noted b {%} ü".to_string());
    assert_eq!(noted(subject, "noted").await, [(b.clone(), None), (a.clone(), Some(1))], "unfinished first");

    let again = store.note_erasure("noted a").await.unwrap();
    assert!(again.id > second.id);
    store.finish_erasure(&first, 1).await.unwrap();
    assert_eq!(
        noted(subject, "noted").await,
        [(b.clone(), None), (a.clone(), None)],
        "an earlier job finishes nothing"
    );
    store.finish_erasure(&again, 2).await.unwrap();
    store.finish_erasure(&Erasure { user: "noted never".into(), ..again.clone() }, 2).await.unwrap();

    (subject.advance)(1000);
    let late = store.note_erasure("noted late").await.unwrap();
    store.finish_erasure(&late, 1).await.unwrap();
    store.expire_erasures(start_ms).await.unwrap();
    assert_eq!(noted(subject, "noted").await.len(), 3, "an id is never below the time of its note");
    store.expire_erasures(now(subject).await).await.unwrap();
    let left = [(b, None), ("noted late".to_string(), Some(1))];
    assert_eq!(noted(subject, "noted").await, left, "unfinished ones never expire, nor later ones");
    store.finish_erasure(&second, 1).await.unwrap();
    (subject.advance)(1000);
    assert_eq!(store.expire_erasures(now(subject).await).await.unwrap(), 2);
    assert_eq!(noted(subject, "noted").await, []);
    assert!(store.note_erasure("noted a").await.unwrap().id > late.id, "ids rise though all entries are gone");
}

async fn everything_of_a_user_goes(subject: &Subject) {
    let (user, other) = ("erased whole", "erased whole not");
    let records = [engagement(10, "e", "i"), impression(11, "i", "i"), query(12, "q"), profile(13, "p", &[("age", 1)])];
    for user in [user, other] {
        append(subject, user, &records).await;
        for space in ["space", "other space"] {
            let outcome =
                put(subject, space, write_put(user, v(4), 1, 7, vec![blob(Group::Intra, 1, v(4), 1, 0)])).await;
            assert_eq!(outcome, PutOutcome::Written { current_seq: 4 });
        }
    }
    let kept = (history(subject, other).await, features(subject, "space", other).await);
    let erased_ms = now(subject).await;
    let state = erase(subject, user).await;
    let expected = UserState { seq: 4, era: 1, erased_before_ms: erased_ms, erased_seq: 4, ..UserState::default() };
    assert_eq!(state, expected, "seq stays, weight and the time of the last refresh go");
    assert!(!state.has_events());
    assert_eq!(history(subject, user).await, UserHistory { state, ..UserHistory::default() });
    for space in ["space", "other space"] {
        assert_eq!(features(subject, space, user).await, None);
    }
    assert_eq!(append(subject, user, &[]).await.refreshed_seq, None);
    assert_eq!((history(subject, other).await, features(subject, "space", other).await), kept, "nobody else's");
}

async fn applied_once_per_erasure(subject: &Subject) {
    let (store, user) = (&subject.store, "erased once");
    append(subject, user, &[engagement(10, "e", "i")]).await;
    let first = store.note_erasure(user).await.unwrap();
    let second = store.note_erasure(user).await.unwrap();
    let state = store.erase_user(&second).await.unwrap();
    assert_eq!(state.era, 1);
    let later_ms = state.erased_before_ms + 5;
    (subject.advance)(10);
    assert_eq!(append(subject, user, &[engagement(later_ms, "new", "i")]).await.accepted, 1);
    let before = history(subject, user).await;
    for repeated in [&second, &first] {
        assert_eq!(store.erase_user(repeated).await.unwrap(), before.state, "an id not above the last changes nothing");
    }
    assert_eq!(history(subject, user).await, before);
    let third = erase(subject, user).await;
    assert_eq!((third.era, third.erased_seq, third.seq), (2, 2, 2));
    assert!(history(subject, user).await.engagements.is_empty());
}

async fn a_new_life(subject: &Subject) {
    let user = "erased returns";
    append(subject, user, &[engagement(10, "e", "i"), profile(20, "p", &[("age", 1)])]).await;
    let refresh_of_before = write_put(user, v(2), 1, 7, vec![blob(Group::Intra, 1, v(2), 1, 0)]);
    let state = erase(subject, user).await;
    let edge_ms = state.erased_before_ms;
    let old = [engagement(10, "e", "i"), query(edge_ms, "q"), profile(20, "p", &[("age", 1)])];
    let outcome = append(subject, user, &old).await;
    assert_eq!((outcome.accepted, outcome.duplicates, outcome.state), (0, 3, state), "up to the time of the erasure");
    assert_eq!(put(subject, "space", refresh_of_before).await, PutOutcome::Refused(PutRefusal::Era));

    let outcome = append(subject, user, &[engagement(edge_ms + 1, "e", "i2")]).await;
    assert_eq!((outcome.accepted, outcome.state.seq, outcome.state.weight), (1, 3, 1.0), "seq goes on");
    assert!(outcome.state.has_events());
    let kept = history(subject, user).await;
    assert_eq!((kept.engagements.len(), kept.profile.len()), (1, 0));
    let new = FeaturePut { era: 1, ..write_put(user, v(3), 1, 7, vec![blob(Group::Intra, 2, v(3), 1, 0)]) };
    assert_eq!(put(subject, "space", new).await, PutOutcome::Written { current_seq: 3 });
    assert_eq!(features(subject, "space", user).await.unwrap().groups.len(), 1);
}

/// Quiet users whose id begins so, by a look that counts so much at most.
async fn look(subject: &Subject, (for_ms, at_most_ms): (i64, i64), prefix: &str) -> Vec<(String, u64)> {
    let (mut users, mut place) = (Vec::new(), String::new());
    let at_ms = subject.store.quiet_time(at_most_ms).await.unwrap();
    loop {
        let (some, next) = subject.store.quiet_users(for_ms, at_ms, &place).await.unwrap();
        users.extend(some.into_iter().filter(|(user, _)| user.starts_with(prefix)));
        if next.is_empty() {
            users.sort();
            return users;
        }
        place = next;
    }
}

async fn plan(subject: &Subject, user: &str, seq: u64) -> Option<IdleErasure> {
    let shown = vec![("space".to_string(), "neighbour {%} ü".to_string())];
    subject.store.plan_idle_erasure(user, &IdlePlan { seq, shown }).await.unwrap()
}

/// Who has been quiet for long is found, and erased only while nothing comes.
pub async fn quiet(subject: &Subject) {
    const TTL_MS: i64 = 10_000;
    let store = &subject.store;
    let found = async || look(subject, (TTL_MS, i64::MAX), "quiet").await;
    for user in ["quiet a", "quiet b", "quiet c"] {
        append(subject, user, &[engagement(1, "e", "i")]).await;
    }
    erase(subject, "quiet c").await;
    assert_eq!(found().await, [], "their time begins with the first look");
    (subject.advance)(TTL_MS - 1);
    append(subject, "quiet b", &[engagement(2, "f", "i")]).await;
    assert_eq!(found().await, []);
    (subject.advance)(1);
    assert_eq!(found().await, [("quiet a".to_string(), 1)], "an erased user has nothing to erase");
    (subject.advance)(TTL_MS);
    assert_eq!(found().await, [("quiet a".to_string(), 1), ("quiet b".to_string(), 2)]);
    // Something came between the look and the erasure.
    append(subject, "quiet b", &[engagement(3, "g", "i")]).await;
    let late = plan(subject, "quiet b", 2).await.unwrap();
    let (state, took_place) = store.erase_idle_user(&late).await.unwrap();
    assert_eq!((took_place, state.era, state.seq), (false, 0, 3));
    assert_eq!(history(subject, "quiet b").await.engagements.len(), 3);
    store.settle_idle_erasure(&late, false).await.unwrap();
    let idle = plan(subject, "quiet a", 1).await.unwrap();
    let (state, took_place) = store.erase_idle_user(&idle).await.unwrap();
    assert_eq!((took_place, state.era, state.has_events()), (true, 1, false));
    assert_eq!(store.erase_user(&idle.as_erasure()).await.unwrap(), state, "the job goes on from there");
    assert_eq!(found().await, []);
    store.settle_idle_erasure(&idle, true).await.unwrap();
    wrong_clocks(subject).await;
    plans(subject).await;
    news_on_its_way(subject).await;
}

/// No reading of the clock counts for more than it may, and what nobody saw hardly counts.
async fn wrong_clocks(subject: &Subject) {
    const TTL_MS: i64 = 10_000;
    let (store, at_most_ms) = (&subject.store, 2_000);
    let found = async || look(subject, (TTL_MS, at_most_ms), "clock").await;
    append(subject, "clock", &[engagement(1, "e", "i")]).await;
    assert_eq!(found().await, []);
    for jump_ms in [100 * TTL_MS, -100 * TTL_MS, 100 * TTL_MS] {
        (subject.advance)(jump_ms);
        assert_eq!(found().await, [], "a jump of the clock");
    }
    let before_ms = store.quiet_time(at_most_ms).await.unwrap();
    (subject.advance)(500);
    assert_eq!(store.quiet_time(at_most_ms).await.unwrap(), before_ms + 500);
    (subject.advance)(500);
    for _ in 0..2 {
        (subject.advance)(at_most_ms);
        assert_eq!(found().await, []);
    }
    (subject.advance)(at_most_ms);
    assert_eq!(found().await, [("clock".to_string(), 1)], "in the end it is long enough");
}

/// Nobody but the idle job sees an erasure that has not taken place, and it stands back behind every other.
async fn plans(subject: &Subject) {
    let store = &subject.store;
    let planned = async || {
        let all = store.idle_erasures().await.unwrap();
        all.into_iter().filter(|idle| idle.user.starts_with("planned")).collect::<Vec<_>>()
    };
    let (user, other) = ("planned {%} ü", "planned other");
    for user in [user, other] {
        append(subject, user, &[engagement(1, "e", "i")]).await;
    }
    let asked_for = store.note_erasure(other).await.unwrap();
    assert_eq!(plan(subject, other, 1).await, None, "another erasure is under way");
    assert_eq!(noted(subject, "planned").await, [(other.to_string(), None)]);
    let first = plan(subject, user, 1).await.unwrap();
    assert!(first.id > asked_for.id);
    assert_eq!(plan(subject, user, 1).await, None, "once at a time");
    assert_eq!(planned().await, std::slice::from_ref(&first));
    assert_eq!(noted(subject, "planned").await, [(other.to_string(), None)], "nothing is noted yet");
    let not_now = IdleErasure { plan: IdlePlan { seq: 2, ..first.plan.clone() }, ..first.clone() };
    assert!(!store.erase_idle_user(&not_now).await.unwrap().1);
    let (state, took_place) = store.erase_idle_user(&first).await.unwrap();
    assert!(took_place && store.erase_idle_user(&first).await.unwrap() == (state, true), "once, and told twice");
    assert_eq!(state.erased_before_ms, 1, "up to the newest event kept");
    store.settle_idle_erasure(&first, true).await.unwrap();
    assert_eq!(planned().await, []);
    let found = store.unfinished_erasures().await.unwrap();
    assert!(found.contains(&first.as_erasure()), "{found:?}");
    assert!(store.note_erasure("planned later").await.unwrap().id > first.id, "ids are given out once");
    // Finished, and told once more by one who was slow.
    store.finish_erasure(&first.as_erasure(), state.era).await.unwrap();
    store.settle_idle_erasure(&first, true).await.unwrap();
    assert!(noted(subject, user).await == [(user.to_string(), Some(1))], "it stays finished");
    let again = IdleErasure { id: store.note_erasure("planned later").await.unwrap().id + 1, ..first.clone() };
    assert!(!store.erase_idle_user(&again).await.unwrap().1, "an erased user has nothing to erase");
    // A later erasure was asked for meanwhile.
    append(subject, user, &[engagement(5, "f", "i")]).await;
    let second = plan(subject, user, 2).await.unwrap();
    let later = store.note_erasure(user).await.unwrap();
    store.settle_idle_erasure(&second, true).await.unwrap();
    let found = store.unfinished_erasures().await.unwrap();
    assert!(found.contains(&later) && !found.contains(&second.as_erasure()), "{found:?}");
    assert_eq!(planned().await, []);
    for erasure in store.unfinished_erasures().await.unwrap() {
        store.finish_erasure(&erasure, 1).await.unwrap();
    }
}

/// Nobody asked for the erasure of an idle user: what happened before it and comes after it counts.
async fn news_on_its_way(subject: &Subject) {
    let (store, user) = (&subject.store, "news");
    let now_ms = now(subject).await;
    let (kept_ms, ahead_ms) = (now_ms - 100, now_ms + 100_000);
    let old = [engagement(kept_ms - 1, "a", "i"), profile(kept_ms, "b", &[("age", 1)]), query(ahead_ms, "c")];
    append(subject, user, &old).await;
    let idle = plan(subject, user, 3).await.unwrap();
    let (state, took_place) = store.erase_idle_user(&idle).await.unwrap();
    assert_eq!((took_place, state.erased_before_ms), (true, kept_ms));
    assert_eq!(append(subject, user, &old).await.duplicates, 3, "delivered again");
    let news = [engagement(kept_ms + 1, "d", "i"), impression(now_ms, "e", "i")];
    assert_eq!(append(subject, user, &news).await.accepted, 2, "on their way");
    store.settle_idle_erasure(&idle, true).await.unwrap();
    assert_eq!(store.erase_user(&idle.as_erasure()).await.unwrap().seq, 5);
    assert_eq!(history(subject, user).await.engagements.len(), 1, "whoever finds the note erases nothing more");
    // Erased as asked for, and then as idle: what was asked for stays erased.
    let asked_ms = erase(subject, user).await.erased_before_ms;
    append(subject, user, &[engagement(asked_ms + 1, "f", "i")]).await;
    let idle = plan(subject, user, 6).await;
    assert_eq!(idle, None, "the first is not finished");
    for erasure in store.unfinished_erasures().await.unwrap() {
        store.finish_erasure(&erasure, 2).await.unwrap();
    }
    let idle = plan(subject, user, 6).await.unwrap();
    let (state, took_place) = store.erase_idle_user(&idle).await.unwrap();
    assert!(took_place && state.erased_before_ms == asked_ms, "{state:?}, asked at {asked_ms}");
    store.settle_idle_erasure(&idle, true).await.unwrap();
}

/// Events ahead of the clock are erased and stay so, and those of the present count.
pub async fn ahead_of_the_clock(subject: &Subject) {
    const HOUR_MS: i64 = 3_600_000;
    let start_ms = now(subject).await;
    let ahead_ms = start_ms + 23 * HOUR_MS;
    let kinds = [
        engagement(ahead_ms, "e", "i"),
        impression(ahead_ms, "e", "i"),
        query(ahead_ms, "e"),
        profile(ahead_ms, "e", &[("age", 1)]),
    ];
    for (place, record) in kinds.iter().enumerate() {
        let user = format!("erased ahead {place}");
        append(subject, &user, std::slice::from_ref(record)).await;
        assert_eq!(erase(subject, &user).await.erased_before_ms, start_ms, "never ahead of the clock");
        assert_eq!(append(subject, &user, std::slice::from_ref(record)).await.duplicates, 1, "delivered again");
        let present = engagement(start_ms + 1, "now", "i");
        assert_eq!(append(subject, &user, &[present]).await.accepted, 1, "what happens now counts");
        // Erased once more, it stays remembered.
        erase(subject, &user).await;
        assert_eq!(append(subject, &user, std::slice::from_ref(record)).await.duplicates, 1);
    }
    let user = "erased ahead full";
    let many = |from: i64| (from..from + 100).map(move |nth| (ahead_ms + nth, format!("{nth}")));
    let engagements: Vec<Record> = many(0).map(|(ts_ms, id)| engagement(ts_ms, &id, "i")).collect();
    let impressions: Vec<Record> = many(100).map(|(ts_ms, id)| impression(ts_ms, &id, "i")).collect();
    let queries: Vec<Record> = many(200).take(20).map(|(ts_ms, id)| query(ts_ms, &id)).collect();
    let all = [engagements, impressions, queries].concat();
    assert_eq!(append(subject, user, &all).await.accepted, 220);
    erase(subject, user).await;
    assert_eq!(append(subject, user, &all).await.duplicates, 220, "as many as the lists hold");
    // A later erasure with as much: the latest are remembered.
    let later: Vec<Record> = (1000..1100).map(|nth| engagement(ahead_ms + nth, &format!("{nth}"), "i")).collect();
    assert_eq!(append(subject, user, &later).await.accepted, 100);
    erase(subject, user).await;
    assert_eq!(append(subject, user, &later).await.duplicates, 100);
    assert_eq!(append(subject, user, &all[100..]).await.duplicates, 120);
    assert_eq!(append(subject, user, &all[..100]).await.accepted, 100, "the earliest make room");
    // When its time has come nothing is remembered any more.
    (subject.advance)(24 * HOUR_MS);
    assert_eq!(append(subject, "erased ahead 0", &kinds[..1]).await.accepted, 1);
}

async fn a_user_never_seen(subject: &Subject) {
    let user = "erased unknown";
    let state = erase(subject, user).await;
    assert_eq!((state.era, state.seq, state.erased_seq), (1, 0, 0));
    let kept = history(subject, user).await;
    assert_eq!(kept, UserHistory { state, ..UserHistory::default() }, "known from now on: it has an era");
    let late = append(subject, user, &[engagement(state.erased_before_ms, "e", "i")]).await;
    assert_eq!((late.accepted, late.duplicates), (0, 1), "what was on its way");
}

/// Intra, cross and text as one refresh writes them, with a neighbour of that era.
fn showing(neighbour: &str, neighbour_era: u64, version: Version) -> Vec<GroupBlob> {
    let meta = Some(meta(version));
    let cross =
        CrossGroup { meta: meta.clone(), item_ids: vec!["theirs".into()], similarity: 0.5, ..Default::default() };
    let text = TextGroup {
        meta,
        answer: "answer".into(),
        neighbour_user_id: neighbour.into(),
        neighbour_era,
        ..TextGroup::default()
    };
    let with = |group, bytes: Vec<u8>| GroupBlob { group, bytes: bytes.into(), tier: 1, version, expires_at_ms: 0 };
    vec![
        blob(Group::Intra, 1, version, 1, 0),
        with(Group::Cross, cross.encode_to_vec()),
        with(Group::Text, text.encode_to_vec()),
    ]
}

async fn blanking(subject: &Subject) {
    let (store, user) = (&subject.store, "blanked");
    append(subject, user, &[engagement(1, "e", "i")]).await;
    assert_eq!(store.blank_cross("space", user, "hub", 1).await.unwrap(), CrossBlank::Other, "no features");
    put(subject, "space", write_put(user, v(1), 1, 7, showing("hub", 0, v(1)))).await;
    let before = features(subject, "space", user).await.unwrap();
    for (space, neighbour) in [("space", "somebody else"), ("other space", "hub")] {
        assert_eq!(store.blank_cross(space, user, neighbour, 1).await.unwrap(), CrossBlank::Other);
    }
    assert_eq!(store.blank_cross("space", user, "hub", 0).await.unwrap(), CrossBlank::Current);
    assert_eq!(features(subject, "space", user).await.unwrap(), before, "nothing changed");

    assert_eq!(store.blank_cross("space", user, "hub", 1).await.unwrap(), CrossBlank::Blanked);
    let after = features(subject, "space", user).await.unwrap();
    let [intra, cross, text] = after.groups.as_slice() else { panic!("{after:?}") };
    assert_eq!(intra, &before.groups[0]);
    let shown = CrossGroup::decode(&cross.bytes[..]).unwrap();
    assert_eq!(shown, CrossGroup { meta: Some(meta(v(1))), ..CrossGroup::default() });
    let told = TextGroup::decode(&text.bytes[..]).unwrap();
    assert_eq!((told.neighbour_user_id.as_str(), told.answer.as_str(), told.meta), ("", "answer", Some(meta(v(1)))));
    assert_eq!((cross.version, cross.tier, text.version), (v(1), 1, v(1)));
    assert_eq!((after.prompt_hash, after.refreshed_seq), (0, Some(1)));
    assert_eq!(store.blank_cross("space", user, "hub", 1).await.unwrap(), CrossBlank::Other, "once");

    put(subject, "space", write_put(user, v(1), 1, 7, showing("hub", 2, v(1)))).await;
    assert_eq!(store.blank_cross("space", user, "hub", 2).await.unwrap(), CrossBlank::Current, "their new life");
}

async fn a_blanked_record_is_neither_skipped_nor_filled(subject: &Subject) {
    let user = "blanked stays";
    append(subject, user, &[engagement(1, "e", "i"), engagement(2, "f", "i")]).await;
    put(subject, "space", write_put(user, v(2), 1, 7, showing("hub", 0, v(2)))).await;
    subject.store.blank_cross("space", user, "hub", 1).await.unwrap();
    let nothing = PutOutcome::Refused(PutRefusal::NothingToSkip);
    assert_eq!(put(subject, "space", skip_put(user, v(2), 1)).await, nothing);
    let older = write_put(user, v(1), 1, 8, showing("hub", 0, v(1)));
    assert_eq!(put(subject, "space", older).await, PutOutcome::Refused(PutRefusal::Stale), "no gap to fill");
    let anew = write_put(user, v(2), 1, 8, showing("other", 0, v(2)));
    assert_eq!(put(subject, "space", anew).await, PutOutcome::Written { current_seq: 2 });
    assert_eq!(features(subject, "space", user).await.unwrap().prompt_hash, 8);
}

async fn referrers(subject: &Subject) {
    let store = &subject.store;
    let hub = "erased hub";
    append(subject, hub, &[engagement(1, "e", "i")]).await;
    for (space, user) in [("space", "r2"), ("space", "r1"), ("space", "r{1}"), ("other space", "r3")] {
        store.add_referrer(space, hub, user).await.unwrap();
    }
    store.add_referrer("space", "erased hub 2", "r4").await.unwrap();
    erase(subject, hub).await;
    let mut noted = store.referrers("space", hub).await.unwrap();
    noted.sort();
    assert_eq!(noted, ["r1", "r2", "r{1}"], "the notes outlive the user: the job needs them");
    assert_eq!(store.referrers("other space", hub).await.unwrap(), ["r3"]);
    for user in noted {
        store.remove_referrer("space", hub, &user).await.unwrap();
    }
    assert!(store.referrers("space", hub).await.unwrap().is_empty());
    assert_eq!(store.referrer_counts("space", &[hub.to_string()]).await.unwrap(), [0]);
    assert!(store.referrers("space", "nobody").await.unwrap().is_empty());
}

async fn due_marks(subject: &Subject) {
    let store = &subject.store;
    super::queue::now_of_an_empty_queue(subject).await;
    let mark = async |user: &str, class, due_ms| {
        store.mark_due(Queue::Due, &[DueEntry { user: user.into(), class, due_ms }]).await.unwrap();
    };
    let claim = async || -> Vec<Claim> { store.claim(Queue::Due, 9, LEASE).await.unwrap() };
    let now_ms = now(subject).await;
    store.forget_due("nobody").await.unwrap();
    mark("waits", 1, now_ms).await;
    mark("stays", 1, now_ms).await;
    store.forget_due("waits").await.unwrap();
    let claims = claim().await;
    assert_eq!(claims.iter().map(|claim| claim.user.as_str()).collect::<Vec<_>>(), ["stays"]);
    mark("stays", 0, now_ms + 7).await;
    store.forget_due("stays").await.unwrap();
    assert!(store.renew(Queue::Due, &claims[0], LEASE).await.unwrap(), "a lease stays");
    assert!(store.release(Queue::Due, &claims[0]).await.unwrap());
    assert!(claim().await.is_empty(), "what was marked during the lease is gone");
    mark("stays", 2, now_ms).await;
    assert_eq!(claim().await.len(), 1, "and can be marked again");
}

async fn the_sweep_passes_over_the_erased(subject: &Subject) {
    let (store, space, user) = (&subject.store, "erase sweep", "erase swept");
    append(subject, user, &[engagement(1, "e", "i")]).await;
    let state = erase(subject, user).await;
    let swept = async || {
        store.sweep(&[space.to_string()]).await.unwrap();
        let claims = store.claim(Queue::Due, 100_000, LEASE).await.unwrap();
        claims.iter().filter(|claim| claim.user == user).count()
    };
    assert_eq!(swept().await, 0, "nothing is kept to refresh from");
    append(subject, user, &[engagement(state.erased_before_ms + 1, "f", "i")]).await;
    assert_eq!(swept().await, 1);
}

async fn spaces(subject: &Subject) {
    let before = subject.store.spaces().await.unwrap();
    for space in ["noted space 2", "noted space 1", "noted space 2"] {
        subject.store.note_space(space).await.unwrap();
    }
    let mut expected = before;
    expected.extend(["noted space 1", "noted space 2"].map(String::from));
    expected.sort();
    assert_eq!(subject.store.spaces().await.unwrap(), expected);
}
