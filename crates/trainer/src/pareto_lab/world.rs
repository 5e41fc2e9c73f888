//! One seed's world `reason` as tables: what a policy sees of every user and item, and what each item is worth.
//!
//! In: seed. Out: [`Tables`]. A user has two items of each leaf to answer with, drawn once; item `c` lies in leaf `c / 2`.

use super::OBJECTIVES;
use crate::draw;
use crate::synth::{Conflict, SynthSettings, World, WorldKind, generate};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use taiji::event::{Event, Item};

/// Leaves of the world.
pub(super) const LEAVES: usize = 60;
/// Leaves of an L1.
const LEAVES_OF_L1: usize = 5;
/// Items that a user may be answered with.
pub(super) const CANDIDATES: usize = 2 * LEAVES;
/// Figures of a user and an item beside its leaf.
pub(super) const WIDTH: usize = 12;
/// Lines of history that the prompt shows.
const LINES: usize = 12;
/// Share of the SFT targets that are the newest line instead of the next purchase: what next-event data mostly are.
const NEWEST: f64 = 0.15;
/// The conflicts there are tables for; the second is the world's own.
pub(super) const CONFLICTS: [Conflict; 3] = [Conflict::Kept94, Conflict::Kept80, Conflict::Kept60];

/// Features and true values of all users, those of training first.
pub(super) struct Tables {
    pub users: usize,
    /// `[user · CANDIDATES + candidate]`
    pub features: Vec<[f64; WIDTH]>,
    /// Similarity of the candidate to the item bought next, 0 to 1; laid out as the features.
    pub similarity: Vec<f64>,
    /// Click and conversion, as the world's oracle knows it; by [`CONFLICTS`], brought to 0 to 1 over the table (`minmax_raw`).
    pub rates: Vec<Vec<f64>>,
    /// Leaf that SFT is taught, by user.
    pub targets: Vec<usize>,
}

impl Tables {
    /// `users` people of a world that this seed alone decides.
    pub fn new(seed: u64, users: usize) -> Self {
        let settings = SynthSettings {
            kind: WorldKind::Reason,
            users,
            seed: 70_000 + seed,
            world_seed: 80_000 + seed,
            ..SynthSettings::default()
        };
        let worlds = CONFLICTS.map(|conflict| generate(&SynthSettings { conflict: Some(conflict), ..settings }));
        let mut random = ChaCha8Rng::seed_from_u64(90_000 + seed);
        let world = &worlds[1];
        let shelf = Shelf::new(&world.items);
        let histories = histories(world);
        let mut tables = Tables {
            users,
            features: Vec::with_capacity(users * CANDIDATES),
            similarity: Vec::with_capacity(users * CANDIDATES),
            rates: vec![Vec::with_capacity(users * CANDIDATES); CONFLICTS.len()],
            targets: Vec::with_capacity(users),
        };
        for (user, lines) in histories.iter().enumerate() {
            let candidates: Vec<usize> = (0..CANDIDATES).map(|place| shelf.drawn(place / 2, &mut random)).collect();
            let view = View::new(world, &shelf, lines, user);
            let bought = view.bought;
            tables.features.extend(candidates.iter().map(|item| view.features(&shelf, *item)));
            tables.similarity.extend(candidates.iter().map(|item| shelf.likeness(*item, bought)));
            for (rates, world) in tables.rates.iter_mut().zip(&worlds) {
                rates.extend(candidates.iter().map(|item| world.ctcvr(user, *item).unwrap_or(0.0)));
            }
            let newest = view.lines.first().copied().filter(|_| random.random_bool(NEWEST));
            tables.targets.push(shelf.leaf[newest.unwrap_or(bought)]);
        }
        tables.rates.iter_mut().for_each(|rates| minmax(rates));
        tables
    }

    /// True values of an objective.
    pub fn values(&self, objective: usize, conflict: usize) -> &[f64] {
        const { assert!(OBJECTIVES.len() == 2) };
        if objective == 0 { &self.similarity } else { &self.rates[conflict] }
    }
}

fn minmax(values: &mut [f64]) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let width = (high - low).max(f64::MIN_POSITIVE);
    values.iter_mut().for_each(|value| *value = (*value - low) / width);
}

/// Indices of the items of each user's lines, newest first.
fn histories(world: &World) -> Vec<Vec<usize>> {
    let places: HashMap<&str, usize> =
        world.items.iter().enumerate().map(|(at, item)| (item.id.as_str(), at)).collect();
    let users: HashMap<&str, usize> =
        world.users.iter().enumerate().map(|(at, user)| (user.user_id.as_str(), at)).collect();
    let is_line = |event: &&Event| ["click", "add_to_cart", "purchase"].contains(&event.action.as_str());
    let mut lines = vec![Vec::new(); world.users.len()];
    for event in world.events.iter().rev().filter(is_line) {
        let item = event.item_id.as_deref().and_then(|id| places.get(id));
        if let (Some(user), Some(item)) = (users.get(event.user_id.as_str()), item) {
            lines[*user].push(*item);
        }
    }
    lines.iter_mut().for_each(|of_user| of_user.truncate(LINES));
    lines
}

