//! Erasing a user, step by step (DESIGN 5.2, Erase): what the job of [`crate::erase`] is made of.
//!
//! In: users to erase, spaces. Out: counters and lists. Each call is one fjall batch. The order of the steps, and why a
//! crash between two of them loses nothing, is the job's business.

use super::aside::Bad;
use super::engine::{Engine, corrupt, failed};
use super::keys::{self, Kind};
use super::notes::Notes;
use super::{EmbeddedStore, Inner};
use crate::store::codec;
use crate::store::{
    CLOCK_STEP_MS, CrossBlank, Erasure, Erasures, IdleErasure, IdlePlan, REMEMBERED_CAP, RecordKind, StoreResult,
    Unreadable, UserState,
};
use async_trait::async_trait;
use fjall::{OwnedWriteBatch, Readable, Snapshot};
use std::collections::BTreeMap;

/// What is known of the erasures without a look into the store.
#[derive(Debug, Default)]
pub struct Noted {
    /// The highest id; the next one is above it.
    last: u64,
    /// Users of the unfinished ones, by id.
    open: BTreeMap<u64, String>,
    /// No finished one has a lower id.
    done_from: u64,
}

impl Noted {
    /// As the process before left them.
    pub fn load(engine: &Engine, unreadable: &Unreadable, now_ms: i64) -> StoreResult<Noted> {
        let erasures = read_erasures(engine, unreadable, now_ms)?;
        let planned = read_plans(engine, unreadable, now_ms)?.into_iter().map(|idle| idle.id);
        let last = erasures.iter().map(|erasure| erasure.id).chain(planned).max().unwrap_or(0);
        let is_open = |erasure: &Erasure| erasure.finished_era.is_none();
        let open = erasures.into_iter().filter(is_open).map(|erasure| (erasure.id, erasure.user)).collect();
        Ok(Noted { last, open, done_from: 0 })
    }
}

impl Noted {
    fn next_id(&self, now_ms: i64) -> u64 {
        (self.last + 1).max(now_ms.unsigned_abs())
    }

    /// It was noted.
    fn opened(&mut self, erasure: &Erasure) {
        self.last = self.last.max(erasure.id);
        self.open.retain(|_, earlier| *earlier != erasure.user);
        self.open.insert(erasure.id, erasure.user.clone());
    }
}

/// Notes that cannot be read are put aside.
fn read_erasures(engine: &Engine, unreadable: &Unreadable, now_ms: i64) -> StoreResult<Vec<Erasure>> {
    let (mut erasures, mut bad) = (Vec::new(), Vec::new());
    for entry in engine.erased.iter() {
        let (key, value) = entry.into_inner().map_err(|error| failed("read erasures", &error))?;
        let (member, message) = match keys::parse_user(&key).map(|user| (user, codec::decode_erasure(user, &value))) {
            Some((_, Ok(erasure))) => {
                erasures.push(erasure);
                continue;
            }
            Some((user, Err(message))) => (user.as_bytes().to_vec(), message),
            None => (key.to_vec(), "not a user's key".into()),
        };
        bad.push(Bad { key, value, member, message });
    }
    engine.set_aside(unreadable, RecordKind::Erasure, &engine.erased, bad, now_ms)?;
    erasures.sort_unstable_by_key(|erasure| (erasure.finished_era.is_some(), erasure.id));
    Ok(erasures)
}

/// Plans that cannot be read are put aside.
fn read_plans(engine: &Engine, unreadable: &Unreadable, now_ms: i64) -> StoreResult<Vec<IdleErasure>> {
    let (mut planned, mut bad) = (Vec::new(), Vec::new());
    for entry in engine.meta.prefix(keys::IDLE_PREFIX) {
        let (key, value) = entry.into_inner().map_err(|error| failed("read idle erasures", &error))?;
        match keys::parse_idle(&key).map(|user| (user, codec::decode_plan(&value))) {
            Some((user, Ok((id, plan)))) => planned.push(IdleErasure { user: user.to_string(), id, plan }),
            Some((user, Err(message))) => bad.push(Bad { member: user.as_bytes().to_vec(), message, key, value }),
            None => bad.push(Bad { member: key.to_vec(), message: "not a user's key".into(), key, value }),
        }
    }
    engine.set_aside(unreadable, RecordKind::Erasure, &engine.meta, bad, now_ms)?;
    planned.sort_unstable_by_key(|idle| idle.id);
    Ok(planned)
}

