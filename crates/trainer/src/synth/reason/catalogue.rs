//! The shelf and what follows from what: all that the world-seed decides.
//!
//! In: world-seed. Out: [`Catalogue`], [`Tables`]. Callers: the rest of `reason`.

use super::person::{HOBBIES, NEEDS, SEASONS, STAGES};
use super::shelf::{LEAVES, Role, TIERS, TOP_COUNT, TOPS};
use crate::draw;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use taiji::event::{Item, ItemState};

/// All leaves.
pub(super) const LEAF_COUNT: usize = TOP_COUNT * LEAVES;
/// Items of a leaf, out of all combinations of tier, brand and adjective.
const SHELF: usize = 33;
const BRANDS: usize = 5;
const ADJECTIVES: usize = 4;
/// A stream of its own of the world-seed.
const TABLES_STREAM: u64 = 1;

/// What an item's title is made of beside the noun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Make {
    pub tier: usize,
    pub brand: usize,
    pub adjective: usize,
}

/// The shelf; the items of a leaf stand together, `SHELF` each.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Catalogue {
    pub items: Vec<Item>,
    pub makes: Vec<Make>,
}

impl Catalogue {
    pub(super) fn new(world_seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(world_seed);
        let mut catalogue = Catalogue { items: Vec::new(), makes: Vec::new() };
        for leaf in 0..LEAF_COUNT {
            let mut all: Vec<usize> = (0..TIERS.len() * BRANDS * ADJECTIVES).collect();
            draw::shuffle(&mut all, &mut random);
            for combination in all.into_iter().take(SHELF) {
                let (tier, rest) = (combination % TIERS.len(), combination / TIERS.len());
                catalogue.add(leaf, Make { tier, brand: rest % BRANDS, adjective: rest / BRANDS });
            }
        }
        catalogue
    }

    fn add(&mut self, leaf: usize, make: Make) {
        let top = &TOPS[leaf / LEAVES];
        let (brand, noun) = (top.brands[make.brand], top.leaves[leaf % LEAVES].1);
        self.items.push(Item {
            id: format!("i{}", self.items.len()),
            title: format!("{} {brand} {} {noun}", TIERS[make.tier], top.adjectives[make.adjective]),
            categories: path(leaf),
            brand: Some(brand.to_string()),
            // The tier stands for it: a number beside it in the prompt would say the same twice.
            price: None,
            state: ItemState::Active,
        });
        self.makes.push(make);
    }

    /// Indices of a leaf's items.
    pub(super) fn shelf(&self, leaf: usize) -> std::ops::Range<usize> {
        leaf * SHELF..(leaf + 1) * SHELF
    }

    /// Leaf of an item.
    pub(super) fn leaf_of(&self, item: usize) -> usize {
        item / SHELF
    }
}

/// L1, L2, L3.
pub(super) fn path(leaf: usize) -> Vec<String> {
    let (top, place) = (&TOPS[leaf / LEAVES], leaf % LEAVES);
    let group = top.groups[usize::from(place >= Role::Consumable as usize)];
    [top.name, group, top.leaves[place].0].map(str::to_string).to_vec()
}

/// Name of a leaf, its L3.
pub(super) fn leaf_name(leaf: usize) -> &'static str {
    TOPS[leaf / LEAVES].leaves[leaf % LEAVES].0
}

/// What follows from what.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tables {
    /// Hobby → its two L1.
    pub hobby_tops: [[usize; 2]; HOBBIES.len()],
    /// Hobby, season → leaf.
    pub season: [[usize; SEASONS.len()]; HOBBIES.len()],
    /// Need, stage → leaf.
    pub need: [[usize; STAGES.len()]; NEEDS.len()],
    /// L1 → what is bought instead of its seasonal thing where that is too dear.
    pub instead: [usize; TOP_COUNT],
    /// L1, stage → brand that people of the stage like.
    pub stage_brand: [[usize; STAGES.len()]; TOP_COUNT],
}

impl Tables {
    pub(super) fn new(world_seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(world_seed);
        random.set_stream(TABLES_STREAM);
        let tops = shuffled((0..TOP_COUNT).collect(), &mut random);
        let season = shuffled([Role::Durable.leaves(), Role::Seasonal.leaves()].concat(), &mut random);
        let need = shuffled([Role::Durable.leaves(), Role::First.leaves()].concat(), &mut random);
        let half = |role: Role, random: &mut ChaCha8Rng| shuffled(role.leaves(), random)[..TOP_COUNT / 2].to_vec();
        let cheaper = [half(Role::Second, &mut random), half(Role::Consumable, &mut random)].concat();
        let instead = shuffled(cheaper, &mut random);
        Tables {
            hobby_tops: std::array::from_fn(|hobby| [tops[2 * hobby], tops[2 * hobby + 1]]),
            season: std::array::from_fn(|hobby| std::array::from_fn(|at| season[hobby * SEASONS.len() + at])),
            need: std::array::from_fn(|need_at| std::array::from_fn(|stage| need[need_at * STAGES.len() + stage])),
            instead: std::array::from_fn(|top| instead[top]),
            stage_brand: std::array::from_fn(|_| std::array::from_fn(|_| random.random_range(0..BRANDS))),
        }
    }
}

fn shuffled(mut list: Vec<usize>, random: &mut ChaCha8Rng) -> Vec<usize> {
    draw::shuffle(&mut list, random);
    list
}

/// Any brand of an L1, all alike.
pub(super) fn any_brand(random: &mut impl Rng) -> usize {
    random.random_range(0..BRANDS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_shelf_has_1980_different_items_and_names_of_one_word() {
        let catalogue = Catalogue::new(1);
        assert_eq!(catalogue.items.len(), 1980);
        let titles: BTreeSet<&str> = catalogue.items.iter().map(|item| item.title.as_str()).collect();
        assert_eq!(titles.len(), 1980);
        for (index, item) in catalogue.items.iter().enumerate() {
            item.validate().unwrap();
            assert_eq!(item.categories, path(catalogue.leaf_of(index)));
            assert_eq!(item.title.split(' ').count(), 4);
            assert!(item.categories.iter().all(|name| !name.contains(' ')));
        }
        let leaves: BTreeSet<&str> = (0..LEAF_COUNT).map(leaf_name).collect();
        assert_eq!(leaves.len(), LEAF_COUNT);
        assert_eq!(path(3), ["Outdoor", "Trail", "Energy-gels"]);
        assert_ne!(catalogue, Catalogue::new(2));
    }

    #[test]
    fn no_two_facts_lead_to_one_leaf_of_a_table() {
        for seed in 0..20 {
            let tables = Tables::new(seed);
            let distinct = |leaves: Vec<usize>| leaves.into_iter().collect::<BTreeSet<_>>().len();
            assert_eq!(distinct(tables.hobby_tops.concat()), TOP_COUNT);
            assert_eq!(distinct(tables.season.concat()), 24);
            assert_eq!(distinct(tables.need.concat()), 24);
            assert_eq!(distinct(tables.instead.to_vec()), TOP_COUNT);
            let seconds = tables.instead.iter().filter(|leaf| Role::Second.is(**leaf)).count();
            let runs_out = tables.instead.iter().filter(|leaf| Role::Consumable.is(**leaf)).count();
            assert_eq!((seconds, runs_out), (6, 6));
            assert!(tables.season.concat().iter().all(|leaf| Role::Durable.is(*leaf) || Role::Seasonal.is(*leaf)));
            assert!(tables.need.concat().iter().all(|leaf| Role::Durable.is(*leaf) || Role::First.is(*leaf)));
        }
        assert_ne!(Tables::new(1), Tables::new(2));
    }
}
