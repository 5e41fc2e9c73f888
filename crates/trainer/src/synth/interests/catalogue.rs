//! The world's shelf: category tree and items, decided by the world-seed alone.
//!
//! In: `taxonomy.txt` (compiled in), number of items, world-seed. Out: [`Catalogue`]. Caller: `interests`.

use crate::draw;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use taiji::event::{Item, ItemState};

const TAXONOMY: &str = include_str!("taxonomy.txt");
const COLOURS: [&str; 10] = ["black", "white", "navy", "grey", "green", "red", "sand", "teal", "plum", "amber"];
const EDITIONS: [&str; 5] = ["plus", "mini", "classic", "duo", "max"];

/// A lowest category with what titles there are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaf {
    /// L1, L2, L3.
    pub categories: Vec<String>,
    /// Index of the L2 among all L2s.
    pub parent: usize,
    /// What the things are called, singular.
    pub nouns: Vec<String>,
    /// Adjectives of the L2.
    pub attributes: Vec<String>,
    /// Brands of the L1.
    pub brands: Vec<String>,
    /// Indices of its items.
    pub items: Vec<usize>,
    /// Leaf whose things go with these.
    pub complement: usize,
    /// Middle of its price range.
    price: f64,
}

/// A middle category.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Index of the L1.
    pub top: usize,
    /// Its leaves.
    pub leaves: Vec<usize>,
    /// When it is bought most, if there is such a time.
    pub season: Option<String>,
    /// Who buys it most, if there is such a stage.
    pub stage: Option<String>,
}

/// Everything that the world-seed decides.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Catalogue {
    /// As in `items.jsonl`.
    pub items: Vec<Item>,
    /// Leaf of each item.
    pub leaf_of: Vec<usize>,
    /// Rank of each item's price on its leaf's shelf, 0 = cheapest, 1 = dearest.
    pub price_rank: Vec<f64>,
    /// All L3.
    pub leaves: Vec<Leaf>,
    /// All L2.
    pub groups: Vec<Group>,
    /// Number of L1.
    pub tops: usize,
}

impl Catalogue {
    /// Builds the tree and spreads `count` items over it (at least one a leaf).
    pub fn new(count: usize, world_seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(world_seed);
        let mut catalogue = parse_taxonomy(&mut random);
        catalogue.link_complements(&mut random);
        let mut titles = BTreeSet::new();
        let leaves = catalogue.leaves.len().max(1);
        for index in 0..count.max(leaves) {
            // One round over all leaves, the rest by lot: shelves differ in size, none is empty.
            let leaf = if index < leaves { index } else { random.random_range(0..leaves) };
            catalogue.add_item(leaf, &mut titles, &mut random);
        }
        catalogue.rank_prices();
        catalogue
    }

    /// Things go with things of another L2 under the same L1.
    fn link_complements(&mut self, random: &mut ChaCha8Rng) {
        for leaf in 0..self.leaves.len() {
            let parent = self.leaves[leaf].parent;
            let top = self.groups[parent].top;
            let others: Vec<usize> = (0..self.leaves.len())
                .filter(|other| {
                    self.leaves[*other].parent != parent && self.groups[self.leaves[*other].parent].top == top
                })
                .collect();
            self.leaves[leaf].complement = *draw::choice(&others, random).unwrap_or(&leaf);
        }
    }

    fn add_item(&mut self, leaf_index: usize, titles: &mut BTreeSet<String>, random: &mut ChaCha8Rng) {
        let leaf = &self.leaves[leaf_index];
        let brand = draw::choice(&leaf.brands, random).cloned().unwrap_or_default();
        let title = unique_title(leaf, &brand, titles, random);
        let price = (leaf.price * random.random_range(0.5f64..2.0)).max(1.0);
        let index = self.items.len();
        self.items.push(Item {
            id: format!("i{index}"),
            title,
            categories: leaf.categories.clone(),
            brand: Some(brand),
            price: Some((price * 100.0).round() / 100.0),
            state: ItemState::Active,
        });
        self.leaf_of.push(leaf_index);
        self.leaves[leaf_index].items.push(index);
    }

    fn rank_prices(&mut self) {
        self.price_rank = vec![0.5; self.items.len()];
        for leaf in &self.leaves {
            let mut shelf = leaf.items.clone();
            shelf.sort_by(|left, right| {
                let price = |index: usize| self.items[index].price.unwrap_or(0.0);
                price(*left).total_cmp(&price(*right)).then(left.cmp(right))
            });
            let last = shelf.len().saturating_sub(1).max(1) as f64;
            for (rank, item) in shelf.into_iter().enumerate() {
                self.price_rank[item] = rank as f64 / last;
            }
        }
    }
}

