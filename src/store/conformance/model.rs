//! Random histories of calls, run against the store and against a model that says the rules in the plainest way.
//!
//! In: a store. Out: a panic with the shortest failing list of calls. The model keeps whole lists and scans them; it
//! shares no code with a store.

use super::*;
use crate::store::{Claim, DueEntry, Erasure, HISTORY_CAP, PutRefusal, QUERY_CAP, Queue};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const USERS: u8 = 3;
const LEASE_MS: i64 = 30;

/// (user, (kind, ts, id) of each record)
type ModelBatch = (u8, Vec<(u8, i64, u16)>);

#[derive(Debug, Clone)]
enum Call {
    Append(Vec<ModelBatch>),
    /// Versions are given as distance below the current seq; -1 is in the future.
    Put {
        user: u8,
        back: i8,
        turn: u64,
        tier: u8,
        groups: u8,
        lives_ms: i64,
    },
    Skip {
        user: u8,
        back: i8,
        turn: u64,
    },
    Mark {
        user: u8,
        class: u8,
        in_ms: i64,
    },
    Claim {
        limit: usize,
    },
    Renew {
        nth: usize,
    },
    Release {
        nth: usize,
    },
    Erase {
        user: u8,
    },
    /// The step of the last erasure once more, as a job after a crash.
    EraseAgain {
        user: u8,
    },
    Forget {
        user: u8,
    },
    Advance {
        ms: i64,
    },
}

fn call() -> impl Strategy<Value = Call> {
    let record = (0u8..3, 0i64..150, 0u16..400);
    let batch = (0..USERS, prop::collection::vec(record, 0..60));
    prop_oneof![
        4 => prop::collection::vec(batch, 1..3).prop_map(Call::Append),
        4 => (0..USERS, -1i8..4, 0u64..2, 0u8..2, 1u8..4, 0i64..60).prop_map(
            |(user, back, turn, tier, groups, lives_ms)| Call::Put { user, back, turn, tier, groups, lives_ms }
        ),
        1 => (0..USERS, 0i8..3, 0u64..2).prop_map(|(user, back, turn)| Call::Skip { user, back, turn }),
        3 => (0..USERS, 0u8..3, -20i64..20).prop_map(|(user, class, in_ms)| Call::Mark { user, class, in_ms }),
        3 => (0usize..3).prop_map(|limit| Call::Claim { limit }),
        1 => (0usize..8).prop_map(|nth| Call::Renew { nth }),
        2 => (0usize..8).prop_map(|nth| Call::Release { nth }),
        1 => (0..USERS).prop_map(|user| Call::Erase { user }),
        1 => (0..USERS).prop_map(|user| Call::EraseAgain { user }),
        1 => (0..USERS).prop_map(|user| Call::Forget { user }),
        2 => (1i64..25).prop_map(|ms| Call::Advance { ms }),
    ]
}

#[derive(Default)]
struct ModelUser {
    seq: u64,
    weight: f64,
    /// Engagements, impressions, queries: (ts, id), newest first.
    lists: [Vec<(i64, String)>; 3],
    groups: BTreeMap<Group, ModelGroup>,
    refreshed: Option<Version>,
    hash: u64,
    waiting: Option<(u8, i64)>,
    leased: Option<Lease>,
    era: u64,
    /// 0 = never erased.
    erased_before_ms: i64,
    erased_seq: u64,
    erasure: Option<Erasure>,
    /// (ts, id) of erased events that lay ahead of the clock.
    remembered: Vec<(i64, String)>,
}

#[derive(Clone)]
struct ModelGroup {
    tier: u8,
    version: Version,
    expires_at_ms: i64,
}

struct Lease {
    place: (u8, i64),
    again: Option<(u8, i64)>,
    token: u64,
    ends_ms: i64,
}

fn earlier(a: Option<(u8, i64)>, b: (u8, i64)) -> (u8, i64) {
    a.map_or(b, |a| (a.0.min(b.0), a.1.min(b.1)))
}

impl ModelUser {
    /// Times of events straddle the time of the last erasure.
    fn ts_ms(&self, drawn: i64) -> i64 {
        if self.era == 0 { drawn } else { self.erased_before_ms - 50 + drawn }
    }

