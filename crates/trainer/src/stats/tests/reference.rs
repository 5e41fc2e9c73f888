//! Against what `scripts/fixtures/stats.py` has NumPy, SciPy and statsmodels compute.

use super::super::distribution::{normal_upper, student_upper};
use super::super::*;
use serde_json::Value;

fn reference() -> Value {
    serde_json::from_str(include_str!("reference.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn near(found: f64, expected: f64, relative: f64) {
    assert!((found - expected).abs() <= relative * expected.abs().max(1e-3), "{found} is not {expected}");
}

#[test]
fn quantiles_are_scipys() {
    let reference = reference();
    for row in reference["student"].as_array().unwrap() {
        let [tail, freedom, expected] = numbers(row).try_into().unwrap();
        near(student_upper(tail, freedom), expected, 1e-8);
    }
    for row in reference["normal"].as_array().unwrap() {
        let [tail, expected] = numbers(row).try_into().unwrap();
        near(normal_upper(tail), expected, 1e-8);
    }
    near(student_upper(0.025, 1e8), 1.959963984540054, 1e-9);
}

#[test]
fn intervals_are_scipys_on_each_margin_and_numpys_on_both() {
    let reference = &reference()["crossed"];
    let values = numbers(&reference["values"]);
    let sample = Sample::new(3, 1, 40, &values).unwrap();
    let found = interval(&sample, 0.95).unwrap();
    let both = numbers(&reference["both"]);
    assert_eq!(found.method, Method::SeedsAndUsers);
    near(found.estimate, reference["mean"].as_f64().unwrap(), 1e-12);
    near(found.low, both[0], 1e-8);
    near(found.high, both[1], 1e-8);

    let of_seeds = seed_means_interval(&sample, 0.95).unwrap();
    let first = Sample::of_users(&values[..40]).unwrap();
    let of_users = interval(&first, 0.95).unwrap();
    assert_eq!((of_seeds.method, of_users.method), (Method::Seeds, Method::Users));
    for (found, expected) in [(of_seeds, &reference["seed_means"]), (of_users, &reference["first_seed"])] {
        let expected = numbers(expected);
        for (value, wanted) in [found.low, found.high, found.p].into_iter().zip(expected) {
            near(value, wanted, 1e-7);
        }
    }
    let tested = non_inferiority(&first, 0.1, 0.025).unwrap();
    near(tested.p, reference["first_seed_above_minus_a_tenth"].as_f64().unwrap(), 1e-6);
    near(tested.low, of_users.low, 1e-12);
}

#[test]
fn the_bootstrap_has_the_distribution_of_all_draws() {
    let reference = &reference()["exhaustive"];
    let sample = Sample::new(2, 1, 3, &numbers(&reference["values"])).unwrap();
    let draws = resampled_means(&sample, Resampling { draws: 40_000, seed: 3 });
    let mean = draws.iter().sum::<f64>() / draws.len() as f64;
    let deviation = (draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / draws.len() as f64).sqrt();
    // Four standard errors of 40,000 draws.
    let expected = reference["deviation"].as_f64().unwrap();
    assert!((mean - reference["mean"].as_f64().unwrap()).abs() < 4.0 * expected / 200.0);
    near(deviation, expected, 0.015);
    for row in reference["at_most"].as_array().unwrap() {
        let [limit, expected] = numbers(row).try_into().unwrap();
        let share = draws.iter().filter(|draw| **draw <= limit).count() as f64 / draws.len() as f64;
        assert!(
            (share - expected).abs() < 4.0 * 0.5 / 200.0,
            "{share} of the draws are at most {limit}, not {expected}"
        );
    }
}

#[test]
fn percentiles_are_numpys() {
    let reference = &reference()["percentiles"];
    let found = percentile_interval(0.0, numbers(&reference["values"]), 0.95).unwrap();
    let expected = numbers(&reference["at_95"]);
    near(found.low, expected[0], 1e-12);
    near(found.high, expected[1], 1e-12);
    assert_eq!(found.method, Method::Bootstrap);
}

#[test]
fn holm_is_statsmodels() {
    let reference = &reference()["holm"];
    for (found, expected) in holm(&numbers(&reference["p"])).into_iter().zip(numbers(&reference["adjusted"])) {
        near(found, expected, 1e-12);
    }
}

#[test]
fn bounds_of_five_looks_are_the_published_ones_and_let_cross_what_scipy_says() {
    let reference = &reference()["sequential"];
    let fractions = numbers(&reference["fractions"]);
    for (name, spending) in [("pocock", Spending::Pocock), ("o_brien_fleming", Spending::OBrienFleming)] {
        let expected = &reference["looks"][name];
        let (bounds, crossed) = (numbers(&expected["bounds"]), numbers(&expected["crossed"]));
        for ((look, bound), crossed) in looks(spending, 0.05, &fractions).unwrap().iter().zip(bounds).zip(crossed) {
            // Published to four decimals, from the same recursion on another grid.
            assert!((look.bound - bound).abs() < 6e-4, "{name}: {look:?} is not {bound}");
            assert!((look.spent - crossed).abs() < 3e-5, "{name}: {look:?} lets {crossed} cross");
        }
    }
    let once = looks(Spending::OBrienFleming, 0.05, &[1.0]).unwrap();
    near(once[0].bound, 1.959963984540054, 1e-9);
}
