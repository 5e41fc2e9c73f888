//! The feeds that replicas tail: fresh vectors by space, and changes of the catalogue.
//!
//! In: vectors and items. Out: entries after a cursor. Ids rise by one within a feed, also over restarts, and become
//! visible in order: one lock is held from taking an id to the commit, or a reader could pass over a later commit. A feed
//! is one shard of one lineage: what a crash takes back was read by nobody who survived it.
//!
//! Both feeds hold the latest entry of each user or item only: whoever reads from cursor 0 gets everything that still
//! counts, and a feed is no longer than there are users or items. (So nothing needs trimming, and no cursor is ever
//! gone: the rescan of DESIGN 5.2 is this read.)

use super::engine::{corrupt, failed};
use super::keys;
use super::{EmbeddedStore, Inner};
use crate::event::Item;
use crate::store::codec::{self, CodecResult};
use crate::store::cursor::ShardPage;
use crate::store::{FeedCursor, FeedPage, FreshVector, StoreResult};
use async_trait::async_trait;
use fjall::Slice;
use std::collections::HashMap;

const ITEM_FEED: &str = "items";
/// The one lineage of every feed here.
const LINEAGE: u64 = 0;

/// The end of each feed used since the store was opened.
#[derive(Debug, Default)]
pub struct Feeds(HashMap<String, Ends>);

/// Last id of a feed, 0 = empty.
#[derive(Debug, Clone, Copy)]
struct Ends {
    last: u64,
}

#[async_trait]
impl crate::store::Feeds for EmbeddedStore {
    async fn append_vector(&self, space: &str, vector: &FreshVector) -> StoreResult<()> {
        self.write(|inner| {
            let feed = vector_feed(space);
            let mut feeds = inner.feeds.lock();
            let mut ends = inner.ends(&mut feeds, &feed)?;
            let mut batch = inner.engine.batch();
            let place_key = keys::of_vector_place(space, &vector.user);
            if let Some(old) = inner.engine.items.get(&place_key).map_err(|error| failed("append vector", &error))? {
                let old_id = keys::parse_feed_id(&old).ok_or_else(|| corrupt(&place_key, "not an id".into()))?;
                let old_key = keys::of_feed(&feed, old_id);
                if let Some(bytes) =
                    inner.engine.feeds.get(&old_key).map_err(|error| failed("append vector", &error))?
                {
                    let stored = codec::decode_vector(&bytes).map_err(|message| corrupt(&old_key, message))?;
                    // A late writer must not take the newest vector out of the feed.
                    if (stored.era, stored.version) > (vector.era, vector.version) {
                        return Ok(());
                    }
                }
                batch.remove(&inner.engine.feeds, old_key);
            }
            ends.last += 1;
            batch.insert(&inner.engine.feeds, keys::of_feed(&feed, ends.last), codec::encode_vector(vector));
            batch.insert(&inner.engine.items, place_key, ends.last.to_be_bytes());
            inner.engine.commit("append vector", batch)?;
            feeds.0.insert(feed, ends);
            Ok(())
        })
    }

    async fn vectors_after(
        &self,
        space: &str,
        cursor: &FeedCursor,
        limit: usize,
    ) -> StoreResult<FeedPage<FreshVector>> {
        self.write(|inner| inner.page(&vector_feed(space), cursor, limit, codec::decode_vector))
    }

    async fn put_items(&self, items: &[Item]) -> StoreResult<()> {
        self.write(|inner| {
            if items.is_empty() {
                return Ok(());
            }
            let mut feeds = inner.feeds.lock();
            let mut ends = inner.ends(&mut feeds, ITEM_FEED)?;
            let mut batch = inner.engine.batch();
            // Of several versions in one call the last counts.
            let latest: HashMap<&str, usize> =
                items.iter().enumerate().map(|(index, item)| (item.id.as_str(), index)).collect();
            for (index, item) in items.iter().enumerate() {
                if latest.get(item.id.as_str()) != Some(&index) {
                    continue;
                }
                ends.last += 1;
                let place_key = keys::of_item_place(&item.id);
                if let Some(old) = inner.engine.items.get(&place_key).map_err(|error| failed("put items", &error))? {
                    let old = keys::parse_feed_id(&old).ok_or_else(|| corrupt(&place_key, "not an id".into()))?;
                    batch.remove(&inner.engine.feeds, keys::of_feed(ITEM_FEED, old));
                }
                let feed_key = keys::of_feed(ITEM_FEED, ends.last);
                let value = serde_json::to_vec(item).map_err(|error| corrupt(&feed_key, error.to_string()))?;
                batch.insert(&inner.engine.feeds, feed_key, value);
                batch.insert(&inner.engine.items, place_key, ends.last.to_be_bytes());
            }
            inner.engine.commit("put items", batch)?;
            feeds.0.insert(ITEM_FEED.to_string(), ends);
            Ok(())
        })
    }

    async fn items_after(&self, cursor: &FeedCursor, limit: usize) -> StoreResult<FeedPage<Item>> {
        let decode = |bytes: &[u8]| serde_json::from_slice(bytes).map_err(|error| error.to_string());
        self.inner.page(ITEM_FEED, cursor, limit, decode)
    }
}

impl Inner {
    fn page<T>(
        &self,
        feed: &str,
        cursor: &FeedCursor,
        limit: usize,
        decode: impl Fn(&[u8]) -> CodecResult<T>,
    ) -> StoreResult<FeedPage<T>> {
        let after = cursor.after(&[LINEAGE]).into_iter().next().unwrap_or(0);
        let entries = self.entries(feed, after.saturating_add(1), limit, decode)?;
        Ok(FeedPage::of_shards(vec![ShardPage { lineage: LINEAGE, after, entries }], limit))
    }

    fn entries<T>(
        &self,
        feed: &str,
        from: u64,
        limit: usize,
        decode: impl Fn(&[u8]) -> CodecResult<T>,
    ) -> StoreResult<Vec<(u64, T)>> {
        use fjall::Readable;
        let range = keys::of_feed(feed, from)..=keys::of_feed(feed, u64::MAX);
        let snapshot = self.engine.database.snapshot();
        let decode_entry = |(key, value): (Slice, Slice)| {
            let id = keys::parse_feed_id(&key).ok_or_else(|| corrupt(&key, "not a feed key".into()))?;
            Ok((id, decode(&value).map_err(|message| corrupt(&key, message))?))
        };
        let entries = snapshot.range(&self.engine.feeds, range).take(limit);
        entries.map(|entry| decode_entry(entry.into_inner().map_err(|error| failed("read feed", &error))?)).collect()
    }

    /// The end of a feed, looked up in the store at first use.
    fn ends(&self, feeds: &mut Feeds, feed: &str) -> StoreResult<Ends> {
        if let Some(ends) = feeds.0.get(feed) {
            return Ok(*ends);
        }
        let mut range = self.engine.feeds.range(keys::of_feed(feed, 0)..=keys::of_feed(feed, u64::MAX));
        let id = |entry: Option<fjall::Guard>| -> StoreResult<Option<u64>> {
            let Some(entry) = entry else { return Ok(None) };
            let key = entry.key().map_err(|error| failed("read feed", &error))?;
            keys::parse_feed_id(&key).map(Some).ok_or_else(|| corrupt(&key, "not a feed key".into()))
        };
        let ends = Ends { last: id(range.next_back())?.unwrap_or(0) };
        feeds.0.insert(feed.to_string(), ends);
        Ok(ends)
    }
}

fn vector_feed(space: &str) -> String {
    format!("vectors.{space}")
}