impl EmbeddedStore {
    /// Erases a user, where a `seq` is given as idle and only if it is still that one. Returns the counters, and whether it took place.
    fn erase_at(&self, user: &str, id: u64, seq: Option<u64>) -> StoreResult<(UserState, bool)> {
        self.write(|inner| {
            let _user = inner.user_locks.lock(user);
            let snapshot = inner.engine.database.snapshot();
            let known = inner.unreadable.skip(RecordKind::State, inner.engine.user_record(&snapshot, user))?;
            let is_new = known == Some(None);
            // Above every era that was counted up.
            let first_era = if known.is_none() { inner.now_ms().unsigned_abs() } else { 1 };
            let mut record = known.flatten().unwrap_or_default();
            if id <= record.erasure_id {
                return Ok((record.state, true));
            }
            if seq.is_some_and(|seq| seq != record.state.seq || !record.state.has_events()) {
                return Ok((record.state, false));
            }
            let (now_ms, state) = (inner.now_ms(), record.state);
            let mut notes = Notes::read(&inner.engine, &snapshot, user)?;
            (notes.held, notes.quiet) = (None, None);
            notes.remembered.retain(|(ts_ms, _)| *ts_ms > now_ms);
            let (ahead, newest_ms) = inner.kept_after(&snapshot, user, now_ms)?;
            notes.remembered.extend(ahead);
            notes.remembered.sort_unstable_by(|one, other| other.cmp(one));
            notes.remembered.dedup();
            notes.remembered.truncate(REMEMBERED_CAP);
            // A clock may go back a little. What lies further ahead is an older program's, which took the newest event's time. Nobody
            // asked to erase an idle user's events that are on their way.
            let erased_before_ms = match state.erased_before_ms {
                before_ms if before_ms > now_ms.saturating_add(CLOCK_STEP_MS) => now_ms,
                before_ms => before_ms.max(if seq.is_some() { newest_ms } else { now_ms }),
            };
            record.state = UserState {
                seq: state.seq,
                era: state.era + first_era,
                erased_before_ms,
                erased_seq: state.seq,
                ..UserState::default()
            };
            record.refreshed.clear();
            record.erasure_id = id;
            let mut batch = inner.engine.batch();
            inner.remove_kept(&mut batch, &snapshot, user)?;
            notes.write(&inner.engine, &mut batch, user)?;
            inner.engine.write_user_record(&mut batch, user, &record);
            inner.engine.commit("erase", batch)?;
            inner.engine.clear_aside(user)?;
            inner.count_new_users(usize::from(is_new));
            Ok((record.state, true))
        })
    }
}

#[async_trait]
impl Erasures for EmbeddedStore {
    async fn note_space(&self, space: &str) -> StoreResult<()> {
        self.write(|inner| {
            let key = keys::of_space(space);
            if inner.engine.meta.contains_key(&key).map_err(|error| failed("note space", &error))? {
                return Ok(());
            }
            let mut batch = inner.engine.batch();
            batch.insert(&inner.engine.meta, key, []);
            inner.engine.commit("note space", batch)
        })
    }

    async fn spaces(&self) -> StoreResult<Vec<String>> {
        let engine = &self.inner.engine;
        let (mut spaces, mut bad) = (Vec::new(), Vec::new());
        for entry in engine.meta.prefix(keys::SPACE_PREFIX) {
            let (key, value) = entry.into_inner().map_err(|error| failed("read spaces", &error))?;
            match keys::parse_space(&key) {
                Some(space) => spaces.push(space.to_string()),
                None => bad.push(Bad { member: key.to_vec(), message: "not a space".into(), key, value }),
            }
        }
        self.write(|inner| engine.set_aside(&inner.unreadable, RecordKind::Space, &engine.meta, bad, inner.now_ms()))?;
        Ok(spaces)
    }

    async fn note_erasure(&self, user: &str) -> StoreResult<Erasure> {
        self.write(|inner| {
            let mut noted = inner.erasures.lock();
            let id = noted.next_id(inner.now_ms());
            let erasure = Erasure { user: user.to_string(), id, finished_era: None };
            inner.write_erasure("note erasure", &erasure)?;
            noted.opened(&erasure);
            Ok(erasure)
        })
    }

    async fn erasures(&self) -> StoreResult<Vec<Erasure>> {
        self.write(|inner| {
            // Held, so that no note is rewritten between the look and its being put aside.
            let _notes = inner.erasures.lock();
            read_erasures(&inner.engine, &inner.unreadable, inner.now_ms())
        })
    }

