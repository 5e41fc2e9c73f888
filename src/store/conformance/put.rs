//! Put, skip and features: version rules, tiers, expiry, counters.

use super::*;
use crate::store::PutRefusal;

const INTRA: Group = Group::Intra;
const CROSS: Group = Group::Cross;

pub(super) async fn check(subject: &Subject) {
    refuses_what_cannot_be(subject).await;
    tier_one_by_version(subject).await;
    tier_zero_fills_gaps_only(subject).await;
    an_older_refresh_fills_gaps_without_moving_marks(subject).await;
    weight_and_marks(subject).await;
    states_are_what_histories_and_puts_say(subject).await;
    skip_moves_marks_only(subject).await;
    skip_needs_something_to_keep(subject).await;
}

fn v(seq: u64, turn: u64) -> Version {
    Version { seq, turn }
}

async fn seed(subject: &Subject, user: &str, events: u64) {
    let records: Vec<Record> = (0..events as i64).map(|n| engagement(1 + n, &format!("e{n}"), "i")).collect();
    append(subject, user, &records).await;
}

/// Which put wrote each stored group.
async fn writers(subject: &Subject, user: &str) -> Vec<(Group, u32, u8, Version)> {
    let stored = features(subject, "space", user).await.unwrap_or_default();
    let number = |blob: &GroupBlob| match blob.group {
        Group::Intra => IntraGroup::decode(&blob.bytes[..]).unwrap().sparse_ids[0],
        _ => CrossGroup::decode(&blob.bytes[..]).unwrap().item_scids[0],
    };
    stored.groups.iter().map(|blob| (blob.group, number(blob), blob.tier, blob.version)).collect()
}

fn refused(refusal: PutRefusal) -> PutOutcome {
    PutOutcome::Refused(refusal)
}

fn written(current_seq: u64) -> PutOutcome {
    PutOutcome::Written { current_seq }
}

async fn refuses_what_cannot_be(subject: &Subject) {
    let user = "put refusals";
    seed(subject, user, 2).await;
    let valid = write_put(user, v(2, 0), 1, 7, vec![blob(INTRA, 1, v(2, 0), 1, 0)]);
    let other_era = FeaturePut { era: 1, ..valid.clone() };
    assert_eq!(put(subject, "space", other_era).await, refused(PutRefusal::Era));
    let future = FeaturePut { version: v(3, 0), ..valid.clone() };
    assert_eq!(put(subject, "space", future).await, refused(PutRefusal::FutureSeq));
    assert_eq!(features(subject, "space", user).await, None);
    assert_eq!(history(subject, user).await.state.last_refresh_ms, 0);
    assert_eq!(put(subject, "space", valid).await, written(2));
    assert_eq!(features(subject, "other space", user).await, None);
}

async fn tier_one_by_version(subject: &Subject) {
    let user = "put tier one";
    seed(subject, user, 5).await;
    let send = async |number: u32, tier: u8, version: Version| {
        let groups = vec![blob(INTRA, number, version, tier, 0)];
        put(subject, "space", write_put(user, version, tier, number.into(), groups)).await
    };
    assert_eq!(send(1, 0, v(5, 0)).await, written(5));
    assert_eq!(send(2, 1, v(3, 0)).await, written(5), "tier 1 replaces tier 0 at any seq");
    assert_eq!(send(3, 1, v(2, 9)).await, refused(PutRefusal::Stale), "seq is compared first");
    assert_eq!(send(4, 1, v(3, 1)).await, written(5));
    assert_eq!(send(5, 1, v(3, 0)).await, refused(PutRefusal::Stale), "then the turn");
    assert_eq!(send(6, 1, v(3, 1)).await, written(5), "an equal version replaces");
    assert_eq!(send(7, 0, v(5, 5)).await, refused(PutRefusal::Stale), "tier 0 never replaces a living tier 1");
    assert_eq!(writers(subject, user).await, [(INTRA, 6, 1, v(3, 1))]);
    let stored = features(subject, "space", user).await.unwrap();
    assert_eq!((stored.refreshed_seq, stored.prompt_hash, stored.embedding), (Some(3), 6, vec![6; 4]));
}