    fn erase(&mut self, now_ms: i64) {
        self.erased_before_ms = now_ms;
        self.remembered.extend(self.lists.iter().flatten().cloned());
        self.remembered.retain(|(ts_ms, _)| *ts_ms > now_ms);
        self.era += 1;
        self.erased_seq = self.seq;
        self.weight = 0.0;
        self.lists = Default::default();
        self.groups.clear();
        self.refreshed = None;
        self.hash = 0;
    }

    fn append(&mut self, kind: u8, ts_ms: i64, id: &str, now_ms: i64) -> bool {
        if self.era > 0 && ts_ms <= self.erased_before_ms {
            return false;
        }
        if self.remembered.iter().any(|(ts_ms, erased)| *ts_ms > now_ms && erased == id) {
            return false;
        }
        if self.lists.iter().flatten().any(|(_, kept)| kept == id) {
            return false;
        }
        let cap = if kind == 2 { QUERY_CAP } else { HISTORY_CAP };
        let list = &mut self.lists[kind as usize];
        list.push((ts_ms, id.into()));
        list.sort_by(|a, b| b.cmp(a));
        list.truncate(cap);
        let kept = list.iter().any(|(_, kept)| kept == id);
        if kept {
            self.seq += 1;
            self.weight += if kind == 2 { 2.0 } else { 1.0 };
        }
        kept
    }

    fn put(&mut self, version: Version, tier: u8, groups: &[GroupBlob], hash: u64, now_ms: i64) -> bool {
        let dead = |group: &ModelGroup| group.expires_at_ms != 0 && group.expires_at_ms <= now_ms;
        let mut written = false;
        for blob in groups {
            let free = match self.groups.get(&blob.group) {
                None => true,
                Some(old) if tier == 0 => dead(old) || (old.tier == 0 && old.version <= version),
                Some(old) => old.tier == 0 || old.version <= version,
            };
            if free {
                written = true;
                self.groups.insert(blob.group, ModelGroup { tier, version, expires_at_ms: blob.expires_at_ms });
            }
        }
        if !written {
            return false;
        }
        self.hash = 0;
        if tier == 1 && self.refreshed <= Some(version) {
            self.hash = hash;
            self.note_refresh(version);
        }
        true
    }

    fn skip(&mut self, version: Version, now_ms: i64) -> bool {
        let alive = |group: &ModelGroup| group.tier == 1 && (group.expires_at_ms == 0 || group.expires_at_ms > now_ms);
        let keepable = self.hash != 0 && !self.groups.is_empty() && self.groups.values().all(alive);
        if !keepable || self.refreshed > Some(version) {
            return false;
        }
        self.groups.values_mut().for_each(|group| group.version = version);
        self.note_refresh(version);
        true
    }

    fn note_refresh(&mut self, version: Version) {
        self.refreshed = Some(version);
        if version.seq == self.seq {
            self.weight = 0.0;
        }
    }

    fn mark(&mut self, place: (u8, i64)) {
        match &mut self.leased {
            Some(lease) => lease.again = Some(earlier(lease.again, place)),
            None => self.waiting = Some(earlier(self.waiting, place)),
        }
    }

    fn end_lease(&mut self, now_ms: i64) {
        if let Some(lease) = self.leased.take_if(|lease| lease.ends_ms <= now_ms) {
            self.waiting = Some(earlier(lease.again, lease.place));
        }
    }
}

struct Run<'a> {
    subject: &'a Subject,
    space: String,
    users: Vec<ModelUser>,
    claims: Vec<(usize, Claim)>,
}

/// Compares store and model over many random runs on one store.
pub fn check(subject: &Subject, runtime: &tokio::runtime::Runtime, cases: u32) {
    let runs = AtomicU64::new(0);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let calls = prop::collection::vec(call(), 1..40);
    let outcome = runner.run(&calls, |calls| {
        let space = format!("model {}", runs.fetch_add(1, Ordering::Relaxed));
        let users = (0..USERS).map(|_| ModelUser::default()).collect();
        let mut run = Run { subject, space, users, claims: Vec::new() };
        runtime.block_on(async {
            super::queue::now_of_an_empty_queue(subject).await;
            for call in &calls {
                run.step(call).await;
                run.compare().await;
            }
        });
        Ok(())
    });
    outcome.unwrap();
}