    async fn unfinished_erasures(&self) -> StoreResult<Vec<Erasure>> {
        let noted = self.inner.erasures.lock();
        let erasure = |(id, user): (&u64, &String)| Erasure { user: user.clone(), id: *id, finished_era: None };
        Ok(noted.open.iter().map(erasure).collect())
    }

    /// Nobody else writes into the folder while it is open.
    async fn file_erasures(&self, _place: &str) -> StoreResult<String> {
        Ok(String::new())
    }

    async fn erase_user(&self, erasure: &Erasure) -> StoreResult<UserState> {
        Ok(self.erase_at(&erasure.user, erasure.id, None)?.0)
    }

    async fn quiet_time(&self, at_most_ms: i64) -> StoreResult<i64> {
        self.write(|inner| {
            let _notes = inner.erasures.lock();
            let (engine, now_ms) = (&inner.engine, inner.now_ms());
            let stored = engine.meta.get(keys::QUIET_TIME).map_err(|error| failed("quiet time", &error))?;
            // What cannot be read begins anew; so do the users' notes, which it does not reach.
            let stored = stored.and_then(|bytes| serde_json::from_slice::<(i64, i64)>(&bytes).ok());
            let (ms, looked_ms) = stored.unwrap_or((0, now_ms));
            let passed_ms = now_ms.saturating_sub(looked_ms).clamp(0, at_most_ms.max(0));
            let now = (ms.max(0).saturating_add(passed_ms), now_ms);
            let mut batch = engine.batch();
            let bytes =
                serde_json::to_vec(&now).map_err(|error| corrupt(keys::QUIET_TIME.as_bytes(), error.to_string()))?;
            batch.insert(&engine.meta, keys::QUIET_TIME, bytes);
            engine.commit("quiet time", batch)?;
            Ok(now.0)
        })
    }

    async fn plan_idle_erasure(&self, user: &str, plan: &IdlePlan) -> StoreResult<Option<IdleErasure>> {
        self.write(|inner| {
            let mut noted = inner.erasures.lock();
            let (engine, key) = (&inner.engine, keys::of_idle(user));
            let is_planned = engine.meta.contains_key(&key).map_err(|error| failed("plan idle erasure", &error))?;
            if is_planned || noted.open.values().any(|open| open == user) {
                return Ok(None);
            }
            let id = noted.next_id(inner.now_ms());
            let plan_bytes = codec::encode_plan(plan).map_err(|message| corrupt(&key, message))?;
            let mut batch = engine.batch();
            batch.insert(&engine.meta, key, [format!("{id} ").into_bytes(), plan_bytes].concat());
            engine.commit("plan idle erasure", batch)?;
            noted.last = id;
            Ok(Some(IdleErasure { user: user.to_string(), id, plan: plan.clone() }))
        })
    }

    async fn idle_erasures(&self) -> StoreResult<Vec<IdleErasure>> {
        self.write(|inner| {
            let _notes = inner.erasures.lock();
            read_plans(&inner.engine, &inner.unreadable, inner.now_ms())
        })
    }

    async fn erase_idle_user(&self, idle: &IdleErasure) -> StoreResult<(UserState, bool)> {
        self.erase_at(&idle.user, idle.id, Some(idle.plan.seq))
    }

    async fn settle_idle_erasure(&self, idle: &IdleErasure, took_place: bool) -> StoreResult<()> {
        self.write(|inner| {
            let mut notes = inner.erasures.lock();
            let (engine, snapshot) = (&inner.engine, inner.engine.database.snapshot());
            let stands = inner.noted_erasure(&snapshot, &idle.user)?;
            let key = keys::of_idle(&idle.user);
            let planned = engine.get(&snapshot, &engine.meta, &key)?.and_then(|bytes| codec::decode_plan(&bytes).ok());
            let mut batch = engine.batch();
            let erasure = idle.as_erasure();
            let is_noted = took_place && stands.is_none_or(|stands| stands.id < idle.id);
            if is_noted {
                batch.insert(&engine.erased, keys::of_state(&idle.user), codec::encode_erasure(&erasure));
            }
            if planned.is_some_and(|(id, _)| id == idle.id) {
                batch.remove(&engine.meta, key);
            }
            engine.commit("settle idle erasure", batch)?;
            if is_noted {
                notes.opened(&erasure);
            }
            Ok(())
        })
    }

