//! Tests of the world as a whole: same bytes, and learnable as DESIGN asks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod conflict;

use super::*;
use crate::data::{ExampleSettings, SftSource, Split, build_examples};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use taiji::event::{ActionTable, EventDecoder};
use taiji::prompt::{PromptMode, PromptSchema, parse, render};

const SMALL: SynthSettings = SynthSettings {
    kind: WorldKind::Interests,
    users: 300,
    items: 2_000,
    events: 20_000,
    seed: 7,
    world_seed: DEFAULT_WORLD_SEED,
    conflict: None,
};
const KINDS: [WorldKind; 2] = [WorldKind::Interests, WorldKind::Reason];

/// The files that 0.1.0 wrote for [`SMALL`].
const BEFORE_LABELS: [(&str, &str); 3] = [
    ("events.jsonl", "3d8695dac23b1a36dcd03aa79c60cf69b157fc3dc4d3adaaff99e1cba4166088"),
    ("items.jsonl", "127ec50fdc762efeeca086898b8e57040a719b04af39665ab07c2c582ac97287"),
    ("users.jsonl", "4d3a3dcc893911cbb3ae248d14a357456f6ef2aaf3af869f8408860800f48a0c"),
];

#[test]
fn the_world_interests_is_what_it_was_before_labels_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    write(&generate(&SMALL), folder.path()).unwrap();
    for (name, sha256) in BEFORE_LABELS {
        assert_eq!(taiji::bundle::sha256_file(&folder.path().join(name)).unwrap(), sha256, "{name}");
    }
}

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
    for kind in KINDS {
        let settings = SynthSettings { kind, ..SMALL };
        let world = generate(&settings);
        write(&world, one.path()).unwrap();
        write(&generate(&settings), two.path()).unwrap();
        for name in ["items.jsonl", "users.jsonl", "events.jsonl", "labels.jsonl"] {
            assert_eq!(std::fs::read(one.path().join(name)).unwrap(), std::fs::read(two.path().join(name)).unwrap());
        }
        let read = Dataset::load(one.path(), &ActionTable::default()).unwrap();
        assert_eq!(read, world.dataset());
        let labels = std::fs::read_to_string(one.path().join("labels.jsonl")).unwrap();
        let read: Vec<Label> = labels.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, world.labels);
    }
}

#[test]
fn every_event_is_one_that_the_service_accepts() {
    let decoder = EventDecoder::new(ActionTable::default(), BTreeMap::new());
    for kind in KINDS {
        let world = generate(&SynthSettings { kind, ..SMALL });
        for event in &world.events {
            let value = serde_json::to_value(event).unwrap();
            assert_eq!(&decoder.decode(&value, 1_790_000_000_000).unwrap(), event);
        }
        assert!(world.events.windows(2).all(|pair| pair[0].ts_ms <= pair[1].ts_ms));
    }
}

/// Expected and counted hits agree in 20 buckets of equal size.
pub(super) fn assert_calibrated(mut draws: Vec<(f64, bool)>) {
    draws.sort_by(|left, right| left.0.total_cmp(&right.0));
    for bucket in draws.chunks(draws.len().div_ceil(20)) {
        let expected: f64 = bucket.iter().map(|(chance, _)| chance).sum();
        let hits = bucket.iter().filter(|(_, hit)| *hit).count() as f64;
        let (from, to) = (bucket[0].0, bucket[bucket.len() - 1].0);
        assert!((hits - expected).abs() < 4.0 * expected.sqrt() + 1.0, "{from:.5}–{to:.5}: {hits} of {expected}");
    }
}

/// The true rate of that name of each impression, by user and time, which name a label as well.
fn rates_of(world: &World, name: &str) -> BTreeMap<(String, i64), f64> {
    let shown = world.events.iter().filter(|event| event.action == "impression");
    shown.map(|event| ((event.user_id.clone(), event.ts_ms), event.context[name].as_f64().unwrap())).collect()
}

