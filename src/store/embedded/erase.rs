//! Erasing a user, step by step (DESIGN 5.2, Erase): what the job of [`crate::erase`] is made of.
//!
//! In: users to erase, spaces. Out: counters and lists. Each call is one fjall batch. The order of the steps, and why a
//! crash between two of them loses nothing, is the job's business.

use super::Inner;
use super::engine::{Engine, corrupt, failed};
use super::keys::{self, Kind};
use crate::store::codec;
use crate::store::{CrossBlank, Erasure, StoreResult, UserState};
use fjall::{OwnedWriteBatch, Readable, Snapshot};

/// The highest id of an erasure in the store; the next one is above it.
pub fn last_erasure(engine: &Engine) -> StoreResult<u64> {
    Ok(read_erasures(engine)?.iter().map(|erasure| erasure.id).max().unwrap_or(0))
}

fn read_erasures(engine: &Engine) -> StoreResult<Vec<Erasure>> {
    let mut erasures = Vec::new();
    for entry in engine.erased.iter() {
        let (key, value) = entry.into_inner().map_err(|error| failed("read erasures", &error))?;
        let user = keys::parse_user(&key).ok_or_else(|| corrupt(&key, "not a user's key".into()))?;
        erasures.push(codec::decode_erasure(user, &value).map_err(|message| corrupt(&key, message))?);
    }
    erasures.sort_unstable_by_key(|erasure| (erasure.finished_era.is_some(), erasure.id));
    Ok(erasures)
}

impl Inner {
    /// See [`crate::store::FeatureStore::note_space`].
    pub(super) fn note_space(&self, space: &str) -> StoreResult<()> {
        let key = keys::of_space(space);
        if self.engine.meta.contains_key(&key).map_err(|error| failed("note space", &error))? {
            return Ok(());
        }
        let mut batch = self.engine.batch();
        batch.insert(&self.engine.meta, key, []);
        self.engine.commit("note space", batch)
    }

    /// See [`crate::store::FeatureStore::spaces`].
    pub(super) fn spaces(&self) -> StoreResult<Vec<String>> {
        let mut spaces = Vec::new();
        for entry in self.engine.meta.prefix(keys::SPACE_PREFIX) {
            let key = entry.key().map_err(|error| failed("read spaces", &error))?;
            spaces.push(keys::parse_space(&key).ok_or_else(|| corrupt(&key, "not a space".into()))?.to_string());
        }
        Ok(spaces)
    }

    /// See [`crate::store::FeatureStore::note_erasure`].
    pub(super) fn note_erasure(&self, user: &str) -> StoreResult<Erasure> {
        let mut last = self.last_erasure.lock();
        let id = (*last + 1).max(self.now_ms().unsigned_abs());
        let erasure = Erasure { user: user.to_string(), id, finished_era: None };
        self.write_erasure("note erasure", &erasure)?;
        *last = id;
        Ok(erasure)
    }

    fn write_erasure(&self, operation: &'static str, erasure: &Erasure) -> StoreResult<()> {
        let mut batch = self.engine.batch();
        batch.insert(&self.engine.erased, keys::of_state(&erasure.user), codec::encode_erasure(erasure));
        self.engine.commit(operation, batch)
    }

    /// See [`crate::store::FeatureStore::erasures`].
    pub(super) fn erasures(&self) -> StoreResult<Vec<Erasure>> {
        read_erasures(&self.engine)
    }

    /// See [`crate::store::FeatureStore::erase_user`].
    pub(super) fn erase_user(&self, erasure: &Erasure) -> StoreResult<UserState> {
        let user = erasure.user.as_str();
        let _user = self.user_locks.lock(user);
        let snapshot = self.engine.database.snapshot();
        let known = self.engine.user_record(&snapshot, user)?;
        let is_new = known.is_none();
        let mut record = known.unwrap_or_default();
        if erasure.id <= record.erasure_id {
            return Ok(record.state);
        }
        let newest_ms = self.newest_kept(&snapshot, user)?.unwrap_or(i64::MIN);
        let state = record.state;
        record.state = UserState {
            seq: state.seq,
            era: state.era + 1,
            erased_before_ms: self.now_ms().max(newest_ms).max(state.erased_before_ms),
            erased_seq: state.seq,
            ..UserState::default()
        };
        record.refreshed.clear();
        record.erasure_id = erasure.id;
        let mut batch = self.engine.batch();
        self.remove_kept(&mut batch, &snapshot, user)?;
        self.engine.write_user_record(&mut batch, user, &record);
        self.engine.commit("erase", batch)?;
        self.count_new_users(usize::from(is_new));
        Ok(record.state)
    }