/// `Brand attribute noun`, with a colour or an edition where that is taken already or by lot.
fn unique_title(leaf: &Leaf, brand: &str, titles: &mut BTreeSet<String>, random: &mut ChaCha8Rng) -> String {
    let pick = |words: &[String], random: &mut ChaCha8Rng| draw::choice(words, random).cloned().unwrap_or_default();
    let mut number = 2;
    for attempt in 0.. {
        let (attribute, noun) = (pick(&leaf.attributes, random), pick(&leaf.nouns, random));
        let mut title = match random.random_range(0..4) {
            0 => format!("{brand} {noun}, {attribute}"),
            _ => format!("{brand} {attribute} {noun}"),
        };
        if attempt > 3 || random.random_bool(0.3) {
            title = format!("{title} {}", draw::choice(&COLOURS, random).unwrap_or(&""));
        }
        if attempt > 6 {
            title = format!("{title} {}", draw::choice(&EDITIONS, random).unwrap_or(&""));
        }
        if attempt > 20 {
            title = format!("{title} {number}");
            number += 1;
        }
        if titles.insert(title.clone()) {
            return title;
        }
    }
    String::new()
}

/// Reads the compiled-in tree; a malformed line is skipped, and a test counts what must be there.
fn parse_taxonomy(random: &mut ChaCha8Rng) -> Catalogue {
    let mut catalogue = Catalogue::default();
    let (mut top_name, mut brands) = (String::new(), Vec::new());
    for line in TAXONOMY.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let Some((head, rest)) = line.split_once(": ") else { continue };
        let Some(group) = head.strip_prefix("- ") else {
            (top_name, brands) = (head.to_string(), list(rest, ','));
            catalogue.tops += 1;
            continue;
        };
        let Some((attributes, leaves)) = rest.split_once(": ") else { continue };
        let Some((name, _)) = group.split_once(" (") else { continue };
        let (season, stage) = (bracketed(group, '(', ')'), bracketed(group, '[', ']'));
        let parent = catalogue.groups.len();
        let first = catalogue.leaves.len();
        for (leaf_name, nouns) in list(leaves, ';').iter().filter_map(|leaf| leaf.split_once(" = ")) {
            catalogue.leaves.push(Leaf {
                categories: vec![top_name.clone(), name.to_string(), leaf_name.to_string()],
                parent,
                nouns: list(nouns, ','),
                attributes: list(attributes, ','),
                brands: brands.clone(),
                items: Vec::new(),
                complement: 0,
                price: random.random_range(2.0f64..4.5).exp(),
            });
        }
        let leaves = (first..catalogue.leaves.len()).collect();
        catalogue.groups.push(Group { top: catalogue.tops.saturating_sub(1), leaves, season, stage });
    }
    catalogue
}

fn list(text: &str, separator: char) -> Vec<String> {
    text.split(separator).map(|word| word.trim().to_string()).collect()
}

/// What stands between `open` and `close`; `-` means nothing.
fn bracketed(text: &str, open: char, close: char) -> Option<String> {
    let (inside, _) = text.split_once(open)?.1.split_once(close)?;
    (inside != "-").then(|| inside.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_tree_is_whole_and_items_are_valid_and_unique() {
        let catalogue = Catalogue::new(2000, 1);
        assert_eq!(catalogue.tops, 12);
        assert_eq!(catalogue.groups.len(), 58);
        assert!((180..260).contains(&catalogue.leaves.len()), "{}", catalogue.leaves.len());
        assert_eq!(catalogue.items.len(), 2000);
        let titles: BTreeSet<&str> = catalogue.items.iter().map(|item| item.title.as_str()).collect();
        assert_eq!(titles.len(), 2000);
        let names: BTreeSet<&str> = catalogue.leaves.iter().map(|leaf| leaf.categories[2].as_str()).collect();
        assert_eq!(names.len(), catalogue.leaves.len(), "every L3 has its own name");
        for item in &catalogue.items {
            item.validate().unwrap();
            assert_eq!(item.categories.len(), 3);
        }
        for leaf in &catalogue.leaves {
            assert!(!leaf.items.is_empty() && leaf.nouns.len() == 2 && leaf.attributes.len() == 4);
            let other = &catalogue.leaves[leaf.complement];
            assert!(other.categories[0] == leaf.categories[0] && other.parent != leaf.parent);
        }
        assert_eq!(catalogue.leaves[0].categories, ["Outdoor", "Camping", "Tents"]);
        assert_eq!(catalogue.groups[0].season.as_deref(), Some("summer"));
        assert_eq!(catalogue.groups[1].stage, None);
    }
}
