//! Declarations: the example of docs/experiments/README.md, every committed one, and what is refused.

use super::super::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The TOML of the page that says how to declare.
fn example() -> String {
    let page = std::fs::read_to_string(testkit::in_repository("docs/experiments/README.md")).unwrap();
    let (_, rest) = page.split_once("```toml\n").expect("an example");
    rest.split_once("```").expect("its end").0.to_string()
}

fn write(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("example.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn every_committed_declaration_is_valid() {
    for entry in std::fs::read_dir(testkit::in_repository("docs/experiments")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            Experiment::read(&path).unwrap();
        }
    }
}

#[test]
fn the_example_of_the_page_is_valid_and_what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let good = example();
    let read = Experiment::read(&write(folder.path(), &good)).unwrap();
    assert_eq!((read.seeds, read.users, read.stop.looks.len()), (3, 4_000, 3));
    for (from, to, named) in [
        ("alpha = 0.05", "alpha = 1.5", "alpha"),
        ("alpha = 0.05", "alpha = 0.05\nlevel = 0.9", "level"),
        ("name = \"example\"", "name = \"other\"", "other.toml"),
        ("seeds = 3", "seeds = 0", "seeds"),
        ("arm = \"filtered\"", "arm = \"filtred\"", "two of arms"),
        ("margin = 0.01", "margin = -0.01", "margin above 0"),
        ("looks = [0.25, 0.5, 1.0]", "looks = [0.5, 0.25, 1.0]", "looks"),
        ("looks = [0.25, 0.5, 1.0]", "looks = [0.25, 0.5]", "looks"),
        ("spending = \"o_brien_fleming\"", "#", "spending"),
        ("spending = \"o_brien_fleming\"", "spending = \"bayes\"", "spending"),
        ("primary = true", "primary = false", "primary"),
        ("metric = \"l3\"", "metric = \"l3\"\nhope = 1", "hope"),
    ] {
        assert!(good.contains(from), "{from}");
        let message = Experiment::read(&write(folder.path(), &good.replace(from, to))).unwrap_err().to_string();
        assert!(message.contains(named) && message.contains("example.toml"), "{named}: {message}");
    }
}

/// Differences of 3 seeds × 40 users around a mean.
fn around(mean: f64) -> Sample {
    let values: Vec<f64> = (0..120).map(|place| mean + 0.2 * f64::from(place * 37 % 11 - 5)).collect();
    Sample::new(3, 1, 40, &values).unwrap()
}

#[test]
fn primary_contrasts_are_held_to_holm_and_the_look_and_others_claim_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = Experiment::read(&write(folder.path(), &example())).unwrap();
    let judge = |look: usize, means: [f64; 3]| {
        let names = ["filter-helps", "filter-costs-no-format", "random-half"];
        let differences: BTreeMap<String, Sample> =
            names.into_iter().map(String::from).zip(means.map(around)).collect();
        experiment.judge(look, &differences).unwrap()
    };
    let verdicts = judge(2, [0.5, 0.0, 0.5]);
    assert!(verdicts[0].shown && !verdicts[2].shown && verdicts[2].threshold.is_none());
    assert!(verdicts[2].p < 1e-3, "a secondary contrast has its p-value all the same");
    assert_eq!(verdicts[2].adjusted, Some(verdicts[2].p), "alone among the rest, Holm's p is its own");
    assert_eq!(verdicts[0].adjusted, None);
    // Not shown first, nothing after it is looked at.
    let none = judge(0, [0.0, -0.3, 0.0]);
    assert!(none.iter().all(|verdict| !verdict.shown));
    assert_eq!(none.iter().filter(|verdict| verdict.threshold.is_some()).count(), 1);
    // An early look asks for more than the last one.
    let threshold = |look: usize| judge(look, [0.5, 0.0, 0.5])[0].threshold.unwrap();
    assert!(threshold(0) < threshold(1) && threshold(1) < threshold(2) && threshold(2) <= 0.025);
    assert!(experiment.is_futile(&judge(1, [-0.9, -0.9, 0.0])) && !experiment.is_futile(&verdicts));
    let missing = experiment.judge(0, &BTreeMap::new()).unwrap_err().to_string();
    assert!(missing.contains("filter-helps"), "{missing}");
    assert!(
        experiment
            .judge(
                3,
                &BTreeMap::from_iter(
                    ["filter-helps", "filter-costs-no-format", "random-half"]
                        .map(|name| (name.to_string(), around(0.1)))
                )
            )
            .is_err()
    );
}
