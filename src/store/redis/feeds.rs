//! Fresh vectors and the catalogue's changes.
//!
//! A shard of a feed is a sorted set of members by their latest id, a hash of their latest values, and the last id, all in
//! one slot, so that ids become visible in order. Vectors have as many shards as the due queue, by user, so that neither
//! their bytes nor their readers crowd one node; the catalogue's changes are few and have one.
//!
//! As in the embedded store a feed keeps only the newest entry of each user or item (DESIGN 5.2 has a stream that is trimmed,
//! and a rescan of `emb` for whoever comes too late). So whoever reads from the start gets everything that counts, in one
//! pass over small keys; no cursor is ever gone; nothing needs trimming, no generation needs to remember ids, and a late
//! replica needs no other source. The price is a second copy of the vector.

use super::RedisStore;
use super::aside::{Bad, Source};
use super::call::Call;
use super::function;
use super::keys::shard_of;
use super::pace::{FUNCTION, MEMBER, MEMBERS};
use super::values::{corrupt, number, read};
use crate::event::Item;
use crate::store::codec::{self, CodecResult};
use crate::store::cursor::ShardPage;
use crate::store::rehearsal;
use crate::store::{FeedCursor, FeedPage, Feeds, FreshVector, RecordKind, StoreResult};
use async_trait::async_trait;
use std::collections::HashMap;

#[async_trait]
impl Feeds for RedisStore {
    async fn append_vector(&self, space: &str, vector: &FreshVector) -> StoreResult<()> {
        let stamp = format!("{} {} {}", vector.era, vector.version.seq, vector.version.turn);
        let call =
            Call::function(function!("feed_vector"), &self.keys.vectors(shard_of(&vector.user, self.shards), space))
                .arg("")
                .arg(&vector.user)
                .arg(stamp)
                .arg(codec::encode_vector(vector));
        self.link.one("append vector", call).await?;
        Ok(())
    }

    async fn vectors_after(
        &self,
        space: &str,
        cursor: &FeedCursor,
        limit: usize,
    ) -> StoreResult<FeedPage<FreshVector>> {
        let shards: Vec<[String; 3]> = (0..self.shards).map(|shard| self.keys.vectors(shard, space)).collect();
        let decode = |value: &[u8]| {
            // `era seq turn ` stands before the record, for the function to compare.
            let record = value.splitn(4, |byte| *byte == b' ').nth(3).unwrap_or_default();
            codec::decode_vector(record)
        };
        self.page(("read vectors", RecordKind::Vector), &shards, cursor, limit, decode).await
    }

    async fn put_items(&self, items: &[Item]) -> StoreResult<()> {
        if items.is_empty() {
            return Ok(());
        }
        let keys = self.keys.items();
        // Of several versions in one call the last counts.
        let latest: HashMap<&str, usize> =
            items.iter().enumerate().map(|(index, item)| (item.id.as_str(), index)).collect();
        let is_latest = |(index, item): &(usize, &Item)| latest.get(item.id.as_str()) == Some(index);
        let items: Vec<&Item> = items.iter().enumerate().filter(is_latest).map(|(_, item)| item).collect();
        let mut calls = Vec::new();
        for some in items.chunks(MEMBERS) {
            let mut call = Call::function(function!("feed_items"), &keys).arg("");
            for item in some {
                let value = rehearsal::json(item).map_err(|error| corrupt(&keys[1], error.to_string()))?;
                call = call.arg(&item.id).arg(value);
            }
            calls.push(call.costing(FUNCTION + MEMBER * some.len() as u32));
        }
        self.link.write("put items", calls).await?;
        Ok(())
    }

    async fn items_after(&self, cursor: &FeedCursor, limit: usize) -> StoreResult<FeedPage<Item>> {
        let decode = |value: &[u8]| Item::of_stored(value).map_err(|error| error.to_string());
        self.page(("read items", RecordKind::Item), &[self.keys.items()], cursor, limit, decode).await
    }
}

impl RedisStore {
    /// All shards of a feed at once, an equal part of the limit each. Entries that cannot be read are put aside.
    async fn page<T>(
        &self,
        (operation, kind): (&'static str, RecordKind),
        shards: &[[String; 3]],
        cursor: &FeedCursor,
        limit: usize,
        decode: impl Fn(&[u8]) -> CodecResult<T>,
    ) -> StoreResult<FeedPage<T>> {
        let lineages = self.link.lineages(operation).await?;
        let lineages: Vec<u64> = shards.iter().map(|keys| lineages.of(&keys[0])).collect();
        let limit = limit.div_ceil(shards.len().max(1)).clamp(1, MEMBERS);
        let call = |(keys, after): (&[String; 3], u64)| {
            Call::function(function!("feed_page"), keys)
                .arg("")
                .arg(after)
                .arg(limit)
                .costing(FUNCTION + MEMBER * limit as u32)
        };
        let calls = shards.iter().zip(cursor.after(&lineages)).map(call).collect();
        let answers = self.link.run(operation, calls).await?;
        let mut pages = Vec::with_capacity(shards.len());
        for ((keys, lineage), answer) in shards.iter().zip(lineages).zip(answers) {
            let (after, flat): (u64, Vec<Vec<u8>>) = read(&keys[0], answer)?;
            let is_last = flat.len() < 3 * limit;
            let (mut page, mut bad) = (ShardPage { lineage, last: after, is_last, entries: Vec::new() }, Vec::new());
            for entry in flat.chunks_exact(3) {
                let [member, id, value] = entry else { continue };
                let decoded = number(&keys[0], Some(id)).map_err(|error| error.to_string());
                let decoded = decoded.and_then(|id: u64| {
                    page.last = page.last.max(id);
                    decode(value)
                });
                match decoded {
                    Ok(entry) => page.entries.push(entry),
                    Err(message) => bad.push(Bad { member: member.clone(), value: value.clone(), message }),
                }
            }
            self.set_aside(kind, Source::Feed(keys), bad).await;
            pages.push(page);
        }
        Ok(FeedPage::of_shards(pages))
    }
}
