//! What taiji served, by user and time, joined as of an impression.
//!
//! In: JSON lines ([`FeatureLine`]), as features are read from the service or made as of the past by `lift`. Out: the newest features of a
//! user that were made before an instant, or those that were made for it. Called by `stages`.

use super::{FeatureShape, Features};
use crate::data::{DataError, Dataset, read_lines};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Features of a user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureLine {
    /// Whose.
    pub user_id: String,
    /// When they were made, or of what time that is which they were made from.
    pub generated_at_ms: i64,
    /// The session that they are for; without it they are for whatever follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point_ms: Option<i64>,
    /// A code a table; none: no `intra` feature.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sparse_ids: Vec<u32>,
    /// The cross-user sequence, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub item_ids: Vec<String>,
}

/// Features of all users.
#[derive(Debug, Default)]
pub struct FeatureLog {
    /// Of a user (index into the dataset's), oldest first.
    users: HashMap<usize, Vec<Features>>,
    /// For one session only: by user and its time.
    points: HashMap<(usize, i64), Features>,
    /// Lines of users without events.
    pub unknown_users: usize,
    /// Items of cross-user sequences that the catalogue does not have.
    pub unknown_items: usize,
}

impl FeatureLog {
    /// Reads a file (`.gz` accepted).
    pub fn read(path: &Path, dataset: &Dataset) -> Result<Self, DataError> {
        let mut log = Self::default();
        for line in read_lines::<FeatureLine>(path)? {
            let FeatureLine { user_id, generated_at_ms, point_ms, sparse_ids, item_ids } = line?;
            let Ok(user) = dataset.users.binary_search_by(|row| row.user_id.cmp(&user_id)) else {
                log.unknown_users += 1;
                continue;
            };
            let cross: Vec<usize> = item_ids.iter().filter_map(|id| dataset.item_index.get(id).copied()).collect();
            log.unknown_items += item_ids.len() - cross.len();
            let intra = (!sparse_ids.is_empty()).then_some(sparse_ids);
            let features = Features { made_ms: generated_at_ms, intra, cross };
            match point_ms {
                Some(point_ms) => drop(log.points.insert((user, point_ms), features)),
                None => log.users.entry(user).or_default().push(features),
            }
        }
        log.users.values_mut().for_each(|all| all.sort_by_key(|features| features.made_ms));
        Ok(log)
    }

    /// Those made for the session of an instant, else the newest ones of a user that were made before it.
    pub fn as_of(&self, user: usize, before_ms: i64) -> Option<&Features> {
        if let Some(features) = self.points.get(&(user, before_ms)) {
            return Some(features);
        }
        let all = self.users.get(&user)?;
        all[..all.partition_point(|features| features.made_ms < before_ms)].last()
    }

    /// Leaves out what a ranker is not to see.
    pub fn keep(&mut self, intra: bool, cross: bool) {
        for features in self.users.values_mut().flatten().chain(self.points.values_mut()) {
            if !intra {
                features.intra = None;
            }
            if !cross {
                features.cross.clear();
            }
        }
    }

    /// What there is to read.
    pub fn shape(&self) -> FeatureShape {
        let all = || self.users.values().flatten().chain(self.points.values());
        let codes = || all().filter_map(|features| features.intra.as_ref());
        let tables = codes().map(Vec::len).max().unwrap_or(0);
        FeatureShape {
            codes: (tables, codes().flatten().max().map_or(0, |most| *most as usize + 1)),
            cross: all().any(|features| !features.cross.is_empty()),
        }
    }
}
