//! Which pairs of user and item are scored: a snapshot never has all of them.
//!
//! In: a user at an instant. Out: items, by their place in the catalogue, each once. Called by `table`.

use super::SimulateError;
use crate::data::{Cut, Dataset};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Engagements whose categories are looked at.
const RECENT: usize = 50;

/// What is scored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimulatorSettings {
    /// Most users; by default all of the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<usize>,
    /// Items of each lowest category that the user was in, the first of the catalogue.
    pub per_leaf: usize,
    /// Items drawn from each first level of category, for every user others.
    pub per_top: usize,
    /// Decides the draws.
    pub seed: u64,
}

impl Default for SimulatorSettings {
    fn default() -> Self {
        Self { users: None, per_leaf: 100, per_top: 50, seed: 7 }
    }
}

impl SimulatorSettings {
    /// Refuses what makes no table.
    pub fn check(&self) -> Result<(), SimulateError> {
        let counts = [("per_top", self.per_top), ("users", self.users.unwrap_or(1))];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((field, _)) => Err(SimulateError::Settings { field, message: "must be positive".into() }),
            None => Ok(()),
        }
    }
}

/// A catalogue by category.
pub(super) struct Shelves<'a> {
    dataset: &'a Dataset,
    leaves: BTreeMap<&'a [String], Vec<usize>>,
    /// Items without a category stand together.
    tops: BTreeMap<Option<&'a String>, Vec<usize>>,
}

impl<'a> Shelves<'a> {
    pub fn new(dataset: &'a Dataset) -> Self {
        let (mut leaves, mut tops) = (BTreeMap::<&[String], Vec<usize>>::new(), BTreeMap::<_, Vec<usize>>::new());
        for (place, item) in dataset.items.iter().enumerate() {
            leaves.entry(item.categories.as_slice()).or_default().push(place);
            tops.entry(item.categories.first()).or_default().push(place);
        }
        Self { dataset, leaves, tops }
    }

    /// Items of the categories that a user was in, and some of everything; sorted.
    pub fn candidates(&self, user: usize, cut: Cut, settings: &SimulatorSettings) -> Vec<usize> {
        let engaged = self.dataset.users[user].engagements_before(cut).iter().rev().take(RECENT);
        let items: BTreeSet<usize> = engaged.filter_map(|behaviour| behaviour.item).collect();
        let categories: BTreeSet<&[String]> =
            items.iter().map(|&item| self.dataset.items[item].categories.as_slice()).collect();
        let near = categories.into_iter().filter_map(|categories| self.leaves.get(categories));
        let mut all: BTreeSet<usize> = near.flat_map(|leaf| leaf.iter().take(settings.per_leaf).copied()).collect();
        all.extend(items);
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        random.set_stream(user as u64);
        for top in self.tops.values() {
            all.extend(sample(&mut random, top.len(), settings.per_top.min(top.len())).iter().map(|place| top[place]));
        }
        all.into_iter().collect()
    }
}
