//! Where a reader stands in a feed, and what it gets there.
//!
//! In: what the shards of a feed answered. Out: a page and the place to read on from. Callers: the stores make them;
//! `retrieve::VectorTail` and `catalogue` keep a cursor and hand it back.
//!
//! Ids rise within a shard, but a store that comes back without its tail gives the last of them out again, for other
//! entries. So each place remembers the *lineage* it was read in: a number that changes whenever the shard may have lost
//! writes. In another lineage the shard is read from its start; it keeps only the newest entry of each member, so that
//! is everything that counts.

/// A reader's place in every shard of a feed; the default stands before the first entry. Kept in memory only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedCursor {
    places: Vec<ShardCursor>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ShardCursor {
    lineage: u64,
    last: u64,
}

/// Some entries of a feed, oldest first within a shard, and where to read on.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedPage<T> {
    /// No user's or item's entry stands twice in one page.
    pub entries: Vec<T>,
    /// Behind these entries.
    pub cursor: FeedCursor,
    /// Nothing more was there when it was read.
    pub is_last: bool,
}

/// What one shard answered.
pub(super) struct ShardPage<T> {
    /// Asked *before* the entries were read: what changes in between is found out at the next reading.
    pub lineage: u64,
    /// Id of the last entry that was there, readable or not; with none, that after which it was read.
    pub last: u64,
    /// Whether nothing more was there.
    pub is_last: bool,
    /// Those that could be read, oldest first.
    pub entries: Vec<T>,
}

impl FeedCursor {
    /// The id after which to read each shard, given their lineages now: 0 where it is another than when it was last read.
    pub(super) fn after(&self, lineages: &[u64]) -> Vec<u64> {
        let last = |(shard, lineage): (usize, &u64)| {
            self.places.get(shard).filter(|place| place.lineage == *lineage).map_or(0, |place| place.last)
        };
        lineages.iter().enumerate().map(last).collect()
    }
}

impl<T> FeedPage<T> {
    /// One page of the answers of all shards.
    pub(super) fn of_shards(shards: Vec<ShardPage<T>>) -> FeedPage<T> {
        let is_last = shards.iter().all(|shard| shard.is_last);
        let place = |shard: &ShardPage<T>| ShardCursor { lineage: shard.lineage, last: shard.last };
        let cursor = FeedCursor { places: shards.iter().map(place).collect() };
        FeedPage { entries: shards.into_iter().flat_map(|shard| shard.entries).collect(), cursor, is_last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(shards: [(u64, u64, &[u64]); 2]) -> FeedPage<u64> {
        let shard = |(lineage, after, ids): (u64, u64, &[u64])| {
            let entries = ids.iter().map(|id| *id * 10).collect();
            ShardPage { lineage, last: ids.last().copied().unwrap_or(after), is_last: ids.len() < 2, entries }
        };
        FeedPage::of_shards(shards.into_iter().map(shard).collect())
    }

    #[test]
    fn each_shard_is_read_on_from_its_own_place() {
        assert_eq!(FeedCursor::default().after(&[7, 8]), [0, 0]);
        let first = page([(7, 0, &[3, 5]), (8, 0, &[4])]);
        assert_eq!((first.entries, first.is_last), (vec![30, 50, 40], false));
        assert_eq!(first.cursor.after(&[7, 8]), [5, 4]);
        let second = page([(7, 5, &[]), (8, 4, &[9])]);
        assert!(second.is_last);
        assert_eq!(second.cursor.after(&[7, 8]), [5, 9]);
    }

    #[test]
    fn a_shard_of_another_lineage_is_read_from_its_start() {
        let cursor = page([(7, 0, &[3, 5]), (8, 0, &[4])]).cursor;
        assert_eq!(cursor.after(&[70, 8]), [0, 4]);
        assert_eq!(cursor.after(&[7, 80]), [5, 0]);
        assert_eq!(cursor.after(&[7, 8, 9]), [5, 4, 0], "a shard never read");
    }
}
