//! One person of the world `reason`: what the profile says, the hobby that it does not, and taste.
//!
//! In: tables and the person's random stream. Out: [`Person`]. Callers: `life`, the oracle.

use super::catalogue::{Catalogue, Tables, any_brand};
use super::shelf::{LEAVES, TOP_COUNT};
use crate::draw;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

pub(super) const STAGES: [&str; 4] = ["student", "professional", "parent", "retired"];
pub(super) const BUDGETS: [&str; 2] = ["low", "high"];
pub(super) const SEASONS: [&str; 4] = ["spring", "summer", "autumn", "winter"];
pub(super) const HOBBIES: [&str; 6] = ["nature", "gourmet", "tech", "style", "maker", "family"];
pub(super) const NEEDS: [&str; 6] = ["gift", "trip", "repair", "party", "moving", "comfort"];
/// Decides nothing.
const REGIONS: [&str; 4] = ["north", "south", "east", "west"];
/// Chance of the low budget.
const LOW: f64 = 0.6;
/// Chance that the liked brand of an L1 is that of the stage of life.
const AS_OTHERS: f64 = 0.7;
/// How sharply a shelf is chosen from by taste.
const SHARPNESS: f64 = 6.0;

/// Who somebody is; indices into the lists above. Nothing of it changes, or the newest profile would tell the future.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Person {
    pub stage: usize,
    /// 0 = low.
    pub budget: usize,
    pub region: usize,
    pub hobby: usize,
    /// By L1.
    pub brands: [usize; TOP_COUNT],
    pub season: usize,
}

impl Person {
    pub(super) fn new(tables: &Tables, random: &mut ChaCha8Rng) -> Self {
        let stage = random.random_range(0..STAGES.len());
        let budget = usize::from(!random.random_bool(LOW));
        let region = random.random_range(0..REGIONS.len());
        let hobby = random.random_range(0..HOBBIES.len());
        let brands = std::array::from_fn(|top| match random.random_bool(AS_OTHERS) {
            true => tables.stage_brand[top][stage],
            false => any_brand(random),
        });
        let season = random.random_range(0..SEASONS.len());
        Person { stage, budget, region, hobby, brands, season }
    }

    /// What the profile says.
    pub(super) fn profile(&self) -> BTreeMap<String, String> {
        let said = [
            ("budget", BUDGETS[self.budget]),
            ("life_stage", STAGES[self.stage]),
            ("region", REGIONS[self.region]),
            ("season", SEASONS[self.season]),
        ];
        said.map(|(name, value)| (name.to_string(), value.to_string())).into_iter().collect()
    }

    /// How well an item suits this person apart from its category, 0–1.
    pub(super) fn taste(&self, catalogue: &Catalogue, item: usize) -> f64 {
        let make = catalogue.makes[item];
        let one = |holds: bool, weight: f64| if holds { weight } else { 0.0 };
        one(make.brand == self.brands[catalogue.leaf_of(item) / LEAVES], 0.4)
            + one(make.tier == self.budget, 0.35)
            + one(make.adjective == self.stage, 0.25)
    }

    /// Weights of a leaf's items when one is bought, in the order of the shelf.
    pub(super) fn wishes(&self, catalogue: &Catalogue, leaf: usize) -> Vec<f64> {
        catalogue.shelf(leaf).map(|item| (SHARPNESS * self.taste(catalogue, item)).exp()).collect()
    }

    /// An item of a leaf, as this person would buy it.
    pub(super) fn choose(&self, catalogue: &Catalogue, leaf: usize, random: &mut ChaCha8Rng) -> usize {
        catalogue.shelf(leaf).start + draw::weighted(&self.wishes(catalogue, leaf), random)
    }
}
