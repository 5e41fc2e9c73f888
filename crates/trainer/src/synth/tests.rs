//! Tests of the world as a whole: same bytes, and learnable as DESIGN asks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::data::{ExampleSettings, SftSource, Split, build_examples};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use taiji::event::{ActionTable, EventDecoder};
use taiji::prompt::{PromptSchema, completion, parse, render};

const SMALL: SynthSettings =
    SynthSettings { users: 300, items: 2_000, events: 20_000, seed: 7, world_seed: DEFAULT_WORLD_SEED };

#[test]
fn same_seeds_same_world_and_each_seed_moves_its_part() {
    let world = generate(&SMALL);
    assert_eq!(world, generate(&SMALL));
    let other_people = generate(&SynthSettings { seed: 8, ..SMALL });
    assert_eq!(world.items, other_people.items);
    assert_ne!(world.events, other_people.events);
    let other_shelf = generate(&SynthSettings { world_seed: 5, ..SMALL });
    assert_ne!(world.items, other_shelf.items);
    let count = world.events.len() as f64;
    assert!((0.85..1.15).contains(&(count / SMALL.events as f64)), "{count}");
}

#[test]
fn files_read_back_as_the_world_and_are_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = generate(&SMALL);
    write(&world, one.path()).unwrap();
    write(&generate(&SMALL), two.path()).unwrap();
    for name in ["items.jsonl", "users.jsonl", "events.jsonl"] {
        assert_eq!(std::fs::read(one.path().join(name)).unwrap(), std::fs::read(two.path().join(name)).unwrap());
    }
    let read = Dataset::load(one.path(), &ActionTable::default()).unwrap();
    assert_eq!(read, world.dataset());
}

#[test]
fn every_event_is_one_that_the_service_accepts() {
    let world = generate(&SMALL);
    let decoder = EventDecoder::new(ActionTable::default(), BTreeMap::new());
    for event in &world.events {
        let value = serde_json::to_value(event).unwrap();
        assert_eq!(&decoder.decode(&value, 1_790_000_000_000).unwrap(), event);
    }
    assert!(world.events.windows(2).all(|pair| pair[0].ts_ms <= pair[1].ts_ms));
}

#[test]
fn the_truth_of_impressions_is_calibrated() {
    let world = generate(&SMALL);
    let expected: f64 = world.events.iter().filter_map(|event| event.context.get("ctr")?.as_f64()).sum();
    let clicks = world.events.iter().filter(|event| event.action == "click").count() as f64;
    assert!((clicks / expected - 1.0).abs() < 0.05, "{clicks} clicks, {expected} expected");
}

/// Share of examples whose target is guessed right by counting, at L1, L2, L3; votes are weighted `decay`^age.
fn counting(examples: &[SftSource], decay: f64) -> [f64; 3] {
    let mut hits = [0usize; 3];
    for example in examples {
        for depth in 1..=3 {
            let mut votes: BTreeMap<&[String], f64> = BTreeMap::new();
            for (age, item) in example.prompt.engagements.iter().take(10).enumerate() {
                *votes.entry(&item.categories[..depth]).or_default() += decay.powi(age as i32);
            }
            let best = votes.into_iter().max_by(|left, right| left.1.total_cmp(&right.1)).unwrap().0;
            hits[depth - 1] += usize::from(best == &example.target.categories[..depth]);
        }
    }
    hits.map(|hit| hit as f64 / examples.len() as f64)
}

fn best_constant(examples: &[SftSource]) -> f64 {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for example in examples {
        *counts.entry(&example.target.categories[0]).or_default() += 1;
    }
    *counts.values().max().unwrap() as f64 / examples.len() as f64
}

/// Prints what the demo model is up against, then holds it within bounds.
#[test]
fn the_default_world_is_learnable_but_not_trivial() {
    for (seed, world_seed) in [(1, DEFAULT_WORLD_SEED), (4, 99)] {
        let world = generate(&SynthSettings { seed, world_seed, ..SynthSettings::default() });
        let data = world.dataset();
        let train = build_examples(&data, &ExampleSettings::new(Split::Train));
        let test = build_examples(&data, &ExampleSettings::new(Split::Test));
        let dominant = data.users.iter().filter_map(|user| {
            let latent = user.latent.as_ref()?;
            let item = data.item_index.get(&latent.next_purchase.as_ref()?.item_id)?;
            Some(latent.interests.first()?.categories[0] == data.items[*item].categories[0])
        });
        let dominant = dominant.filter(|hit| *hit).count() as f64 / data.users.len() as f64;
        let (frequent, recent, newest) = (counting(&test, 1.0), counting(&test, 0.8), counting(&test, 0.0));
        let constant = best_constant(&test);
        println!(
            "seed {seed}, world {world_seed}: {} events, {} train, {} test",
            world.events.len(),
            train.len(),
            test.len()
        );
        println!("  dominant latent L1 {dominant:.3}; constant {constant:.3}");
        println!("  frequent {frequent:.3?} recent {recent:.3?} newest {newest:.3?}");
        print_lengths(&train, seed);
        assert!(train.len() >= 15_000);
        assert!((0.08..0.16).contains(&constant), "{constant}");
        assert!((0.62..0.85).contains(&recent[0]), "{recent:?}");
        assert!((0.40..0.65).contains(&recent[2]), "{recent:?}");
    }
}

fn print_lengths(examples: &[SftSource], seed: u64) {
    let schema = PromptSchema::small();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut prompt_chars, mut answer_chars, mut words) = (0, 0, 0);
    for (index, example) in examples.iter().enumerate() {
        let prompt = render(&schema, &example.prompt, &|_| 0);
        let text = completion(&example.reasoning(&mut random), &example.answer(schema.max_title_chars));
        let parsed = parse(&text);
        assert!(parsed.format_ok, "{text}");
        words += parsed.reasoning.split_whitespace().count();
        prompt_chars += prompt.text.chars().count();
        answer_chars += text.chars().count();
        if index % 7_000 == 3 {
            println!("{}\n{text}\n", prompt.text);
        }
    }
    let mean = |sum: usize| sum / examples.len();
    println!(
        "  mean characters: prompt {}, completion {}; reasoning words {}",
        mean(prompt_chars),
        mean(answer_chars),
        mean(words)
    );
}