impl Run<'_> {
    fn name(&self, user: usize) -> String {
        format!("{} user {user}", self.space)
    }

    async fn step(&mut self, call: &Call) {
        let store = self.subject.store.clone();
        let now_ms = store.now_ms().await.unwrap();
        self.users.iter_mut().for_each(|user| user.end_lease(now_ms));
        match call {
            Call::Append(batches) => self.append(batches).await,
            Call::Put { user, back, turn, tier, groups, lives_ms } => {
                let version = self.version(*user, *back, *turn);
                let expires_at_ms = if *lives_ms == 0 { 0 } else { now_ms + lives_ms };
                let named = [(1, Group::Intra), (2, Group::Cross)].into_iter().filter(|(bit, _)| groups & bit != 0);
                let blobs: Vec<_> = named.map(|(_, group)| blob(group, 1, version, *tier, expires_at_ms)).collect();
                let model = &mut self.users[*user as usize];
                let possible = version.seq <= model.seq;
                let expected = possible && model.put(version, *tier, &blobs, 9, now_ms);
                let sent = self.of_era(write_put(&self.name(*user as usize), version, *tier, 9, blobs), *user);
                self.compare_put(*user, sent, expected).await;
            }
            Call::Skip { user, back, turn } => {
                let version = self.version(*user, *back, *turn);
                let expected = self.users[*user as usize].skip(version, now_ms);
                let sent = self.of_era(skip_put(&self.name(*user as usize), version, 5), *user);
                self.compare_put(*user, sent, expected).await;
            }
            Call::Mark { user, class, in_ms } => {
                self.users[*user as usize].mark((*class, now_ms + in_ms));
                let entry = DueEntry { user: self.name(*user as usize), class: *class, due_ms: now_ms + in_ms };
                store.mark_due(Queue::Due, &[entry]).await.unwrap();
            }
            Call::Claim { limit } => self.claim(*limit, now_ms).await,
            Call::Renew { nth } => {
                let Some((user, claim)) = self.claims.get(*nth) else { return };
                let lease = self.users[*user].leased.as_mut().filter(|lease| lease.token == claim.token);
                let expected = lease.map(|lease| lease.ends_ms = now_ms + LEASE_MS).is_some();
                assert_eq!(store.renew(Queue::Due, claim, lease_time()).await.unwrap(), expected);
            }
            Call::Release { nth } => {
                let Some((user, claim)) = self.claims.get(*nth) else { return };
                let model = &mut self.users[*user];
                let ended = model.leased.take_if(|lease| lease.token == claim.token);
                assert_eq!(store.release(Queue::Due, claim).await.unwrap(), ended.is_some());
                if let Some(again) = ended.and_then(|lease| lease.again) {
                    model.waiting = Some(again);
                }
            }
            Call::Erase { user } => {
                let erasure = store.note_erasure(&self.name(*user as usize)).await.unwrap();
                let model = &mut self.users[*user as usize];
                model.erase(now_ms);
                let state = store.erase_user(&erasure).await.unwrap();
                assert_eq!((state.era, state.erased_before_ms), (model.era, model.erased_before_ms));
                model.erasure = Some(erasure);
            }
            Call::EraseAgain { user } => {
                let Some(erasure) = &self.users[*user as usize].erasure else { return };
                store.erase_user(erasure).await.unwrap();
            }
            Call::Forget { user } => {
                let model = &mut self.users[*user as usize];
                model.waiting = None;
                if let Some(lease) = &mut model.leased {
                    lease.again = None;
                }
                store.forget_due(&self.name(*user as usize)).await.unwrap();
            }
            Call::Advance { ms } => (self.subject.advance)(*ms),
        }
    }

    /// A put of the user's era; one of the era before is refused whatever else it says.
    fn of_era(&self, put: FeaturePut, user: u8) -> FeaturePut {
        FeaturePut { era: self.users[user as usize].era, ..put }
    }

    fn version(&self, user: u8, back: i8, turn: u64) -> Version {
        let seq = self.users[user as usize].seq as i64 - i64::from(back);
        Version { seq: seq.max(0) as u64, turn }
    }

    async fn append(&mut self, batches: &[ModelBatch]) {
        let now_ms = self.subject.store.now_ms().await.unwrap();
        let mut sent = Vec::new();
        let mut accepted = Vec::new();
        for (user, records) in batches {
            let model = &mut self.users[*user as usize];
            let records: Vec<_> = records.iter().map(|(kind, drawn, id)| (*kind, model.ts_ms(*drawn), *id)).collect();
            let fresh = records
                .iter()
                .filter(|(kind, ts_ms, id)| model.append(*kind, *ts_ms, &format!("{id}"), now_ms))
                .count();
            accepted.push((fresh as u32, (records.len() - fresh) as u32, model.seq, model.refreshed.map(|v| v.seq)));
            let record = |(kind, ts_ms, id): &(u8, i64, u16)| match kind {
                0 => engagement(*ts_ms, &format!("{id}"), "i"),
                1 => impression(*ts_ms, &format!("{id}"), "i"),
                _ => query(*ts_ms, &format!("{id}")),
            };
            sent.push(UserBatch { user: self.name(*user as usize), records: records.iter().map(record).collect() });
        }
        let outcomes = self.subject.store.append(std::slice::from_ref(&self.space), &sent).await.unwrap();
        let shape = |o: &AppendOutcome| (o.accepted, o.duplicates, o.state.seq, o.refreshed_seq);
        assert_eq!(outcomes.iter().map(shape).collect::<Vec<_>>(), accepted);
    }

    async fn compare_put(&self, user: u8, sent: FeaturePut, expected: bool) {
        let model = &self.users[user as usize];
        if let Some(era) = model.era.checked_sub(1) {
            let late = put(self.subject, &self.space, FeaturePut { era, ..sent.clone() }).await;
            assert_eq!(late, PutOutcome::Refused(PutRefusal::Era));
        }
        let outcome = put(self.subject, &self.space, sent).await;
        let current_seq = model.seq;
        assert_eq!(outcome == PutOutcome::Written { current_seq }, expected, "{outcome:?}");
    }

    async fn claim(&mut self, limit: usize, now_ms: i64) {
        let mut due: Vec<(u8, i64, usize)> = Vec::new();
        for (user, model) in self.users.iter().enumerate() {
            due.extend(model.waiting.filter(|(_, due_ms)| *due_ms <= now_ms).map(|(class, ms)| (class, ms, user)));
        }
        due.sort_unstable();
        due.truncate(limit);
        let claims = self.subject.store.claim(Queue::Due, limit, lease_time()).await.unwrap();
        let shape: Vec<_> = claims.iter().map(|claim| (claim.class, claim.due_ms, claim.user.clone())).collect();
        let expected: Vec<_> = due.iter().map(|(class, ms, user)| (*class, *ms, self.name(*user))).collect();
        assert_eq!(shape, expected);
        for ((class, due_ms, user), claim) in due.into_iter().zip(claims) {
            let model = &mut self.users[user];
            model.waiting = None;
            let (place, token) = ((class, due_ms), claim.token);
            model.leased = Some(Lease { place, again: None, token, ends_ms: now_ms + LEASE_MS });
            self.claims.push((user, claim));
        }
    }

    async fn compare(&self) {
        let names: Vec<String> = (0..self.users.len()).map(|user| self.name(user)).collect();
        let histories = self.subject.store.histories(&names).await.unwrap();
        let stored = self.subject.store.features(&self.space, &names).await.unwrap();
        for ((model, history), features) in self.users.iter().zip(histories).zip(stored) {
            let history = history.unwrap_or_default();
            assert_eq!((history.state.seq, history.state.weight), (model.seq, model.weight));
            assert_eq!((history.state.era, history.state.erased_seq), (model.era, model.erased_seq));
            let ids = |list: &[Behaviour]| list.iter().map(|b| (b.ts_ms, b.event_id.clone())).collect::<Vec<_>>();
            assert_eq!([ids(&history.engagements), ids(&history.impressions)], model.lists[..2]);
            let texts = model.lists[2].iter().map(|(ts_ms, id)| (*ts_ms, format!("query {id}")));
            assert_eq!(history.queries, texts.collect::<Vec<_>>());
            let features = features.unwrap_or_default();
            assert_eq!((features.refreshed_seq, features.prompt_hash), (model.refreshed.map(|v| v.seq), model.hash));
            let groups = features.groups.iter().map(|blob| (blob.group, blob.tier, blob.version, blob.expires_at_ms));
            let expected = model.groups.iter().map(|(group, m)| (*group, m.tier, m.version, m.expires_at_ms));
            assert!(groups.eq(expected), "{features:?}");
        }
    }
}

fn lease_time() -> Duration {
    Duration::from_millis(LEASE_MS as u64)
}
