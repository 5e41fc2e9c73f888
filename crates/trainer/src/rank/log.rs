//! What taiji served, by user and time, joined as of an impression.
//!
//! In: JSON lines `{"user_id", "generated_at_ms", "sparse_ids": […], "item_ids": […]}`, as features are read from the service. Out: the
//! newest features of a user that were made before an instant. Called by `stages`.

use super::Features;
use crate::data::{DataError, Dataset, read_lines};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    user_id: String,
    generated_at_ms: i64,
    #[serde(default)]
    sparse_ids: Vec<u32>,
    #[serde(default)]
    item_ids: Vec<String>,
}

/// Features of all users.
#[derive(Debug, Default)]
pub struct FeatureLog {
    /// Of a user (index into the dataset's), oldest first.
    users: HashMap<usize, Vec<Features>>,
    /// Lines of users without events.
    pub unknown_users: usize,
    /// Items of cross-user sequences that the catalogue does not have.
    pub unknown_items: usize,
}

impl FeatureLog {
    /// Reads a file (`.gz` accepted).
    pub fn read(path: &Path, dataset: &Dataset) -> Result<Self, DataError> {
        let mut log = Self::default();
        for line in read_lines::<Line>(path)? {
            let Line { user_id, generated_at_ms, sparse_ids, item_ids } = line?;
            let Ok(user) = dataset.users.binary_search_by(|row| row.user_id.cmp(&user_id)) else {
                log.unknown_users += 1;
                continue;
            };
            let cross: Vec<usize> = item_ids.iter().filter_map(|id| dataset.item_index.get(id).copied()).collect();
            log.unknown_items += item_ids.len() - cross.len();
            let intra = (!sparse_ids.is_empty()).then_some(sparse_ids);
            log.users.entry(user).or_default().push(Features { made_ms: generated_at_ms, intra, cross });
        }
        log.users.values_mut().for_each(|all| all.sort_by_key(|features| features.made_ms));
        Ok(log)
    }

    /// The newest ones of a user that were made before an instant.
    pub fn as_of(&self, user: usize, before_ms: i64) -> Option<&Features> {
        let all = self.users.get(&user)?;
        all[..all.partition_point(|features| features.made_ms < before_ms)].last()
    }

    /// Tables of codes, and codes of each.
    pub fn codes(&self) -> (usize, usize) {
        let all = || self.users.values().flatten().filter_map(|features| features.intra.as_ref());
        let tables = all().map(Vec::len).max().unwrap_or(0);
        (tables, all().flatten().max().map_or(0, |most| *most as usize + 1))
    }
}
