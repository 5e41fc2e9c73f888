//! Erasing a user, step by step (DESIGN 5.2, Erase): what the job of [`crate::erase`] is made of.
//!
//! In: users to erase, spaces. Out: counters and lists. Each call is one fjall batch. The order of the steps, and why a
//! crash between two of them loses nothing, is the job's business.

use super::aside::Bad;
use super::engine::{Engine, failed};
use super::keys::{self, Kind};
use super::notes::Notes;
use super::{EmbeddedStore, Inner};
use crate::store::codec;
use crate::store::{
    CLOCK_STEP_MS, CrossBlank, Erasure, Erasures, REMEMBERED_CAP, RecordKind, StoreResult, Unreadable, UserState,
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
        let last = erasures.iter().map(|erasure| erasure.id).max().unwrap_or(0);
        let is_open = |erasure: &Erasure| erasure.finished_era.is_none();
        let open = erasures.into_iter().filter(is_open).map(|erasure| (erasure.id, erasure.user)).collect();
        Ok(Noted { last, open, done_from: 0 })
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

impl EmbeddedStore {
    /// Erases a user, where a `seq` is given only if it is still that one. Returns the counters, and whether it was.
    fn erase_at(&self, erasure: &Erasure, seq: Option<u64>) -> StoreResult<(UserState, bool)> {
        self.write(|inner| {
            let user = erasure.user.as_str();
            let _user = inner.user_locks.lock(user);
            let snapshot = inner.engine.database.snapshot();
            let known = inner.unreadable.skip(RecordKind::State, inner.engine.user_record(&snapshot, user))?;
            let is_new = known == Some(None);
            // Above every era that was counted up.
            let first_era = if known.is_none() { inner.now_ms().unsigned_abs() } else { 1 };
            let mut record = known.flatten().unwrap_or_default();
            if erasure.id <= record.erasure_id {
                return Ok((record.state, true));
            }
            if seq.is_some_and(|seq| seq != record.state.seq) {
                return Ok((record.state, false));
            }
            let (now_ms, state) = (inner.now_ms(), record.state);
            let mut notes = Notes::read(&inner.engine, &snapshot, user)?;
            (notes.held, notes.quiet_since) = (None, None);
            notes.remembered.retain(|(ts_ms, _)| *ts_ms > now_ms);
            // What cannot be read is not remembered.
            let ahead = inner.unreadable.skip(RecordKind::History, inner.kept_after(&snapshot, user, now_ms))?;
            notes.remembered.extend(ahead.unwrap_or_default());
            notes.remembered.sort_unstable_by(|one, other| other.cmp(one));
            notes.remembered.dedup();
            notes.remembered.truncate(REMEMBERED_CAP);
            // A clock may go back a little. What lies further ahead is an older program's, which took the newest event's time.
            let is_clock = (now_ms..=now_ms.saturating_add(CLOCK_STEP_MS)).contains(&state.erased_before_ms);
            record.state = UserState {
                seq: state.seq,
                era: state.era + first_era,
                erased_before_ms: if is_clock { state.erased_before_ms } else { now_ms },
                erased_seq: state.seq,
                ..UserState::default()
            };
            record.refreshed.clear();
            record.erasure_id = erasure.id;
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
            let id = (noted.last + 1).max(inner.now_ms().unsigned_abs());
            let erasure = Erasure { user: user.to_string(), id, finished_era: None };
            inner.write_erasure("note erasure", &erasure)?;
            noted.last = id;
            noted.open.retain(|_, earlier| earlier != user);
            noted.open.insert(id, user.to_string());
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
        Ok(self.erase_at(erasure, None)?.0)
    }

    async fn erase_quiet_user(&self, erasure: &Erasure, seq: u64) -> StoreResult<(UserState, bool)> {
        self.erase_at(erasure, Some(seq))
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
            let decode = |bytes: &[u8]| codec::decode_erasure(&erasure.user, bytes);
            let noted = inner.engine.read(&snapshot, &inner.engine.erased, &keys::of_state(&erasure.user), decode);
            let noted = inner.unreadable.skip(RecordKind::Erasure, noted)?.flatten();
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
