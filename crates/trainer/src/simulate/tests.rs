//! Tables, means, grounding and figures.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::data::{DEFAULT_TARGET, Dataset, test_cases};
use crate::rank::{FeatureShape, Inputs, RankSettings, Ranker, Vocabulary, points, train};
use crate::synth::{SynthSettings, World, WorldKind, generate};
use taiji::event::{ActionTable, Item, ItemState};

pub(crate) fn world() -> (World, Dataset) {
    let settings = SynthSettings { kind: WorldKind::Reason, users: 40, ..SynthSettings::default() };
    let world = generate(&settings);
    let dataset =
        Dataset::from_records(world.items.clone(), world.users.clone(), world.events.clone(), &ActionTable::default());
    (world, dataset)
}

pub(crate) fn ranker(world: &World, dataset: &Dataset, folder: &std::path::Path) -> Ranker {
    let (all, _) = points(dataset, &world.labels);
    let vocabulary = Vocabulary::of(dataset, &all, FeatureShape::default());
    let inputs = Inputs::encode(dataset, &vocabulary, &all, |_| None, (20, 5)).unwrap();
    let settings = RankSettings { epochs: 1, threads: 1, history: 20, ..RankSettings::default() };
    train(&settings, &vocabulary, [&inputs; 3], folder, &mut |_| {}).unwrap();
    Ranker::load(folder, dataset).unwrap()
}

#[test]
fn a_table_has_what_the_ranker_says_and_falls_back_by_category() {
    let (world, dataset) = world();
    let folder = tempfile::tempdir().unwrap();
    let ranker = ranker(&world, &dataset, folder.path());
    let cases = test_cases(&dataset, DEFAULT_TARGET, 10, usize::MAX).cases;
    let users: Vec<User> = cases.iter().map(|case| User { user: case.user, cut: case.cut }).collect();
    let settings = SimulatorSettings { per_top: 2, per_leaf: 3, ..SimulatorSettings::default() };
    let build = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Simulator::build(&dataset, &users, &ranker, &settings).unwrap())
    };
    let simulator = build(1);
    let (count, pairs, coverage) = simulator.size();
    assert_eq!(count, users.len());
    assert!((coverage - pairs as f64 / (count * dataset.items.len()) as f64).abs() < 1e-12 && coverage < 0.1);

    // A pair is what the ranker says of it alone.
    let row = simulator.row(&cases[0].user_id).unwrap();
    let impression = |item| crate::rank::Impression { item, clicked: false, converted: false };
    let (mut levels, mut telemetry) = (std::collections::BTreeSet::new(), Telemetry::default());
    for item in 0..dataset.items.len() {
        let known = simulator.look_up(row, item);
        levels.insert(known.level);
        telemetry.count(Some(known.level));
        assert!((0.0..=1.0).contains(&known.ctcvr));
        let newest = dataset.users[cases[0].user].engagements_before(cases[0].cut).last().unwrap();
        let impressions = vec![impression(item)];
        let point = crate::rank::Point { user: cases[0].user, cut: cases[0].cut, domain: newest.domain, impressions };
        let inputs = Inputs::encode(&dataset, &ranker.vocabulary, &[point], |_| None, ranker.limits).unwrap();
        let scored = crate::rank::score(&ranker.model, &inputs).unwrap()[0];
        if known.level == Level::Pair {
            assert!((known.ctcvr - scored.click * scored.conversion).abs() < 1e-6);
        }
    }
    // Categories are first levels and leaves below a second one: a draw of each first level leaves leaves out.
    assert!(levels.contains(&Level::Pair) && levels.contains(&Level::L3), "{levels:?}");
    assert_eq!(telemetry.answers as usize, dataset.items.len());
    assert!((telemetry.hit_rate() - telemetry.levels[&Level::Pair] as f64 / dataset.items.len() as f64).abs() < 1e-12);

    // The same bytes with two threads, and after a way through a folder.
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    simulator.write(one.path()).unwrap();
    build(2).write(two.path()).unwrap();
    for name in ["simulator.safetensors", "simulator.json"] {
        assert_eq!(std::fs::read(one.path().join(name)).unwrap(), std::fs::read(two.path().join(name)).unwrap());
    }
    let mut fewer = dataset.items.clone();
    fewer.reverse();
    let gone = fewer.pop().unwrap();
    let again = Simulator::load(one.path(), &fewer).unwrap();
    for (place, item) in fewer.iter().enumerate() {
        let before = simulator.look_up(row, dataset.item_index[&item.id]);
        if before.level == Level::Pair {
            assert_eq!(again.look_up(row, place), before);
        }
    }
    // An item of today that the table never knew: its rewards would be made up.
    let mut more = dataset.items.clone();
    more.push(Item { id: "new".into(), ..gone });
    let refused = Simulator::load(one.path(), &more).unwrap_err().to_string();
    assert!(refused.contains("without 1 of the items, new among them"), "{refused}");
    // A file cut short.
    let path = one.path().join("simulator.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
    assert!(Simulator::load(one.path(), &dataset.items).unwrap_err().to_string().contains("simulator.safetensors"));

    let none = Simulator::build(&dataset, &[], &ranker, &settings).unwrap_err().to_string();
    assert!(none.contains("no user"), "{none}");
    let refused = SimulatorSettings { per_top: 0, ..settings }.check().unwrap_err().to_string();
    assert_eq!(refused, "per_top must be positive");
}

