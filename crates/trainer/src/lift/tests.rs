//! Moments, generations, neighbours and lines on a generated world; vectors are made up, so that no model is needed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::backfill::{Entry, is_before_day};
use super::*;
use crate::data::{DEFAULT_TARGET, Dataset, UserRow, day_of, next_target};
use crate::rank::{FeatureLine, Features, Inputs, Point, RankSettings, Vocabulary, points, train};
use crate::synth::{SynthSettings, WorldKind, generate};
use std::collections::HashSet;
use taiji::event::ActionTable;
use taiji::quantize::PqCodebook;

const DIM: usize = 8;

fn world(users: usize) -> (Dataset, Vec<Point>) {
    let settings = SynthSettings { kind: WorldKind::Reason, users, ..SynthSettings::default() };
    let world = generate(&settings);
    let dataset =
        Dataset::from_records(world.items.clone(), world.users.clone(), world.events.clone(), &ActionTable::default());
    let (points, _) = points(&dataset, &world.labels);
    (dataset, points)
}

/// The newest item decides: who did the same last is near.
fn embedded(dataset: &Dataset, moment: &Moment) -> Embedded {
    let newest = dataset.users[moment.user].engagements_before(moment.cut).last().and_then(|last| last.item);
    let number = newest.unwrap_or(0);
    let mut vector: Vec<f32> = (0..DIM).map(|place| ((number * 31 + place * 17) % 13) as f32 - 6.0).collect();
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|value| *value /= norm);
    Embedded { text: format!("item {number}"), vector }
}

fn backfill(dataset: &Dataset, points: &[Point], settings: &BackfillSettings) -> (Backfill, Generations) {
    let generations = Generations::of(points, settings.generations);
    let of_points = points.iter().zip(moments(dataset, points, settings));
    let of_points = of_points.filter_map(|(point, moment)| {
        let moment = moment?;
        Some((point.cut.before_ms, moment, embedded(dataset, &moment)))
    });
    let members = member_moments(dataset, &generations, settings.min_engagements).into_iter();
    let members = members.map(|all| all.into_iter().map(|moment| (moment, embedded(dataset, &moment))).collect());
    (Backfill::new(&generations, of_points.collect(), members.collect()), generations)
}

/// Four codes in each of two slots.
fn codebook() -> PqCodebook {
    let centroids = (0..4 * DIM).map(|place| ((place * 7) % 11) as f32 / 11.0 - 0.5).collect();
    PqCodebook::new(2, 4, DIM, centroids, None).unwrap()
}

fn parts<'a>(dataset: &'a Dataset, backfill: &'a Backfill, codebook: &'a PqCodebook) -> Parts<'a> {
    Parts { dataset, backfill, codes: Some(Codes::Product(codebook)), encoder: None, items: None }
}

fn lines(dataset: &Dataset, points: &[Point], backfill: &Backfill, settings: &FeatureSettings) -> Vec<FeatureLine> {
    let codebook = codebook();
    let items = item_vectors(dataset, 4, 1);
    let parts = Parts { items: Some(&items), ..parts(dataset, backfill, &codebook) };
    feature_lines(&parts, points, settings).unwrap()
}

fn user<'a>(dataset: &'a Dataset, id: &str) -> &'a UserRow {
    &dataset.users[dataset.users.binary_search_by(|row| row.user_id.as_str().cmp(id)).unwrap()]
}