async fn tier_zero_fills_gaps_only(subject: &Subject) {
    let user = "put tier zero";
    seed(subject, user, 3).await;
    let expires_ms = subject.store.now_ms().await.unwrap() + 1000;
    let both = |number, version, tier, intra_expires| {
        vec![blob(INTRA, number, version, tier, intra_expires), blob(CROSS, number, version, tier, 0)]
    };
    assert_eq!(put(subject, "space", write_put(user, v(1, 0), 0, 1, both(1, v(1, 0), 0, 0))).await, written(3));
    assert_eq!(features(subject, "space", user).await.unwrap().refreshed_seq, None, "tier 0 is no refresh");
    assert_eq!(append(subject, user, &[]).await.refreshed_seq, None);
    assert_eq!(put(subject, "space", write_put(user, v(2, 0), 0, 2, both(2, v(2, 0), 0, 0))).await, written(3));
    let older = put(subject, "space", write_put(user, v(1, 0), 0, 3, both(3, v(1, 0), 0, 0))).await;
    assert_eq!(older, refused(PutRefusal::Stale), "older never overwrites newer, within a tier either");
    let tier_one = write_put(user, v(3, 0), 1, 4, vec![blob(INTRA, 4, v(3, 0), 1, expires_ms)]);
    assert_eq!(put(subject, "space", tier_one).await, written(3));
    assert_eq!(put(subject, "space", write_put(user, v(3, 0), 0, 5, both(5, v(3, 0), 0, 0))).await, written(3));
    assert_eq!(writers(subject, user).await, [(INTRA, 4, 1, v(3, 0)), (CROSS, 5, 0, v(3, 0))], "a part is written");
    assert_eq!(features(subject, "space", user).await.unwrap().embedding, vec![4; 4], "the vector stays tier 1's");
    (subject.advance)(1000);
    assert_eq!(writers(subject, user).await[0].1, 4, "an expired group is still returned");
    assert_eq!(put(subject, "space", write_put(user, v(3, 0), 0, 6, both(6, v(3, 0), 0, 0))).await, written(3));
    assert_eq!(writers(subject, user).await, [(INTRA, 6, 0, v(3, 0)), (CROSS, 6, 0, v(3, 0))]);
    assert_eq!(append(subject, user, &[]).await.refreshed_seq, Some(3));
}

async fn an_older_refresh_fills_gaps_without_moving_marks(subject: &Subject) {
    let user = "put older fills";
    seed(subject, user, 4).await;
    put(subject, "space", write_put(user, v(4, 0), 1, 1, vec![blob(INTRA, 1, v(4, 0), 1, 0)])).await;
    let both = vec![blob(INTRA, 2, v(2, 0), 1, 0), blob(CROSS, 2, v(2, 0), 1, 0)];
    assert_eq!(put(subject, "space", write_put(user, v(2, 0), 1, 2, both)).await, written(4));
    assert_eq!(writers(subject, user).await, [(INTRA, 1, 1, v(4, 0)), (CROSS, 2, 1, v(2, 0))]);
    let stored = features(subject, "space", user).await.unwrap();
    assert_eq!((stored.refreshed_seq, stored.embedding), (Some(4), vec![1; 4]));
    assert_eq!(stored.prompt_hash, 0, "a record of mixed versions must not be skipped");
}

async fn weight_and_marks(subject: &Subject) {
    let user = "put weight";
    seed(subject, user, 3).await;
    let groups = |version| vec![blob(INTRA, 1, version, 1, 0)];
    put(subject, "space", write_put(user, v(2, 0), 1, 1, groups(v(2, 0)))).await;
    let state = history(subject, user).await.state;
    assert_eq!((state.weight, state.last_refresh_ms), (3.0, subject.store.now_ms().await.unwrap()));
    (subject.advance)(5);
    assert_eq!(put(subject, "space", write_put(user, v(3, 0), 1, 1, groups(v(3, 0)))).await, written(3));
    let state = history(subject, user).await.state;
    assert_eq!((state.weight, state.last_refresh_ms), (0.0, subject.store.now_ms().await.unwrap()));
    let outcome = append(subject, user, &[engagement(50, "new", "i")]).await;
    assert_eq!((outcome.refreshed_seq, outcome.state.weight, outcome.state.seq), (Some(3), 1.0, 4));
    assert_eq!(put(subject, "space", write_put(user, v(3, 0), 1, 1, groups(v(3, 0)))).await, written(4));
    assert_eq!(
        subject.store.append(&["elsewhere".into()], &[UserBatch { user: user.into(), records: vec![] }]).await.unwrap()
            [0]
        .refreshed_seq,
        None
    );
}

