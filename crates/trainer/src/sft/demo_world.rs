//! A crude world for tests of learning: users with one or two favourite leaves of a category tree, and the text that says so.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::SftExample;

const ROOTS: [&str; 6] = ["Music", "Kitchen", "Garden", "Sports", "Books", "Electronics"];
const MIDDLES: [&str; 4] = ["Tools", "Classic", "Outdoor", "Compact"];
const LEAVES: [&str; 4] = ["Sets", "Stands", "Covers", "Kits"];
const BRANDS: [&str; 12] = [
    "Aldor", "Brekk", "Corvia", "Dunmor", "Elvane", "Fostrin", "Garrow", "Halden", "Istria", "Jorvik", "Kestrel",
    "Lumen",
];
const NOUNS: [&str; 16] = [
    "guitar", "kettle", "spade", "racket", "novel", "lamp", "drum", "pan", "hose", "ball", "atlas", "radio", "flute",
    "knife", "rake", "helmet",
];
const ACTIONS: [&str; 5] = ["click", "purchase", "like", "long_view", "add_to_cart"];

fn category(leaf: usize) -> String {
    format!("{} > {} > {}", ROOTS[leaf / 16], MIDDLES[leaf / 4 % 4], LEAVES[leaf % 4])
}

fn title(leaf: usize, random: &mut ChaCha8Rng) -> String {
    // The leaf decides which nouns occur, as titles in a shop follow their category.
    let noun = NOUNS[(leaf * 5 + random.random_range(0..3)) % NOUNS.len()];
    let brand = BRANDS.choose(random).copied().unwrap_or("Aldor");
    format!("{brand} {noun} {}", random.random_range(1..60) * 10)
}

/// `count` users; the dominant leaf has about half of 12 to 20 items.
pub(super) fn examples(count: usize, seed: u64) -> Vec<SftExample> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| example(&mut random)).collect()
}

fn example(random: &mut ChaCha8Rng) -> SftExample {
    let (main, side) = (random.random_range(0..96), random.random_range(0..96));
    let length = random.random_range(12..=20);
    let mut counts = [0usize; 96];
    let mut lines = Vec::new();
    let mut recent = String::new();
    for _ in 0..length {
        let draw = random.random::<f64>();
        let leaf = if draw < 0.55 {
            main
        } else if draw < 0.8 {
            side
        } else {
            random.random_range(0..96)
        };
        counts[leaf] += 1;
        let name = title(leaf, random);
        if recent.is_empty() && leaf == main {
            recent = name.clone();
        }
        let action = ACTIONS.choose(random).copied().unwrap_or("click");
        lines.push(format!("{action}: {name} | {}", category(leaf)));
    }
    let best = counts.iter().copied().max().unwrap_or(0);
    let dominant = counts.iter().position(|&n| n == best).unwrap_or(main);
    let wanted = category(dominant);
    let liked = if recent.is_empty() { "new things".to_owned() } else { recent };
    let completion = format!(
        "The user returns to {} again and again, most of all {wanted}. The latest was {liked}.</think><answer>{wanted}: {}</answer>",
        ROOTS[dominant / 16],
        title(dominant, random)
    );
    let prompt = format!("Recent items:\n{}\nWhat next?<think>", lines.join("\n"));
    SftExample { prompt, completion }
}