#[test]
fn a_moment_is_before_its_point_and_as_old_as_was_asked() {
    let (dataset, points) = world(30);
    let now = moments(&dataset, &points, &BackfillSettings::default());
    let day = 24 * 60 * 60 * 1000;
    let old = moments(&dataset, &points, &BackfillSettings { age_ms: 7 * day, ..BackfillSettings::default() });
    let behind = moments(&dataset, &points, &BackfillSettings { sessions_behind: 2, ..BackfillSettings::default() });
    for (place, point) in points.iter().enumerate() {
        let sessions: Vec<i64> =
            points.iter().filter(|other| other.user == point.user).map(|other| other.cut.before_ms).collect();
        let number = sessions.iter().position(|ms| *ms == point.cut.before_ms).unwrap();
        if let Some(moment) = now[place] {
            assert_eq!((moment.user, moment.cut), (point.user, point.cut));
        }
        if let Some(moment) = old[place] {
            assert_eq!(moment.cut.before_ms, point.cut.before_ms - 7 * day);
            let seen = dataset.users[point.user].engagements_before(moment.cut);
            assert!(seen.iter().all(|behaviour| behaviour.ts_ms < moment.cut.before_ms));
        }
        let expected = number.checked_sub(2).map(|earlier| sessions[earlier]);
        assert!(behind[place].is_none_or(|moment| Some(moment.cut.before_ms) == expected));
        assert!(expected.is_some() || behind[place].is_none());
    }
    let count = |all: &[Option<Moment>]| all.iter().flatten().count();
    assert!(count(&now) > points.len() / 2 && count(&behind) > points.len() / 3);
    let refused = BackfillSettings { age_ms: -1, ..BackfillSettings::default() }.check().unwrap_err().to_string();
    assert_eq!(refused, "age_ms must not be negative, got -1");
}

#[test]
fn a_generation_begins_with_a_day_and_holds_what_lay_before_it() {
    let (mut dataset, points) = world(30);
    let generations = Generations::of(&points, 8);
    let starts = generations.starts_ms();
    assert!((2..=8).contains(&starts.len()) && starts.is_sorted());
    assert!(starts.iter().all(|start| *start == day_of(*start)));
    for point in &points {
        let place = generations.as_of(point.cut.before_ms).unwrap();
        assert!(starts[place] <= day_of(point.cut.before_ms));
        assert!(starts.get(place + 1).is_none_or(|next| *next > day_of(point.cut.before_ms)));
    }
    assert_eq!(generations.as_of(starts[0] - 1), None);
    dataset.users[3].profile.push(crate::data::ProfileValue {
        name: "cross_opt_out".into(),
        since_ms: 0,
        value: "true".into(),
    });
    let members = member_moments(&dataset, &generations, 5);
    for (generation, start) in members.iter().zip(starts) {
        for moment in generation {
            let seen = dataset.users[moment.user].engagements_before(moment.cut);
            assert!(seen.len() >= 5 && seen.iter().all(|behaviour| behaviour.ts_ms < *start) && moment.user != 3);
        }
    }
    assert!(members.last().unwrap().len() > 15);
}

#[test]
fn nobody_is_shown_to_himself_and_no_neighbour_shows_the_day_of_the_impression() {
    let (dataset, points) = world(40);
    let (made, _) = backfill(&dataset, &points, &BackfillSettings::default());
    for neighbour in [Rule::Vector, Rule::Random, Rule::Collaborative] {
        let settings = FeatureSettings { neighbour, ..FeatureSettings::default() };
        let all = lines(&dataset, &points, &made, &settings);
        assert_eq!(all, lines(&dataset, &points, &made, &settings));
        let mut with = 0;
        for line in all.iter().filter(|line| !line.item_ids.is_empty()) {
            let point_ms = line.point_ms.unwrap();
            assert!(line.generated_at_ms < point_ms && line.item_ids.len() <= 20 && line.sparse_ids.len() == 2);
            // Somebody else's newest items before the day, in their order; whose, only the items tell.
            let shows = |other: &UserRow| {
                let before = other.engagements.iter().rev().filter(|one| one.ts_ms < day_of(point_ms));
                before.take(20).map(|one| one.item_id.as_str()).eq(line.item_ids.iter().map(String::as_str))
            };
            let others: Vec<&UserRow> = dataset.users.iter().filter(|other| shows(other)).collect();
            assert!(others.iter().any(|other| other.user_id != line.user_id), "{neighbour:?} {}", line.user_id);
            with += 1;
        }
        assert!(with > all.len() / 3, "{neighbour:?}: {with} of {}", all.len());
    }
}