async fn states_are_what_histories_and_puts_say(subject: &Subject) {
    let users = ["states a", "states nobody", "states quick", "states {b} %"].map(String::from);
    for (user, events) in [(&users[0], 2), (&users[2], 1), (&users[3], 3)] {
        seed(subject, user, events).await;
    }
    put(subject, "space", write_put(&users[3], v(2, 0), 1, 1, vec![blob(INTRA, 1, v(2, 0), 1, 0)])).await;
    put(subject, "space", write_put(&users[2], v(1, 0), 0, 1, vec![blob(INTRA, 1, v(1, 0), 0, 0)])).await;
    let found = subject.store.states(&["space".into()], &users).await.unwrap();
    let refreshed: Vec<_> = found.iter().map(|marks| marks.map(|marks| marks.refreshed_seq)).collect();
    assert_eq!(refreshed, [Some(None), None, Some(None), Some(Some(2))], "a quick answer is no refresh");
    let elsewhere = subject.store.states(&["states other".into()], &users[3..]).await.unwrap().remove(0).unwrap();
    assert_eq!(elsewhere.refreshed_seq, None);
    for (user, marks) in users.iter().zip(found).filter(|(user, _)| *user != &users[1]) {
        assert_eq!(marks.unwrap().state, history(subject, user).await.state, "{user}");
    }
    assert!(subject.store.states(&["space".into()], &[]).await.unwrap().is_empty());
}

async fn skip_moves_marks_only(subject: &Subject) {
    let user = "put skip";
    seed(subject, user, 2).await;
    let groups = vec![blob(INTRA, 1, v(1, 0), 1, 0), blob(CROSS, 1, v(1, 0), 1, 0)];
    put(subject, "space", write_put(user, v(1, 0), 1, 9, groups)).await;
    let before = features(subject, "space", user).await.unwrap();
    (subject.advance)(7);
    assert_eq!(put(subject, "space", skip_put(user, v(2, 1), 77)).await, written(2));
    let after = features(subject, "space", user).await.unwrap();
    let intra = IntraGroup::decode(&after.groups[0].bytes[..]).unwrap();
    let expected = GroupMeta { seq: 2, turn: 1, source_ts_ms: 77, ..meta(v(1, 0)) };
    assert_eq!((intra.meta.unwrap(), intra.sparse_ids), (expected, vec![1]));
    assert_eq!(CrossGroup::decode(&after.groups[1].bytes[..]).unwrap().meta.unwrap().seq, 2);
    assert_eq!((after.groups[1].version, after.refreshed_seq), (v(2, 1), Some(2)));
    assert_eq!((after.prompt_hash, after.embedding), (before.prompt_hash, before.embedding));
    let state = history(subject, user).await.state;
    assert_eq!((state.weight, state.last_refresh_ms), (0.0, subject.store.now_ms().await.unwrap()));
    assert_eq!(put(subject, "space", skip_put(user, v(2, 0), 5)).await, refused(PutRefusal::Stale));
}

async fn skip_needs_something_to_keep(subject: &Subject) {
    let nothing = refused(PutRefusal::NothingToSkip);
    seed(subject, "skip none", 1).await;
    assert_eq!(put(subject, "space", skip_put("skip none", v(1, 0), 1)).await, nothing);
    assert_eq!(features(subject, "space", "skip none").await, None);

    seed(subject, "skip quick", 1).await;
    put(subject, "space", write_put("skip quick", v(1, 0), 0, 9, vec![blob(INTRA, 1, v(1, 0), 0, 0)])).await;
    assert_eq!(
        put(subject, "space", skip_put("skip quick", v(1, 0), 1)).await,
        nothing,
        "a quick answer is no refresh"
    );

    seed(subject, "skip expired", 1).await;
    let now_ms = subject.store.now_ms().await.unwrap();
    let groups = vec![blob(INTRA, 1, v(1, 0), 1, 0), blob(CROSS, 1, v(1, 0), 1, now_ms + 10)];
    put(subject, "space", write_put("skip expired", v(1, 0), 1, 9, groups)).await;
    assert_eq!(put(subject, "space", skip_put("skip expired", v(1, 0), 1)).await, written(1));
    (subject.advance)(10);
    assert_eq!(put(subject, "space", skip_put("skip expired", v(1, 0), 1)).await, nothing);

    seed(subject, "skip cleared", 1).await;
    put(subject, "space", write_put("skip cleared", v(1, 0), 1, 0, vec![blob(INTRA, 1, v(1, 0), 1, 0)])).await;
    assert_eq!(put(subject, "space", skip_put("skip cleared", v(1, 0), 1)).await, nothing, "a cleared prompt hash");
}
