//! Against what `scripts/fixtures/weighting.py` has NumPy compute: advantages and weights of every rule, twelve steps in a row.

use super::*;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Reference {
    group: usize,
    weights: Vec<f64>,
    deviations: Vec<f64>,
    start_means: Vec<f64>,
    rewards: Vec<Vec<Vec<f64>>>,
    gradients: Vec<[Vec<Vec<f64>>; 2]>,
    products: Tables,
    rules: BTreeMap<String, Steps>,
}

#[derive(Deserialize)]
struct Tables {
    whole: Vec<Vec<Vec<f64>>>,
    across: Vec<Vec<Vec<f64>>>,
}

#[derive(Deserialize)]
struct Steps {
    advantages: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("reference.json")).unwrap()
}

fn near(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (one, other) in found.iter().zip(expected) {
        assert!((one - other).abs() <= 1e-10 * other.abs().max(1.0), "{what}: {found:?} is not {expected:?}");
    }
}

/// The rules of the fixture with its settings.
fn rules(reference: &Reference) -> Vec<(&'static str, Box<dyn Weighting>)> {
    let Reference { weights, deviations, .. } = reference;
    let own: Vec<(&str, Box<dyn Weighting>)> = vec![
        ("sum", Box::new(Sum::new(weights).unwrap())),
        ("calibrated", Box::new(CalibratedSum::new(weights, deviations).unwrap())),
        ("gdpo", Box::new(Gdpo::new(weights).unwrap())),
        ("dvao", Box::new(Dvao::new(weights).unwrap())),
        ("ctwa", Box::new(CovarianceTargets::new(&HALF, 0.9).unwrap())),
        ("nash", Box::new(Nash::new(weights, deviations).unwrap())),
    ];
    let named: Vec<&str> = own.iter().map(|(name, _)| *name).collect();
    let others = every_rule(deviations).into_iter().filter(|(name, _)| !named.contains(name) && *name != "random");
    others.chain(own).collect()
}

#[test]
fn every_rule_is_numpys_to_the_tenth_digit() {
    let reference = reference();
    let all = rules(&reference);
    assert_eq!(all.len(), reference.rules.len());
    for (name, mut rule) in all {
        let steps = &reference.rules[name];
        for (step, rewards) in reference.rewards.iter().enumerate() {
            let gains = gains(rewards, &reference.start_means);
            let batch = Batch::new(&NAMES, rewards, &gains, reference.group).unwrap();
            let [first, second] = &reference.gradients[step];
            let products = Products::of_halves(first, second);
            let combined = rule.combine(&batch, Some(&products)).unwrap();
            near(&combined.weights, &steps.weights[step], &format!("{name}, weights of step {step}"));
            near(&combined.advantages, &steps.advantages[step], &format!("{name}, advantages of step {step}"));
        }
    }
}

#[test]
fn products_are_numpys_and_for_two_rewards_the_alignment_cancels() {
    let reference = reference();
    for (step, [first, second]) in reference.gradients.iter().enumerate() {
        let found = Products::of_halves(first, second);
        for (table, expected) in
            [(&found.whole, &reference.products.whole), (&found.across, &reference.products.across)]
        {
            table.iter().zip(&expected[step]).for_each(|(row, wanted)| near(row, wanted, "products"));
        }
        let indicators = found.indicators();
        near(&[indicators[0] - indicators[1]], &[found.norm(0).powi(2) - found.norm(1).powi(2)], "the identity");
    }
}

#[test]
fn the_shortest_vector_is_found_for_three_gradients_too() {
    // e1, e2, e3 with lengths 1, 2, 3: weights in proportion to 1/length².
    let products = [[1.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 9.0]].map(|row| row.to_vec());
    let total = 1.0 + 0.25 + 1.0 / 9.0;
    let found = min_norm(&products);
    for (weight, expected) in found.iter().zip([1.0 / total, 0.25 / total, 1.0 / 9.0 / total]) {
        assert!((weight - expected).abs() < 1e-3, "{found:?}");
    }
    // One inside of the others' cone is not needed; at such a corner the steps come slowly closer.
    let products = [[1.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 1.0]].map(|row| row.to_vec());
    let found = min_norm(&products);
    assert!(found[1] < 1e-2 && (found[0] - 0.5).abs() < 1e-2, "{found:?}");
    assert_eq!(min_norm(&[vec![0.0, 0.0], vec![0.0, 0.0]]), [0.5, 0.5]);
}