/// Who did the same last has the same vector: of those the one with most items in common is chosen.
#[test]
fn the_nearest_is_chosen_as_the_service_chooses() {
    let (dataset, points) = world(60);
    let (made, _) = backfill(&dataset, &points, &BackfillSettings::default());
    let members = &made.members.last().unwrap()[..];
    let entry = |place: usize| -> Entry { members[place] };
    let of = |entry: Entry| (entry.0, made.vector(entry.2));
    let index = neighbours::Members::new(&dataset, members.iter().map(|entry| of(*entry)), DIM).unwrap();
    let point_ms = points.last().unwrap().cut.before_ms;
    for place in 0..members.len() {
        let (user, as_of_ms, text) = entry(place);
        let moment = Moment::before(&dataset, user, as_of_ms);
        let chosen = index.nearest(&dataset, moment, point_ms, made.vector(text)).unwrap().unwrap();
        assert_ne!(chosen, user);
        let dot = |one: &[f32], other: &[f32]| one.iter().zip(other).map(|(one, other)| one * other).sum::<f32>();
        let own = made.vector(text);
        let best = members.iter().filter(|other| other.0 != user).map(|other| dot(own, made.vector(other.2)));
        let best = best.fold(f32::MIN, f32::max);
        let found = members.iter().find(|other| other.0 == chosen).unwrap();
        assert!(best - dot(own, made.vector(found.2)) <= 0.001 + 1e-5);
    }
    let nobody = neighbours::Members::new(&dataset, std::iter::empty(), DIM).unwrap();
    let moment = Moment::before(&dataset, 0, point_ms);
    assert_eq!(nobody.nearest(&dataset, moment, point_ms, made.vector(0)).unwrap(), None);
}

#[test]
fn permuted_features_are_somebody_elses_of_an_earlier_point() {
    let (dataset, points) = world(40);
    let (made, _) = backfill(&dataset, &points, &BackfillSettings::default());
    let own = lines(&dataset, &points, &made, &FeatureSettings::default());
    let all = lines(&dataset, &points, &made, &FeatureSettings { permute: true, ..FeatureSettings::default() });
    assert_eq!(own.len(), all.len());
    let mut moved = 0;
    for (place, line) in all.iter().enumerate() {
        assert_eq!((&line.user_id, line.point_ms), (&own[place].user_id, own[place].point_ms));
        if line.sparse_ids.is_empty() {
            continue;
        }
        let same = |other: &&FeatureLine| other.sparse_ids == line.sparse_ids && other.item_ids == line.item_ids;
        assert!(own[..place].iter().filter(same).any(|other| other.user_id != line.user_id));
        moved += usize::from(line.sparse_ids != own[place].sparse_ids || line.item_ids != own[place].item_ids);
    }
    assert!(moved > all.len() / 2);
}

