//! Fresh vectors, the catalogue's changes, referrers, counts.
//!
//! A feed is a sorted set of members by their latest id, a hash of their latest values, and the last id, all in one slot,
//! so that ids become visible in order. As in the embedded store a feed keeps only the latest entry of each user or
//! item: whoever reads from cursor 0 gets everything that still counts, nothing needs trimming, and no cursor is ever gone.

use super::RedisStore;
use super::function;
use super::link::Call;
use super::values::{corrupt, number, read};
use crate::event::Item;
use crate::store::codec;
use crate::store::{FreshVector, StoreResult, StoreStats};
use redis::Value;
use std::collections::HashMap;

impl RedisStore {
    /// See [`crate::store::FeatureStore::append_vector`].
    pub(super) async fn feed_vector(&self, space: &str, vector: &FreshVector) -> StoreResult<u64> {
        let stamp = format!("{} {} {}", vector.era, vector.version.seq, vector.version.turn);
        let call = Call::function(function!("feed_vector"), &self.keys.vectors(space))
            .arg("")
            .arg(&vector.user)
            .arg(stamp)
            .arg(codec::encode_vector(vector));
        read("vector feed", self.link.one("append vector", call).await?)
    }

    /// See [`crate::store::FeatureStore::vectors_after`].
    pub(super) async fn vectors_page(
        &self,
        space: &str,
        cursor: u64,
        limit: usize,
    ) -> StoreResult<Vec<(u64, FreshVector)>> {
        let keys = self.keys.vectors(space);
        let decode = |(id, value): (u64, Vec<u8>)| {
            // `era seq turn ` stands before the record, for the function to compare.
            let record = value.splitn(4, |byte| *byte == b' ').nth(3).unwrap_or_default();
            let vector = codec::decode_vector(record).map_err(|message| corrupt(&keys[1], message))?;
            Ok((id, vector))
        };
        self.page("read vectors", &keys, cursor, limit).await?.into_iter().map(decode).collect()
    }

    /// See [`crate::store::FeatureStore::put_items`].
    pub(super) async fn feed_items(&self, items: &[Item]) -> StoreResult<()> {
        if items.is_empty() {
            return Ok(());
        }
        let keys = self.keys.items();
        // Of several versions in one call the last counts.
        let latest: HashMap<&str, usize> =
            items.iter().enumerate().map(|(index, item)| (item.id.as_str(), index)).collect();
        let mut call = Call::function(function!("feed_items"), &keys).arg("");
        for (index, item) in items.iter().enumerate() {
            if latest.get(item.id.as_str()) == Some(&index) {
                let value = serde_json::to_vec(item).map_err(|error| corrupt(&keys[1], error.to_string()))?;
                call = call.arg(&item.id).arg(value);
            }
        }
        self.link.one("put items", call).await?;
        Ok(())
    }

    /// See [`crate::store::FeatureStore::items_after`].
    pub(super) async fn items_page(&self, cursor: u64, limit: usize) -> StoreResult<Vec<(u64, Item)>> {
        let keys = self.keys.items();
        let decode = |(id, value): (u64, Vec<u8>)| {
            let item = serde_json::from_slice(&value).map_err(|error| corrupt(&keys[1], error.to_string()))?;
            Ok((id, item))
        };
        self.page("read items", &keys, cursor, limit).await?.into_iter().map(decode).collect()
    }

    async fn page(
        &self,
        operation: &'static str,
        keys: &[String],
        cursor: u64,
        limit: usize,
    ) -> StoreResult<Vec<(u64, Vec<u8>)>> {
        let call = Call::function(function!("feed_page"), keys).arg("").arg(cursor).arg(limit);
        let flat: Vec<Vec<u8>> = read(&keys[0], self.link.one(operation, call).await?)?;
        flat.chunks_exact(2).map(|entry| Ok((number(&keys[0], Some(&entry[0]))?, entry[1].clone()))).collect()
    }

    /// See [`crate::store::FeatureStore::add_referrer`].
    pub(super) async fn note_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<usize> {
        let key = self.keys.referrers(neighbour, space);
        let calls = vec![Call::new("SADD", &key).arg(user), Call::new("SCARD", &key)];
        read(&key, self.link.run("add referrer", calls).await?.pop().unwrap_or_default())
    }

    /// See [`crate::store::FeatureStore::remove_referrer`].
    pub(super) async fn drop_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<()> {
        let key = self.keys.referrers(neighbour, space);
        self.link.one("remove referrer", Call::new("SREM", &key).arg(user)).await?;
        Ok(())
    }

    /// Sizes of sets.
    pub(super) async fn sizes<T: redis::FromRedisValue>(
        &self,
        operation: &'static str,
        keys: Vec<String>,
    ) -> StoreResult<Vec<T>> {
        let calls = keys.iter().map(|key| Call::new("SCARD", key)).collect();
        let answers = self.link.run(operation, calls).await?;
        keys.iter().zip(answers).map(|(key, answer): (_, Value)| read(key, answer)).collect()
    }

    /// See [`crate::store::FeatureStore::stats`]: users as counted, memory of all masters.
    pub(super) async fn totals(&self) -> StoreResult<StoreStats> {
        let key = self.keys.user_count();
        let users: Option<u64> = read(&key, self.link.one("stats", Call::new("GET", &key)).await?)?;
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        let mut bytes = 0;
        for answer in self.link.everywhere("stats", &info).await? {
            bytes += info_number(&read::<String>("info", answer)?, "used_memory:");
        }
        Ok(StoreStats { users: users.unwrap_or(0), disk_bytes: bytes })
    }
}

fn info_number(info: &str, field: &str) -> u64 {
    info.lines().find_map(|line| line.strip_prefix(field)).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}