    async fn blank_cross(&self, space: &str, user: &str, neighbour: &str, era: u64) -> StoreResult<CrossBlank> {
        self.write(|inner| {
            let _user = inner.user_locks.lock(user);
            let snapshot = inner.engine.database.snapshot();
            let key = keys::of_user_in_space(user, Kind::Features, space);
            let stored = inner.engine.read(&snapshot, &inner.engine.users, &key, codec::decode_features);
            let Some(stored) = inner.unreadable.skip(RecordKind::Features, stored)? else {
                let mut batch = inner.engine.batch();
                batch.remove(&inner.engine.users, key);
                inner.engine.commit("blank cross", batch)?;
                return Ok(CrossBlank::Blanked);
            };
            let Some(mut record) = stored else { return Ok(CrossBlank::Other) };
            let found = crate::store::blank::blank(&mut record.features, neighbour, era);
            if found == CrossBlank::Blanked {
                let mut batch = inner.engine.batch();
                batch.insert(&inner.engine.users, key, codec::encode_features(&record));
                inner.engine.commit("blank cross", batch)?;
            }
            Ok(found)
        })
    }

    async fn finish_erasure(&self, erasure: &Erasure, era: u64) -> StoreResult<()> {
        self.write(|inner| {
            // The lock of the ids keeps a later note from coming between the look and the write.
            let mut notes = inner.erasures.lock();
            let snapshot = inner.engine.database.snapshot();
            let noted = inner.noted_erasure(&snapshot, &erasure.user)?;
            if noted.is_none_or(|noted| noted.id != erasure.id) {
                return Ok(());
            }
            inner.write_erasure("finish erasure", &Erasure { finished_era: Some(era), ..erasure.clone() })?;
            notes.open.remove(&erasure.id);
            notes.done_from = notes.done_from.min(erasure.id);
            Ok(())
        })
    }

    async fn expire_erasures(&self, before_ms: i64) -> StoreResult<usize> {
        let before = u64::try_from(before_ms).unwrap_or(0);
        if before <= self.inner.erasures.lock().done_from {
            return Ok(0);
        }
        self.on_own_thread("expire erasures", move |inner| {
            let mut noted = inner.erasures.lock();
            inner.engine.expire_aside(before_ms)?;
            let mut expired = read_erasures(&inner.engine, &inner.unreadable, inner.now_ms())?;
            expired.retain(|erasure| erasure.finished_era.is_some());
            let kept = expired.iter().map(|erasure| erasure.id).filter(|id| *id >= before);
            let done_from = kept.min().unwrap_or(u64::MAX);
            expired.retain(|erasure| erasure.id < before);
            if !expired.is_empty() {
                let mut batch = inner.engine.batch();
                for erasure in &expired {
                    batch.remove(&inner.engine.erased, keys::of_state(&erasure.user));
                }
                inner.engine.commit("expire erasures", batch)?;
            }
            noted.done_from = done_from;
            Ok(expired.len())
        })
        .await
    }
}

impl Inner {
    /// What is noted of a user; one that cannot be read is none.
    fn noted_erasure(&self, snapshot: &Snapshot, user: &str) -> StoreResult<Option<Erasure>> {
        let decode = |bytes: &[u8]| codec::decode_erasure(user, bytes);
        let noted = self.engine.read(snapshot, &self.engine.erased, &keys::of_state(user), decode);
        Ok(self.unreadable.skip(RecordKind::Erasure, noted)?.flatten())
    }

    fn write_erasure(&self, operation: &'static str, erasure: &Erasure) -> StoreResult<()> {
        let mut batch = self.engine.batch();
        batch.insert(&self.engine.erased, keys::of_state(&erasure.user), codec::encode_erasure(erasure));
        self.engine.commit(operation, batch)
    }

    /// Everything under the user's name but who shows them, which is needed until the job has been there, and the notes, which the
    /// caller writes anew.
    fn remove_kept(&self, batch: &mut OwnedWriteBatch, snapshot: &Snapshot, user: &str) -> StoreResult<()> {
        for entry in snapshot.prefix(&self.engine.users, keys::of_state(user)) {
            let key = entry.key().map_err(|error| failed("erase", &error))?;
            if !keys::outlives_erasure(user, &key) {
                batch.remove(&self.engine.users, key);
            }
        }
        Ok(())
    }
}
