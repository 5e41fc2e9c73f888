//! Points, joins and the model on generated worlds.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use taiji::event::{ActionTable, Item, ItemState};

use super::batch::{Batch, FeatureDropout};
use super::inputs::Row;
use super::session::RankSession;
use super::*;
use crate::data::{Behaviour, Cut, Dataset, Label, UserRow};
use crate::nn::Module;
use crate::synth::{SynthSettings, World, WorldKind, generate};

const DIN: Arch = Arch::Din { width: 1.0 };

fn world(users: usize) -> (World, Dataset) {
    let settings = SynthSettings { kind: WorldKind::Reason, users, ..SynthSettings::default() };
    let world = generate(&settings);
    let dataset =
        Dataset::from_records(world.items.clone(), world.users.clone(), world.events.clone(), &ActionTable::default());
    (world, dataset)
}

fn encoded(
    dataset: &Dataset,
    all: &[Point],
    features: &[Option<Features>],
    codes: (usize, usize),
) -> (Vocabulary, Inputs) {
    let cross = features.iter().flatten().any(|features| !features.cross.is_empty());
    let vocabulary = Vocabulary::of(dataset, all, FeatureShape { codes, cross });
    let of = |point: &Point| {
        let place = all.iter().position(|other| std::ptr::eq(other, point)).unwrap();
        features.get(place).and_then(Option::as_ref)
    };
    let inputs = Inputs::encode(dataset, &vocabulary, all, of, (20, 5)).unwrap();
    (vocabulary, inputs)
}

#[test]
fn a_point_is_a_session_and_sees_only_what_lay_before_it() {
    let (world, dataset) = world(40);
    let mut labels = world.labels.clone();
    labels.push(Label { user_id: "nobody".into(), ..labels[0].clone() });
    labels.push(Label { item_id: "nothing".into(), ..labels[0].clone() });
    let (all, left_out) = points(&dataset, &labels);
    assert_eq!(left_out, LeftOut { unknown_users: 1, unknown_items: 1 });
    assert_eq!(all.iter().map(|point| point.impressions.len()).sum::<usize>(), world.labels.len());
    for point in &all {
        let user = &dataset.users[point.user];
        let seen = user.engagements_before(point.cut);
        assert!(seen.iter().all(|behaviour| behaviour.ts_ms < point.cut.before_ms));
        // The next one is of the session itself, or came later.
        let next = user.engagements.get(seen.len());
        assert!(next.is_none_or(|behaviour| behaviour.ts_ms >= point.cut.before_ms));
    }
    assert!(all.is_sorted_by_key(|point| point.cut.before_ms));
    assert!(all.iter().any(|point| point.impressions.iter().any(|one| one.converted)));
}