fn item(id: &str, title: &str, categories: &[&str]) -> Item {
    Item {
        id: id.into(),
        title: title.into(),
        categories: categories.iter().map(ToString::to_string).collect(),
        brand: None,
        price: None,
        state: ItemState::Active,
    }
}

#[test]
fn a_title_is_looked_for_in_the_category_that_the_answer_names() {
    let grounder = CategoryGrounder::new(&[
        item("1", "Blue Steel Kettle", &["Home", "Kitchen", "Kettles"]),
        item("2", "Blue Steel Kettle Large", &["Camping", "Cooking", "Kettles"]),
        item("3", "Garden Hose", &["Garden", "Water", "Hoses"]),
    ]);
    assert_eq!(grounder.ground("Home > Kitchen > Kettles: Blue Steel Kettle"), Some(0));
    assert_eq!(grounder.ground("camping > cooking > kettles: blue steel kettle"), Some(1));
    // The leaf is wrong, the level above it right.
    assert_eq!(grounder.ground("Camping > Cooking > Pans: Blue Steel Kettle"), Some(1));
    // Nothing of the kind in the category that it names: no item, wherever else there is one.
    assert_eq!(grounder.ground("Garden > Water > Hoses: Blue Steel Kettle"), None);
    // No path: the whole catalogue.
    assert_eq!(grounder.ground("Blue Steel Kettle"), Some(0));
    assert_eq!(grounder.ground("Nonsense > Kitchen: Garden Hose"), Some(2));
    assert_eq!(grounder.ground("Home > Kitchen > Kettles"), None);
    assert_eq!(grounder.ground(""), None);
}

#[test]
fn figures_of_choices_are_those_of_hand() {
    let pair = |ctcvr| Known { ctcvr, level: Level::Pair };
    let mean = |ctcvr| Known { ctcvr, level: Level::Mean };
    // Right: .4 of .4; wrong: .1 of .3; a fallback is chosen, too, but has no part in the correlation.
    let choices: Vec<Choice> = (0..40)
        .map(|user| match user % 4 {
            0 => Choice { items: vec![(pair(0.9), 0.4), (pair(0.5), 0.2), (pair(0.1), 0.0)] },
            1 => Choice { items: vec![(pair(0.1), 0.3), (pair(0.8), 0.1), (pair(0.2), 0.2)] },
            2 => Choice { items: vec![(mean(0.9), 0.3), (pair(0.1), 0.1)] },
            _ => Choice::default(),
        })
        .collect();
    let mut telemetry = Telemetry::default();
    [Some(Level::Pair), Some(Level::L3), Some(Level::Pair), None].into_iter().for_each(|level| telemetry.count(level));
    let found = figures(&choices, telemetry).unwrap();
    assert_eq!((found.users, found.users_without_items, found.spearman_users), (30, 10, 20));
    let close = |one: f64, other: f64| assert!((one - other).abs() < 1e-12, "{one} {other}");
    close(found.chosen, (0.4 + 0.1 + 0.3) / 3.0);
    close(found.best, 1.0 / 3.0);
    close(found.drawn, 0.2);
    close(found.share.estimate, 0.8);
    close(found.gain_share.estimate, 0.5);
    // 1 and −1.
    close(found.spearman.estimate, 0.0);
    assert_eq!((found.hit_rate, found.ungrounded_share), (0.5, 0.25));
    assert!(figures(&[Choice::default()], Telemetry::default()).is_err());
}
