//! Keeps an index as fresh as the store's vector feed: replays it at start, then follows it.

use super::UserIndex;
use crate::log_id::LogId;
use crate::store::{FeatureStore, FeedCursor, FreshVector, StoreError};
use half::f16;
use std::sync::Arc;

/// Entries read from the feed in one call.
const PAGE: usize = 1000;

/// f32 → fp16 little-endian, as stored and streamed.
pub fn encode_f16(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
}

/// fp16 little-endian → f32.
pub fn decode_f16(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect()
}

/// A cursor into one space's vector feed; a clone goes on from where the original stood.
#[derive(Clone)]
pub struct VectorTail {
    store: Arc<dyn FeatureStore>,
    index: Arc<dyn UserIndex>,
    space: String,
    cursor: FeedCursor,
}

impl VectorTail {
    /// A tail that starts before the first entry.
    pub fn new(store: Arc<dyn FeatureStore>, index: Arc<dyn UserIndex>, space: String) -> VectorTail {
        VectorTail { store, index, space, cursor: FeedCursor::default() }
    }

    /// Whether this is the index it fills.
    pub fn follows(&self, index: &Arc<dyn UserIndex>) -> bool {
        Arc::ptr_eq(&self.index, index)
    }

    /// Applies everything the feed holds beyond the cursor; returns how many entries that were.
    pub async fn catch_up(&mut self) -> Result<usize, StoreError> {
        let mut applied = 0;
        loop {
            let page = self.store.vectors_after(&self.space, &self.cursor, PAGE).await?;
            self.cursor = page.cursor;
            applied += page.entries.len();
            self.apply(page.entries).await?;
            if page.is_last {
                return Ok(applied);
            }
        }
    }

    /// Off the async threads: a change of the index waits for the searches under way.
    async fn apply(&self, entries: Vec<FreshVector>) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let index = self.index.clone();
        let applied = tokio::task::spawn_blocking(move || {
            for fresh in &entries {
                // One vector that does not fit (written by another encoder) must not stop the feed.
                if let Err(error) = index.apply(fresh) {
                    tracing::error!(user = %LogId(&fresh.user), %error, "vector of the feed not applied");
                }
            }
        });
        let message = |error: tokio::task::JoinError| error.to_string();
        applied.await.map_err(|error| StoreError::Engine { operation: "apply_vectors", message: message(error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp16_round_trip_is_close() {
        let vector = [0.5, -0.125, 0.333];
        let back = decode_f16(&encode_f16(&vector));
        assert!(vector.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-3));
    }
}