#[test]
fn features_of_the_time_of_an_impression_or_later_are_refused_and_never_joined() {
    let (world, dataset) = world(10);
    let (all, _) = points(&dataset, &world.labels);
    let point = all.last().unwrap();
    let vocabulary = Vocabulary::of(&dataset, &all, FeatureShape::default());
    let features = |made_ms| Features { made_ms, intra: None, cross: vec![] };
    let encode = |features: &Features| {
        Inputs::encode(&dataset, &vocabulary, std::slice::from_ref(point), |_| Some(features), (20, 5))
    };
    assert!(encode(&features(point.cut.before_ms - 1)).is_ok());
    let refused = encode(&features(point.cut.before_ms)).unwrap_err().to_string();
    assert!(refused.contains("join them as of the impression"), "{refused}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("features.jsonl");
    let user = &dataset.users[point.user].user_id;
    let line = |user: &str, made: i64, code: u32, item: &str| {
        format!(
            "{{\"user_id\":\"{user}\",\"generated_at_ms\":{made},\"sparse_ids\":[{code},2],\"item_ids\":[\"{item}\"]}}\n"
        )
    };
    let at = point.cut.before_ms;
    let item = &dataset.items[3].id;
    let text =
        [line(user, at, 9, item), line(user, at - 5, 7, item), line(user, at - 9, 5, "none"), line("x", at, 1, item)];
    std::fs::write(&path, text.concat()).unwrap();
    let log = FeatureLog::read(&path, &dataset).unwrap();
    let joined = log.as_of(point.user, at).unwrap();
    assert_eq!((joined.intra.as_deref(), joined.cross.as_slice()), (Some([7, 2].as_slice()), [3].as_slice()));
    assert_eq!((log.shape().codes, log.unknown_users, log.unknown_items), ((2, 10), 1, 1));
    assert!(log.as_of(point.user, at - 9).is_none());
}

/// Beside a slow formula on one impression: the unit's parts are added, not joined.
#[test]
fn every_parameter_gets_a_gradient_and_absent_features_change_nothing_else() {
    let (world, dataset) = world(12);
    let (all, _) = points(&dataset, &world.labels);
    let features: Vec<_> = (0..all.len())
        .map(|place| {
            let codes = vec![place as u32 % 4, 1];
            (place % 2 == 0).then_some(Features { made_ms: 0, intra: Some(codes), cross: vec![place % 7, 3] })
        })
        .collect();
    let (vocabulary, inputs) = encoded(&dataset, &all, &features, (2, 4));
    for arch in [DIN, Arch::Tokenmixer(MixerSettings::default()), Arch::OnePiece(OnePieceSettings::default())] {
        gradients_and_absence(&RankModel::random(&vocabulary, &arch, 3).unwrap(), &inputs);
    }
    // Anchors of other kinds are not the same anchors.
    let mut turned = vocabulary.clone();
    turned.anchors.iter_mut().for_each(|kinds| kinds.rotate_left(1));
    let rows: Vec<&Row> = inputs.rows.iter().collect();
    let [one, other] = [&vocabulary, &turned].map(|vocabulary| {
        let model = RankModel::random(vocabulary, &Arch::OnePiece(OnePieceSettings::default()), 3).unwrap();
        model.logits(&Batch::of(&rows, &model, None).unwrap()).unwrap()
    });
    assert!((one - other).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 1e-6);
}

fn gradients_and_absence(model: &RankModel, inputs: &Inputs) {
    let rows: Vec<&Row> = inputs.rows.iter().collect();
    let batch = Batch::of(&rows, model, None).unwrap();
    let loss = model.loss(&batch, true).unwrap();
    let store = loss.backward().unwrap();
    for parameter in model.parameters() {
        let gradient = store.get(&parameter.var).unwrap_or_else(|| panic!("{}", parameter.name));
        let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(norm.is_finite() && norm > 0.0, "{}: {norm}", parameter.name);
    }
    // One point alone, padded differently, has the logits that it has among all.
    let whole = model.logits(&batch).unwrap().to_vec2::<f32>().unwrap();
    let mut first = 0;
    for row in &rows {
        let alone = model.logits(&Batch::of(&[row], model, None).unwrap()).unwrap().to_vec2::<f32>().unwrap();
        for (one, other) in alone.iter().flatten().zip(whole[first..].iter().flatten()) {
            assert!((one - other).abs() < 1e-5, "{one} {other}");
        }
        first += row.shown.len();
    }
    // Left out at random, always: as if nobody had features.
    let all_out = FeatureDropout { rate: 1.0 - 1e-12, seed: 1, step: 1 };
    let left = model.logits(&Batch::of(&rows, model, Some(&all_out)).unwrap()).unwrap();
    let bare: Vec<Row> = inputs.rows.iter().map(|row| Row { intra: None, cross: vec![], ..row.clone() }).collect();
    let none = model.logits(&Batch::of(&bare.iter().collect::<Vec<_>>(), model, None).unwrap()).unwrap();
    let apart = |one: &Tensor, other: &Tensor| {
        (one - other).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    assert!(apart(&left, &none) < 1e-6);
    assert!(apart(&model.logits(&batch).unwrap(), &none) > 1e-4);
}

/// With codes and without, whatever is absent: the graph says what the model says, and a folder gives back what was written into it.
#[test]
fn graph_and_folder_say_what_the_model_says() {
    let (world, dataset) = world(30);
    let (all, _) = points(&dataset, &world.labels);
    let plain = MixerSettings {
        revert: false,
        experts: 0,
        residual_every: 0,
        auxiliary: 0.0,
        blocks: 1,
        ..MixerSettings::default()
    };
    let short = OnePieceSettings { anchors: 0, reasoning: false, layers: 1, ..OnePieceSettings::default() };
    let with = |tokenmixer: Option<MixerSettings>, onepiece: Option<OnePieceSettings>| RankSettings {
        epochs: 1,
        threads: 1,
        tokenmixer,
        onepiece,
        ..RankSettings::default()
    };
    for (codes, settings) in [
        ((2, 4), with(None, None)),
        ((0, 0), with(None, None)),
        ((2, 4), with(Some(MixerSettings::default()), None)),
        ((0, 0), with(Some(plain), None)),
        ((2, 4), with(None, Some(OnePieceSettings::default()))),
        ((0, 0), with(None, Some(short))),
    ] {
        let features: Vec<_> = (0..all.len())
            .map(|place| {
                let codes = (place % 3 > 0).then(|| vec![place as u32 % 5, 1]);
                let cross = (0..place % 4).map(|item| (item + place) % 90).collect();
                (place % 2 == 0).then_some(Features { made_ms: 0, intra: codes, cross })
            })
            .collect();
        let (vocabulary, mut inputs) = encoded(&dataset, &all, &features, codes);
        inputs.rows[0].history.clear();
        inputs.rows[1].words.clear();
        let folder = tempfile::tempdir().unwrap();
        let (model, report, _) = train(&settings, &vocabulary, [&inputs; 3], folder.path(), &mut |_| {}).unwrap();
        println!("codes {codes:?}: {} apart", report.graph_apart);
        assert!(report.graph_apart < 1e-5);

        // Users alone, one of them with nothing at all, and candidates of many.
        let mut session = RankSession::open(&folder.path().join("onnx"), &model, 1).unwrap();
        let bare = Row {
            profile: vec![0; inputs.rows[0].profile.len()],
            intra: None,
            cross: vec![],
            ..inputs.rows[0].clone()
        };
        for row in [&bare, &inputs.rows[1], &inputs.rows[2]] {
            let chances = session.score(&[row]).unwrap();
            let expected = score(&model, &Inputs { rows: vec![row.clone()] }).unwrap();
            assert_eq!(chances.len(), row.shown.len());
            for (one, other) in chances.iter().zip(&expected) {
                assert!((f64::from(one[0]) - other.click).abs() < 1e-5);
            }
        }
        // Another model's graph does not pass.
        let other = RankModel::random(&vocabulary, &settings.arch(), 99).unwrap();
        let refused = session.compare(&score(&other, &inputs).unwrap(), &inputs).unwrap_err().to_string();
        assert!(refused.starts_with("chances of the ONNX graph and of the model differ by"), "{refused}");

        let mut turned = dataset.clone();
        turned.items.reverse();
        turned.items.push(Item { id: "new".into(), ..turned.items[0].clone() });
        let loaded = Ranker::load(folder.path(), &dataset).unwrap();
        assert_eq!((loaded.limits, loaded.unknown_items), ((50, 20), 0));
        let of = |point: &Point| {
            let place = all.iter().position(|other| std::ptr::eq(other, point)).unwrap();
            features.get(place).and_then(Option::as_ref)
        };
        let again = Inputs::encode(&dataset, &loaded.vocabulary, &all, of, (20, 5)).unwrap();
        assert_eq!(again.rows[2..], inputs.rows[2..]);
        assert_eq!(score(&loaded.model, &inputs).unwrap(), score(&model, &inputs).unwrap());
        // Numbers belong to names, not to places in the catalogue.
        let elsewhere = Ranker::load(folder.path(), &turned).unwrap();
        assert_eq!(elsewhere.unknown_items, 1);
        assert!(elsewhere.vocabulary.items.iter().rev().skip(1).eq(loaded.vocabulary.items.iter()));
        assert_eq!(elsewhere.vocabulary.items.last(), Some(&[0; 6]));
    }
}

/// Users who click on what is of the kind that they looked at last, nine times in ten, and else one time in ten; every second user has
/// no history. Half of the clicks convert. Who knows the kind has an AUC of about .857.
fn fashions(count: usize) -> (Dataset, Vec<Point>, Vec<usize>) {
    let item = |place: usize| Item {
        id: format!("i{place}"),
        title: "t".into(),
        categories: vec!["all".into(), "all".into(), format!("kind {}", place % 4)],
        brand: None,
        price: None,
        state: ItemState::Active,
    };
    let mut dataset = Dataset { items: (0..40).map(item).collect(), ..Dataset::default() };
    dataset.item_index = dataset.items.iter().enumerate().map(|(place, item)| (item.id.clone(), place)).collect();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let (mut all, mut kinds) = (Vec::new(), Vec::new());
    for user in 0..count {
        let looked: Vec<usize> = (0..3 * (user % 2)).map(|_| random.random_range(0..40)).collect();
        let kind = looked.last().map_or_else(|| random.random_range(0..4), |item| item % 4);
        let behaviour = |(place, &item): (usize, &usize)| Behaviour {
            ts_ms: place as i64,
            event_id: place.to_string(),
            item_id: format!("i{item}"),
            item: Some(item),
            action: "click".into(),
            domain: None,
            value: None,
        };
        let engagements = looked.iter().enumerate().map(behaviour).collect();
        dataset.users.push(UserRow { user_id: format!("{user:05}"), engagements, ..UserRow::default() });
        let mut shown = || {
            let item = random.random_range(0..40);
            let clicked = random.random_bool(if item % 4 == kind { 0.9 } else { 0.1 });
            Impression { item, clicked, converted: clicked && random.random_bool(0.5) }
        };
        let impressions = (0..6).map(|_| shown()).collect();
        all.push(Point { user, cut: Cut { engagements: looked.len(), before_ms: 10 }, domain: None, impressions });
        kinds.push(kind);
    }
    (dataset, all, kinds)
}

fn fitted(
    settings: &RankSettings,
    dataset: &Dataset,
    all: &[Point],
    features: &[Option<Features>],
) -> (Vec<Scored>, RankReport) {
    let (vocabulary, inputs) = encoded(dataset, all, features, (1, 4));
    let (training, tested) = inputs.rows.split_at(inputs.rows.len() * 3 / 4);
    let part = |rows: &[Row]| Inputs { rows: rows.to_vec() };
    let test = part(tested);
    let folder = tempfile::tempdir().unwrap();
    let parts = [&part(training), &part(&tested[..tested.len() / 3]), &test];
    let (model, report, _) = train(settings, &vocabulary, parts, folder.path(), &mut |_| {}).unwrap();
    (score(&model, &test).unwrap(), report)
}

/// Of clicks, for users with a history (odd) or without.
fn area(scored: &[Scored], parity: usize) -> f64 {
    let of = scored.iter().filter(|one| one.user % 2 == parity);
    crate::stats::auc(of.map(|one| (one.click, one.clicked))).unwrap()
}

/// What a lift would be judged by must be there to be seen: the ranker reads histories, codes and cross-user sequences, each for itself,
/// and gets on without them.
#[test]
fn it_reads_histories_codes_and_cross_user_sequences() {
    let (dataset, all, kinds) = fashions(1_600);
    let settings = RankSettings {
        epochs: 8,
        batch: 32,
        warmup: 20,
        lr: 4e-3,
        validate_every: 50,
        threads: 1,
        ..RankSettings::default()
    };
    let (none, report) = fitted(&settings, &dataset, &all, &[]);
    println!("without features: {} with a history, {} without", area(&none, 1), area(&none, 0));
    assert!(area(&none, 1) > 0.78 && (area(&none, 0) - 0.5).abs() < 0.1);
    assert!((report.click.predicted_over_observed - 1.0).abs() < 0.15, "{}", report.click.predicted_over_observed);
    assert!((report.ctcvr.predicted_over_observed - 1.0).abs() < 0.2, "{}", report.ctcvr.predicted_over_observed);

    let with = |intra: bool| -> Vec<Option<Features>> {
        let of = |kind: &usize| {
            let cross = if intra { vec![] } else { vec![*kind, kind + 4, kind + 8] };
            Some(Features { made_ms: 0, intra: intra.then(|| vec![*kind as u32]), cross })
        };
        kinds.iter().map(of).collect()
    };
    let mixer = RankSettings { tokenmixer: Some(MixerSettings::default()), epochs: 4, ..settings.clone() };
    let small = OnePieceSettings { layers: 1, width: 32, heads: 2, hidden: 64, ..OnePieceSettings::default() };
    let onepiece = RankSettings { onepiece: Some(small), epochs: 4, lr: 2e-3, ..settings.clone() };
    for (name, settings, features) in [
        ("codes", &settings, with(true)),
        ("cross-user sequences", &settings, with(false)),
        ("codes, by a token mixer", &mixer, with(true)),
        ("cross-user sequences, by a OnePiece", &onepiece, with(false)),
    ] {
        let (scored, _) = fitted(settings, &dataset, &all, &features);
        println!("with {name}: {} with a history, {} without", area(&scored, 1), area(&scored, 0));
        assert!(area(&scored, 0) > 0.78 && area(&scored, 1) > 0.78, "{name}");
        if name == "codes" {
            let again = fitted(&RankSettings { threads: 2, ..settings.clone() }, &dataset, &all, &features);
            assert_eq!(again.0, scored, "the same with two threads");
        }
    }
}

#[test]
fn a_constant_label_and_bad_settings_are_named() {
    let (world, dataset) = world(12);
    let labels: Vec<Label> = world.labels.iter().map(|label| Label { converted: false, ..label.clone() }).collect();
    let (all, _) = points(&dataset, &labels);
    let (vocabulary, inputs) = encoded(&dataset, &all, &[], (0, 0));
    let folder = tempfile::tempdir().unwrap();
    let refused = |settings: &RankSettings| {
        train(settings, &vocabulary, [&inputs; 3], folder.path(), &mut |_| {}).err().unwrap().to_string()
    };
    let message = refused(&RankSettings::default());
    assert!(message.starts_with("among the training impressions converted is constant: 0 of"), "{message}");
    for (settings, start) in [
        (RankSettings { epochs: 0, ..RankSettings::default() }, "epochs must be positive"),
        (RankSettings { test_share: 0.0, ..RankSettings::default() }, "test_share must be above 0"),
        (RankSettings { feature_dropout: 1.0, ..RankSettings::default() }, "feature_dropout"),
        (RankSettings { last_lr: 1.0, ..RankSettings::default() }, "last_lr"),
        (
            RankSettings {
                onepiece: Some(OnePieceSettings::default()),
                catalogue_points: 5,
                ..RankSettings::default()
            },
            "catalogue_points needs",
        ),
        (
            RankSettings { tokenmixer: Some(MixerSettings::default()), width: 2.0, ..RankSettings::default() },
            "width is of DIN's",
        ),
    ] {
        assert!(refused(&settings).starts_with(start));
    }
}

#[test]
fn a_catalogue_is_ranked_as_impressions_are_scored() {
    let (world, dataset) = world(12);
    let (all, _) = points(&dataset, &world.labels);
    let (vocabulary, inputs) = encoded(&dataset, &all, &[], (0, 0));
    let model = RankModel::random(&vocabulary, &DIN, 3).unwrap();
    let clicked: Vec<&Point> = all.iter().filter(|point| point.impressions.iter().any(|one| one.clicked)).collect();
    let lists = catalogue_ndcg(&model, &vocabulary, &all, &inputs, (usize::MAX, None)).unwrap();
    assert_eq!(lists.len(), clicked.len());
    assert!(lists.iter().all(|list| [list.catalogue, list.shown].iter().all(|worth| (0.0..=1.0).contains(worth))));

    // By hand: impressions of every item at the first such point.
    let point = clicked[0];
    let every = (0..dataset.items.len()).map(|item| Impression { item, clicked: false, converted: false });
    let asked = Point { impressions: every.collect(), ..point.clone() };
    let row = Inputs::encode(&dataset, &vocabulary, &[asked], |_| None, (20, 5)).unwrap();
    let scores: Vec<f64> = score(&model, &row).unwrap().iter().map(|one| one.click).collect();
    let items: Vec<usize> = point.impressions.iter().filter(|one| one.clicked).map(|one| one.item).collect();
    let worth = |item: &usize| crate::evaluate::ndcg(crate::evaluate::rank_by_score(&scores, *item), 10);
    let by_hand = items.iter().map(worth).sum::<f64>() / items.len() as f64;
    assert!((lists[0].catalogue - by_hand).abs() < 1e-9, "{} {by_hand}", lists[0].catalogue);
    let popular: Vec<f64> = (0..dataset.items.len()).map(|item| if item == items[0] { 1e3 } else { 0.0 }).collect();
    let five = catalogue_ndcg(&model, &vocabulary, &all, &inputs, (5, Some(&popular))).unwrap();
    assert_eq!(five.len(), 5);
    assert_eq!((five[0].shown, five[0].catalogue > 0.999 / items.len() as f64), (lists[0].shown, true));
    let clicks = popularity(&all, dataset.items.len());
    let at_first = all.iter().flat_map(|point| &point.impressions).filter(|one| one.clicked && one.item == items[0]);
    assert!((clicks[items[0]] - (1.0 + at_first.count() as f64).ln()).abs() < 1e-12);
}