    /// Everything under the user's name but who shows them: those notes are needed until the job has been there.
    fn remove_kept(&self, batch: &mut OwnedWriteBatch, snapshot: &Snapshot, user: &str) -> StoreResult<()> {
        for entry in snapshot.prefix(&self.engine.users, keys::of_state(user)) {
            let key = entry.key().map_err(|error| failed("erase", &error))?;
            if !keys::is_about_referrers(user, &key) {
                batch.remove(&self.engine.users, key);
            }
        }
        Ok(())
    }

    /// See [`crate::store::FeatureStore::referrers`].
    pub(super) fn referrers(&self, space: &str, neighbour: &str) -> StoreResult<Vec<String>> {
        let prefix = keys::of_user_in_space(neighbour, Kind::Referrer, space);
        let snapshot = self.engine.database.snapshot();
        let mut users = Vec::new();
        for entry in snapshot.prefix(&self.engine.users, &prefix) {
            let key = entry.key().map_err(|error| failed("read referrers", &error))?;
            let user = keys::parse_user(&key[prefix.len()..]);
            users.push(user.ok_or_else(|| corrupt(&key, "not a referrer".into()))?.to_string());
        }
        Ok(users)
    }

    /// See [`crate::store::FeatureStore::blank_cross`].
    pub(super) fn blank_cross(&self, space: &str, user: &str, neighbour: &str, era: u64) -> StoreResult<CrossBlank> {
        let _user = self.user_locks.lock(user);
        let snapshot = self.engine.database.snapshot();
        let key = keys::of_user_in_space(user, Kind::Features, space);
        let stored = self.engine.read(&snapshot, &self.engine.users, &key, codec::decode_features)?;
        let Some(mut record) = stored else { return Ok(CrossBlank::Other) };
        let found = crate::store::blank::blank(&mut record.features, neighbour, era)
            .map_err(|message| corrupt(&key, message))?;
        if found == CrossBlank::Blanked {
            let mut batch = self.engine.batch();
            batch.insert(&self.engine.users, key, codec::encode_features(&record));
            self.engine.commit("blank cross", batch)?;
        }
        Ok(found)
    }

    /// See [`crate::store::FeatureStore::finish_erasure`].
    pub(super) fn finish_erasure(&self, erasure: &Erasure, era: u64) -> StoreResult<()> {
        // The lock of the ids keeps a later note from coming between the look and the write.
        let _notes = self.last_erasure.lock();
        let snapshot = self.engine.database.snapshot();
        let decode = |bytes: &[u8]| codec::decode_erasure(&erasure.user, bytes);
        let noted = self.engine.read(&snapshot, &self.engine.erased, &keys::of_state(&erasure.user), decode)?;
        if noted.is_none_or(|noted| noted.id != erasure.id) {
            return Ok(());
        }
        self.write_erasure("finish erasure", &Erasure { finished_era: Some(era), ..erasure.clone() })
    }

    /// See [`crate::store::FeatureStore::expire_erasures`].
    pub(super) fn expire_erasures(&self, before_ms: i64) -> StoreResult<usize> {
        let _notes = self.last_erasure.lock();
        let before = u64::try_from(before_ms).unwrap_or(0);
        let mut expired = read_erasures(&self.engine)?;
        expired.retain(|erasure| erasure.finished_era.is_some() && erasure.id < before);
        if expired.is_empty() {
            return Ok(0);
        }
        let mut batch = self.engine.batch();
        for erasure in &expired {
            batch.remove(&self.engine.erased, keys::of_state(&erasure.user));
        }
        self.engine.commit("expire erasures", batch)?;
        Ok(expired.len())
    }
}