/// A backfill whose generation is of the impression's own day, as a faulty maker would leave it.
#[test]
fn a_planted_future_is_refused() {
    let (dataset, points) = world(20);
    let (mut made, _) = backfill(&dataset, &points, &BackfillSettings::default());
    let late = points.last().unwrap().cut.before_ms + 1;
    made.members.iter_mut().flatten().for_each(|entry| entry.1 = late);
    assert!(!is_before_day(late, points[0].cut.before_ms));
    let codebook = codebook();
    let parts = parts(&dataset, &made, &codebook);
    let refused = feature_lines(&parts, &points, &FeatureSettings::default()).unwrap_err().to_string();
    assert!(refused.contains("is not before the day of") && refused.ends_with("make the stage backfill anew"));

    let (mut made, _) = backfill(&dataset, &points, &BackfillSettings::default());
    made.points.values_mut().for_each(|entry| entry.1 = late);
    let parts = Parts { backfill: &made, ..parts };
    let all = feature_lines(&parts, &points, &FeatureSettings::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("features.jsonl");
    crate::data::write_jsonl(&path, &all).unwrap();
    let log = crate::rank::FeatureLog::read(&path, &dataset).unwrap();
    let vocabulary = Vocabulary::of(&dataset, &points, log.shape());
    let as_of = |point: &Point| log.as_of(point.user, point.cut.before_ms);
    let refused = Inputs::encode(&dataset, &vocabulary, &points, as_of, (20, 5)).unwrap_err().to_string();
    assert!(refused.contains("join them as of the impression"), "{refused}");
}

#[test]
fn what_lacks_is_named() {
    let (dataset, points) = world(20);
    let (made, _) = backfill(&dataset, &points, &BackfillSettings::default());
    let codebook = codebook();
    let parts = parts(&dataset, &made, &codebook);
    let refused = |settings: FeatureSettings| feature_lines(&parts, &points, &settings).unwrap_err().to_string();
    let collaborative = FeatureSettings { neighbour: Rule::Collaborative, ..FeatureSettings::default() };
    assert!(refused(collaborative).starts_with("neighbour collaborative needs vectors of items"));
    let truth = FeatureSettings { truth: 0.5, ..FeatureSettings::default() };
    assert_eq!(refused(truth), "truth needs an encoder: name one in from");
}

#[test]
fn a_folder_gives_back_what_was_written() {
    let (dataset, points) = world(20);
    let (made, _) = backfill(&dataset, &points, &BackfillSettings::default());
    let folder = tempfile::tempdir().unwrap();
    made.write(&dataset, folder.path()).unwrap();
    let read = Backfill::read(folder.path(), &dataset).unwrap();
    assert_eq!((&read.points, &read.members, &read.generations), (&made.points, &made.members, &made.generations));
    assert_eq!((&read.texts, &read.vectors, read.dim), (&made.texts, &made.vectors, DIM));
    let mut fewer = dataset.clone();
    fewer.users.truncate(3);
    let refused = Backfill::read(folder.path(), &fewer).unwrap_err().to_string();
    assert!(refused.contains("is not in the data") && refused.contains("backfill.jsonl"), "{refused}");
    std::fs::write(folder.path().join("texts.jsonl"), "\"one\"\n").unwrap();
    let refused = Backfill::read(folder.path(), &dataset).unwrap_err().to_string();
    assert!(refused.contains("does not hold 1 vectors"), "{refused}");
}

/// Whoever buys from one shelf has vectors like others of that shelf.
#[test]
fn vectors_of_items_that_go_together_are_near() {
    let (dataset, _) = world(200);
    let vectors = item_vectors(&dataset, 16, 1);
    assert_eq!(vectors, item_vectors(&dataset, 16, 1));
    let folder = tempfile::tempdir().unwrap();
    vectors.write(folder.path()).unwrap();
    assert_eq!(ItemVectors::read(folder.path(), dataset.items.len()).unwrap(), vectors);
    assert!(
        ItemVectors::read(folder.path(), 3).unwrap_err().to_string().contains("does not hold a vector for each of 3")
    );
    assert_eq!(vectors.user(&[]), None);

    // Both halves of a history say the same of a person, more than another person's half.
    let half = |place: usize, second: bool| {
        let items: Vec<usize> = dataset.users[place].engagements.iter().filter_map(|one| one.item).collect();
        let (one, other) = items.split_at(items.len() / 2);
        vectors.user(if second { other } else { one }).unwrap()
    };
    let dot = |one: &[f32], other: &[f32]| one.iter().zip(other).map(|(one, other)| one * other).sum::<f32>();
    let (mut own, mut others) = (0.0, 0.0);
    for place in 0..100 {
        own += dot(&half(place, false), &half(place, true));
        others += dot(&half(place, false), &half(place + 100, true));
    }
    assert!(own > others + 1.0, "{own} {others}");
}

/// The truth is what is bought next, and never what was bought already.
#[test]
fn the_truth_is_the_next_purchase() {
    let (dataset, points) = world(20);
    for point in &points {
        let row = user(&dataset, &dataset.users[point.user].user_id);
        let next = row.engagements[point.cut.engagements..].iter().find(|one| one.action == DEFAULT_TARGET);
        let expected = match next {
            Some(bought) => bought.item,
            None => {
                let latent = row.latent.as_ref().and_then(|latent| latent.next_purchase.as_ref());
                latent.and_then(|next| dataset.item_index.get(&next.item_id).copied())
            }
        };
        assert_eq!(next_target(&dataset, row, DEFAULT_TARGET, point.cut), expected);
    }
    let distinct: HashSet<usize> = points
        .iter()
        .filter_map(|point| next_target(&dataset, &dataset.users[point.user], DEFAULT_TARGET, point.cut))
        .collect();
    assert!(distinct.len() > 10);
}

/// A ranker that is told the categories of what is bought next, one code a level, orders clicks better: what a lift is judged by can see one.
/// Asked without them, it is not much worse than one that never had them, since it was trained without them now and then.
#[test]
fn the_truth_lifts_a_ranker_and_lacking_it_does_little_harm() {
    let (dataset, points) = world(900);
    let mut names: std::collections::HashMap<String, u32> = std::collections::HashMap::new();
    let mut told: Vec<Option<Features>> = Vec::new();
    for point in &points {
        let next = next_target(&dataset, &dataset.users[point.user], DEFAULT_TARGET, point.cut);
        told.push(next.map(|item| {
            let path = &dataset.items[item].categories;
            let mut code = |depth: usize| {
                let count = names.len() as u32;
                *names.entry(path[..depth.min(path.len())].join(">")).or_insert(count)
            };
            Features { made_ms: 0, intra: Some((1..=3).map(&mut code).collect()), cross: vec![] }
        }));
    }
    let (before, test) = points.split_at(points.len() * 7 / 10);
    let (training, validation) = before.split_at(before.len() * 9 / 10);
    let area = |told: &[Option<Features>], feature_dropout: f64, is_asked_with: bool| {
        let codes = if told.is_empty() { (0, 0) } else { (3, names.len()) };
        let shape = crate::rank::FeatureShape { codes, cross: false };
        let vocabulary = Vocabulary::of(&dataset, training, shape);
        let by_point: std::collections::HashMap<(usize, i64), &Features> = points
            .iter()
            .zip(told)
            .filter_map(|(point, told)| Some(((point.user, point.cut.before_ms), told.as_ref()?)))
            .collect();
        let of = |point: &Point| by_point.get(&(point.user, point.cut.before_ms)).copied();
        let encode = |part: &[Point]| Inputs::encode(&dataset, &vocabulary, part, of, (20, 5)).unwrap();
        let asked = match is_asked_with {
            true => encode(test),
            false => Inputs::encode(&dataset, &vocabulary, test, |_| None, (20, 5)).unwrap(),
        };
        let parts = [encode(training), encode(validation), asked];
        let settings = RankSettings { threads: 2, history: 20, cross: 5, feature_dropout, ..RankSettings::default() };
        let folder = tempfile::tempdir().unwrap();
        let (_, report, _) = train(&settings, &vocabulary, parts.each_ref(), folder.path(), &mut |_| {}).unwrap();
        report.click.auc.unwrap()
    };
    let (none, truth) = (area(&[], 0.1, true), area(&told, 0.1, true));
    let (missing, unprepared) = (area(&told, 0.3, false), area(&told, 0.0, false));
    println!(
        "none {none:.4}, truth {truth:.4}; asked without it {missing:.4}, never trained without it {unprepared:.4}"
    );
    assert!(truth > none + 0.015, "{truth} {none}");
    assert!(missing > none - 0.015, "{missing} {none}");
}