#[test]
fn clicks_and_conversions_are_drawn_from_the_rates_of_the_impressions() {
    for kind in KINDS {
        let world = generate(&SynthSettings { kind, users: 2_000, events: 140_000, ..SMALL });
        let (click, conversion) = (rates_of(&world, "ctr"), rates_of(&world, "cvr"));
        let key = |label: &Label| (label.user_id.clone(), label.ts_ms);
        assert_eq!(click.len(), world.labels.len());
        assert_calibrated(world.labels.iter().map(|label| (click[&key(label)], label.clicked)).collect());
        let clicked = world.labels.iter().filter(|label| label.clicked);
        assert_calibrated(clicked.map(|label| (conversion[&key(label)], label.converted)).collect());
        assert!(world.labels.iter().all(|label| label.clicked || !label.converted));
    }
}

#[test]
fn clicked_labels_are_clicks_among_the_events() {
    for kind in KINDS {
        let world = generate(&SynthSettings { kind, ..SMALL });
        let mut events: BTreeMap<&str, Vec<&taiji::event::Event>> = BTreeMap::new();
        for event in &world.events {
            events.entry(&event.user_id).or_default().push(event);
        }
        for label in &world.labels {
            let own = &events[label.user_id.as_str()];
            let place =
                own.iter().position(|event| event.action == "impression" && event.ts_ms == label.ts_ms).unwrap();
            assert_eq!(own[place].item_id.as_ref(), Some(&label.item_id));
            let next = own.get(place + 1);
            let clicked = next.is_some_and(|event| event.action == "click" && event.item_id == own[place].item_id);
            assert_eq!(clicked, label.clicked);
        }
    }
}

/// The events without what the knob or a reader of the truth could see.
fn without_rates(world: &World) -> Vec<taiji::event::Event> {
    let mut events = world.events.clone();
    for event in events.iter_mut().filter(|event| event.action == "impression") {
        event.context.clear();
    }
    events
}

#[test]
fn neither_demand_nor_the_draw_of_labels_moves_what_people_do() {
    for kind in KINDS {
        let calm = generate(&SynthSettings { kind, conflict: Some(Conflict::None), ..SMALL });
        let torn = generate(&SynthSettings { kind, conflict: Some(Conflict::Kept60), ..SMALL });
        assert_eq!(without_rates(&calm), without_rates(&torn));
        assert_eq!(calm.users, torn.users);
        assert_ne!(calm.labels, torn.labels);
        let default = if kind == WorldKind::Reason { Conflict::Kept80 } else { Conflict::None };
        let by_name = generate(&SynthSettings { kind, conflict: Some(default), ..SMALL });
        assert_eq!(by_name, generate(&SynthSettings { kind, ..SMALL }));
    }
}

#[test]
fn the_true_rates_of_impressions_reach_no_input() {
    for kind in KINDS {
        let world = generate(&SynthSettings { kind, ..SMALL });
        let blind = World { events: without_rates(&world), ..world.clone() };
        assert_ne!(world.events, blind.events);
        assert_eq!(world.dataset(), blind.dataset());
    }
}

#[test]
fn more_users_leave_the_first_ones_and_their_labels_as_they_were() {
    for kind in KINDS {
        let few = generate(&SynthSettings { kind, users: 150, events: 10_000, ..SMALL });
        let more = generate(&SynthSettings { kind, ..SMALL });
        assert_eq!(few.users[..], more.users[..150]);
        let known: std::collections::BTreeSet<&String> = few.users.iter().map(|user| &user.user_id).collect();
        let kept: Vec<Label> = more.labels.iter().filter(|label| known.contains(&label.user_id)).cloned().collect();
        assert_eq!(few.labels, kept);
        assert_eq!((few.ctcvr(3, 77), few.ctcvr(150, 0)), (more.ctcvr(3, 77), None));
    }
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
        let prompt = render(&schema, &example.prompt, PromptMode::Think, &|_| 0);
        let text = example.completion(PromptMode::Think, schema.max_title_chars, &mut random);
        let parsed = parse(&text, PromptMode::Think);
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
