//! Small counts kept beside the records: referrers of a user, users of an item, users of the store.

use super::Inner;
use super::engine::{Engine, corrupt, failed};
use super::keys::{self, Kind};
use crate::store::{ITEM_USERS_CAP, RecordKind, StoreResult};
use fjall::{OwnedWriteBatch, Readable, Snapshot};
use parking_lot::MutexGuard;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use xxhash_rust::xxh3::xxh3_64;

/// How many users the store knows.
pub fn count_users(engine: &Engine) -> StoreResult<u64> {
    engine.states.len().map(|users| users as u64).map_err(|error| failed("open", &error))
}

impl Inner {
    /// Notes users written for the first time.
    pub(super) fn count_new_users(&self, users: usize) {
        self.users.fetch_add(users as u64, Ordering::Relaxed);
    }

    /// Whether `user` is noted, and how many are.
    pub(super) fn referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<(bool, u64)> {
        let snapshot = self.engine.database.snapshot();
        let known = snapshot
            .contains_key(&self.engine.users, keys::of_referrer(neighbour, space, user))
            .map_err(|error| failed("read referrers", &error))?;
        Ok((known, self.referrer_count(&snapshot, space, neighbour)?))
    }

    pub(super) fn referrer_count(&self, snapshot: &Snapshot, space: &str, neighbour: &str) -> StoreResult<u64> {
        let key = keys::of_user_in_space(neighbour, Kind::ReferrerCount, space);
        let decode = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).map_err(|_| "not a count".to_string());
        let count = self.engine.read(snapshot, &self.engine.users, &key, decode);
        match self.unreadable.skip(RecordKind::Referrers, count)? {
            Some(count) => Ok(count.unwrap_or(0)),
            // Counted anew; the next change writes it.
            None => {
                let noted = keys::of_user_in_space(neighbour, Kind::Referrer, space);
                Ok(snapshot.prefix(&self.engine.users, noted).count() as u64)
            }
        }
    }

    pub(super) fn write_referrer_count(&self, batch: &mut OwnedWriteBatch, space: &str, neighbour: &str, count: u64) {
        let key = keys::of_user_in_space(neighbour, Kind::ReferrerCount, space);
        if count == 0 {
            // Nothing of a user that nobody shows: an erased one leaves no trace here.
            batch.remove(&self.engine.users, key);
            return;
        }
        batch.insert(&self.engine.users, key, count.to_le_bytes());
    }

    /// Adds new (item, user) engagements to the batch. The caller commits while it holds the locks handed back.
    ///
    /// An item keeps the hashes of its first few users, so that a user who comes again is not counted again. Most items
    /// that matter are full: those are told by a read without a lock, because a full item never changes.
    pub(super) fn count_item_users<'a>(
        &self,
        batch: &mut OwnedWriteBatch,
        engaged: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> StoreResult<Vec<MutexGuard<'_, ()>>> {
        let mut news: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (item, user) in engaged {
            news.entry(item).or_default().push(xxh3_64(user.as_bytes()));
        }
        let mut open = Vec::with_capacity(news.len());
        for (item, users) in news {
            if self.item_users(item)?.len() < ITEM_USERS_CAP as usize {
                open.push((item, users));
            }
        }
        let guards = self.item_locks.lock_all(open.iter().map(|(item, _)| *item));
        for (item, users) in open {
            let mut known = self.item_users(item)?;
            let before = known.len();
            for user in users {
                if known.len() < ITEM_USERS_CAP as usize && !known.contains(&user) {
                    known.push(user);
                }
            }
            if known.len() > before {
                let value: Vec<u8> = known.iter().flat_map(|user| user.to_le_bytes()).collect();
                batch.insert(&self.engine.items, keys::of_item_users(item), value);
            }
        }
        Ok(guards)
    }

    pub(super) fn item_users(&self, item: &str) -> StoreResult<Vec<u64>> {
        let key = keys::of_item_users(item);
        let value = self.engine.items.get(&key).map_err(|error| failed("read item users", &error))?;
        let bytes = value.as_deref().unwrap_or_default();
        let (hashes, []) = bytes.as_chunks::<8>() else {
            // Nobody can say who they were: they are counted anew.
            self.unreadable.note(RecordKind::ItemUsers, &corrupt(&key, "not a list of users".into()));
            return Ok(Vec::new());
        };
        Ok(hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect())
    }
}
