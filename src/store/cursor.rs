//! A reader's place in one of the store's feeds.
//!
//! In: ids of entries that were read. Out: where to read on. Callers: `retrieve::VectorTail`, `catalogue`.
//!
//! Ids rise, but a store that comes back without its tail gives the last of them out again, for other entries. A reader that
//! stands beyond them would never see those, so it asks the store who it is before each reading and begins anew when that
//! has changed. A feed keeps only the latest entry of each member, so reading it again is short and harmless.

use super::{FeatureStore, StoreResult};

/// Starts before the first entry.
#[derive(Debug, Clone, Default)]
pub struct FeedCursor {
    last: u64,
    incarnation: Option<u64>,
}

impl FeedCursor {
    /// The id after which to read on: 0 when the store may have lost what was read. Ask before each reading to the end; an
    /// error is the store's.
    pub async fn place(&mut self, store: &dyn FeatureStore) -> StoreResult<u64> {
        // Before the page is read: if the store changes in between, the next question finds out.
        let incarnation = store.incarnation().await?;
        if self.incarnation.replace(incarnation).is_some_and(|before| before != incarnation) {
            self.last = 0;
        }
        Ok(self.last)
    }

    /// Everything up to this id was read.
    pub fn advance(&mut self, last: u64) {
        self.last = last;
    }
}