/// The items as words.
struct Shelf {
    leaf: Vec<usize>,
    by_leaf: Vec<Vec<usize>>,
    /// tier, brand, adjective: the first three words of a title.
    make: Vec<[String; 3]>,
    /// TF-IDF over the words of categories and title, of length 1, by word.
    vectors: Vec<Vec<(usize, f64)>>,
}

impl Shelf {
    fn new(items: &[Item]) -> Self {
        let mut paths: Vec<&[String]> = Vec::new();
        let (mut leaf, mut by_leaf) = (Vec::new(), vec![Vec::new(); LEAVES]);
        for (at, item) in items.iter().enumerate() {
            // The catalogue has its leaves one after the other.
            if paths.last().is_none_or(|last| *last != item.categories.as_slice()) {
                paths.push(&item.categories);
            }
            leaf.push(paths.len() - 1);
            by_leaf[paths.len() - 1].push(at);
        }
        let word = |item: &Item, place: usize| item.title.split(' ').nth(place).unwrap_or_default().to_string();
        let make = items.iter().map(|item| std::array::from_fn(|place| word(item, place))).collect();
        Shelf { leaf, by_leaf, make, vectors: vectors(items) }
    }

    fn drawn(&self, leaf: usize, random: &mut impl Rng) -> usize {
        draw::choice(&self.by_leaf[leaf], random).copied().unwrap_or_default()
    }

    /// Cosine.
    fn likeness(&self, one: usize, other: usize) -> f64 {
        let (left, right) = (&self.vectors[one], &self.vectors[other]);
        let shared = left.iter().filter_map(|(word, weight)| {
            right.binary_search_by_key(word, |(own, _)| *own).ok().map(|at| weight * right[at].1)
        });
        shared.sum()
    }
}

fn vectors(items: &[Item]) -> Vec<Vec<(usize, f64)>> {
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut texts: Vec<Vec<usize>> = Vec::new();
    for item in items {
        let text = format!("{} {}", item.categories.join(" "), item.title).to_lowercase();
        let mut number = |word: &str| {
            let next = numbers.len();
            *numbers.entry(word.to_string()).or_insert(next)
        };
        let mut words: Vec<usize> = text.split_whitespace().map(&mut number).collect();
        words.sort_unstable();
        words.dedup();
        texts.push(words);
    }
    let mut documents = vec![0.0_f64; numbers.len()];
    texts.iter().flatten().for_each(|word| documents[*word] += 1.0);
    let weight = |word: usize| (items.len() as f64 / documents[word]).ln();
    let vector = |words: &Vec<usize>| {
        let length = words.iter().map(|word| weight(*word).powi(2)).sum::<f64>().sqrt();
        words.iter().map(|word| (*word, weight(*word) / length)).collect()
    };
    texts.iter().map(vector).collect()
}

/// One user as a policy sees them.
struct View<'a> {
    lines: &'a [usize],
    intents: &'a [f64],
    budget: &'a str,
    bought: usize,
}

impl<'a> View<'a> {
    fn new(world: &'a World, shelf: &Shelf, lines: &'a [usize], user: usize) -> Self {
        let record = &world.users[user];
        let id = record.latent.as_ref().and_then(|latent| latent.next_purchase.as_ref()).map(|next| &next.item_id);
        // Every user of a generated world has a next purchase, and it is on the shelf.
        let bought = id.and_then(|id| world.items.iter().position(|item| item.id == *id)).unwrap_or_default();
        let budget = record.profile.get("budget").map_or("", String::as_str);
        debug_assert!(bought < shelf.leaf.len());
        View { lines, intents: world.oracle.intents(user), budget, bought }
    }

    /// What the facts say of the leaf, how the item resembles the lines, and whether its tier is the budget's.
    fn features(&self, shelf: &Shelf, item: usize) -> [f64; WIDTH] {
        let leaf = shelf.leaf[item];
        let first = leaf / LEAVES_OF_L1 * LEAVES_OF_L1;
        let [tier, brand, adjective] = &shelf.make[item];
        let share = |holds: &dyn Fn(usize) -> bool| {
            self.lines.iter().filter(|line| holds(**line)).count() as f64 / self.lines.len().max(1) as f64
        };
        let near = |line: usize| shelf.leaf[line] / LEAVES_OF_L1 == leaf / LEAVES_OF_L1;
        let newest = |holds: &dyn Fn(usize) -> bool| f64::from(self.lines.first().is_some_and(|line| holds(*line)));
        [
            self.intents[leaf],
            1.0 + (self.intents[leaf] + 1e-3).ln() / 7.0,
            self.intents[first..first + LEAVES_OF_L1].iter().sum(),
            newest(&|line| shelf.leaf[line] == leaf),
            newest(&near),
            share(&|line| shelf.leaf[line] == leaf),
            share(&near),
            share(&|line| shelf.make[line][0] == *tier),
            share(&|line| near(line) && shelf.make[line][1] == *brand),
            share(&|line| near(line) && shelf.make[line][2] == *adjective),
            f64::from((tier == "basic") == (self.budget == "low")),
            1.0 - self.intents.iter().copied().fold(0.0, f64::max) * f64::from(self.intents[leaf] < 0.05),
        ]
    }
}
