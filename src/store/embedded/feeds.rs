//! The feeds that replicas tail: fresh vectors by space, and changes of the catalogue.
//!
//! In: vectors and items. Out: entries after a cursor. Ids rise by one within a feed, also over restarts, and become
//! visible in order: one lock is held from taking an id to the commit, or a reader could pass over a later commit. A feed
//! is one shard of one lineage: what a crash takes back was read by nobody who survived it.
//!
//! Both feeds hold the latest entry of each user or item only: whoever reads from cursor 0 gets everything that still
//! counts, and a feed is no longer than there are users or items. (So nothing needs trimming, and no cursor is ever
//! gone: the rescan of DESIGN 5.2 is this read.)

use super::aside::Bad;
use super::engine::{corrupt, failed};
use super::keys;
use super::{EmbeddedStore, Inner};
use crate::event::Item;
use crate::store::codec::{self, CodecResult};
use crate::store::cursor::ShardPage;
use crate::store::rehearsal;
use crate::store::{FeedCursor, FeedPage, FreshVector, RecordKind, StoreResult};
use async_trait::async_trait;
use fjall::Readable;
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
                // A place or an entry that cannot be read gives way.
                let old_key = keys::of_feed(&feed, keys::parse_place(&old).unwrap_or(0));
                let bytes = inner.engine.feeds.get(&old_key).map_err(|error| failed("append vector", &error))?;
                let stored = bytes.and_then(|bytes| codec::decode_vector(&bytes).ok());
                // A place that is none may lead to somebody else's entry.
                let is_ours = stored.as_ref().is_none_or(|stored| stored.user == vector.user);
                // A late writer must not take the newest vector out of the feed.
                let is_newer = |stored: FreshVector| (stored.era, stored.version) > (vector.era, vector.version);
                if is_ours && stored.is_some_and(is_newer) {
                    return Ok(());
                }
                if is_ours {
                    batch.remove(&inner.engine.feeds, old_key);
                }
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
        self.write(|inner| {
            let about = |ids: &[u64]| inner.whose_vectors(space, ids);
            inner.page(RecordKind::Vector, &vector_feed(space), cursor, limit, codec::decode_vector, about)
        })
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
                    let old = keys::parse_place(&old).unwrap_or(0);
                    batch.remove(&inner.engine.feeds, keys::of_feed(ITEM_FEED, old));
                }
                let feed_key = keys::of_feed(ITEM_FEED, ends.last);
                let value = rehearsal::json(item).map_err(|error| corrupt(&feed_key, error.to_string()))?;
                batch.insert(&inner.engine.feeds, feed_key, value);
                batch.insert(&inner.engine.items, place_key, ends.last.to_be_bytes());
            }
            inner.engine.commit("put items", batch)?;
            feeds.0.insert(ITEM_FEED.to_string(), ends);
            Ok(())
        })
    }

    async fn items_after(&self, cursor: &FeedCursor, limit: usize) -> StoreResult<FeedPage<Item>> {
        let decode = |bytes: &[u8]| Item::of_stored(bytes).map_err(|error| error.to_string());
        let about = |ids: &[u64]| Ok(ids.iter().map(|id| (*id, id.to_string().into_bytes())).collect());
        self.write(|inner| inner.page(RecordKind::Item, ITEM_FEED, cursor, limit, decode, about))
    }
}

impl Inner {
    /// Entries that cannot be read are put aside; `about` tells whom or what those of these ids are about.
    fn page<T>(
        &self,
        kind: RecordKind,
        feed: &str,
        cursor: &FeedCursor,
        limit: usize,
        decode: impl Fn(&[u8]) -> CodecResult<T>,
        about: impl Fn(&[u64]) -> StoreResult<HashMap<u64, Vec<u8>>>,
    ) -> StoreResult<FeedPage<T>> {
        let after = cursor.after(&[LINEAGE]).into_iter().next().unwrap_or(0);
        let (mut page, mut bad) =
            (ShardPage { lineage: LINEAGE, last: after, is_last: true, entries: Vec::new() }, Vec::new());
        let range = keys::of_feed(feed, after.saturating_add(1))..=keys::of_feed(feed, u64::MAX);
        let snapshot = self.engine.database.snapshot();
        for (read, entry) in snapshot.range(&self.engine.feeds, range).take(limit).enumerate() {
            let (key, value) = entry.into_inner().map_err(|error| failed("read feed", &error))?;
            page.is_last = read + 1 < limit;
            let Some(id) = keys::parse_feed_id(feed, &key) else {
                bad.push((None, key, value, "not a feed key".to_string()));
                continue;
            };
            page.last = id;
            match decode(&value) {
                Ok(entry) => page.entries.push(entry),
                Err(message) => bad.push((Some(id), key, value, message)),
            }
        }
        if !bad.is_empty() {
            let ids: Vec<u64> = bad.iter().filter_map(|(id, ..)| *id).collect();
            let mut members = about(&ids)?;
            let bad = bad.into_iter().map(|(id, key, value, message)| {
                let member = id.and_then(|id| members.remove(&id)).unwrap_or_else(|| key.to_vec());
                Bad { key, value, member, message }
            });
            self.engine.set_aside(&self.unreadable, kind, &self.engine.feeds, bad.collect(), self.now_ms())?;
        }
        Ok(FeedPage::of_shards(vec![page]))
    }

    /// The users whose vectors have these ids. Slow: walks the places of all; entries that cannot be read are few.
    fn whose_vectors(&self, space: &str, ids: &[u64]) -> StoreResult<HashMap<u64, Vec<u8>>> {
        let mut users = HashMap::new();
        for entry in self.engine.items.prefix(keys::of_state(space)) {
            let (key, value) = entry.into_inner().map_err(|error| failed("read feed", &error))?;
            let place = keys::parse_place(&value).filter(|id| ids.contains(id));
            if let (Some(id), Some(user)) = (place, keys::parse_vector_place(&key)) {
                users.insert(id, user.as_bytes().to_vec());
            }
        }
        Ok(users)
    }

    /// The end of a feed, looked up in the store at first use.
    fn ends(&self, feeds: &mut Feeds, feed: &str) -> StoreResult<Ends> {
        if let Some(ends) = feeds.0.get(feed) {
            return Ok(*ends);
        }
        let range = self.engine.feeds.range(keys::of_feed(feed, 0)..=keys::of_feed(feed, u64::MAX));
        let mut last = 0;
        for entry in range.rev() {
            let key = entry.key().map_err(|error| failed("read feed", &error))?;
            // What is no key of ours has no id.
            if let Some(id) = keys::parse_feed_id(feed, &key) {
                last = id;
                break;
            }
        }
        let ends = Ends { last };
        feeds.0.insert(feed.to_string(), ends);
        Ok(ends)
    }
}

fn vector_feed(space: &str) -> String {
    format!("vectors.{space}")
}
