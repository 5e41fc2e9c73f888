//! Rules against NumPy, their invariances, and POPO's collapse with its cure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bandit;
mod properties;
mod reference;

use super::*;

const NAMES: [&str; 2] = ["similarity", "ctcvr"];
const HALF: [f64; 2] = [0.5, 0.5];

/// Every rule with its defaults and equal weights.
fn every_rule(deviations: &[f64]) -> Vec<(&'static str, Box<dyn Weighting>)> {
    let popo = |form| Box::new(Popo::new(form, &HALF, 0.1).unwrap());
    let guarded = |sign| Box::new(GuardedPopo::new(&HALF, Guards { sign, ..Guards::default() }).unwrap());
    vec![
        ("sum", Box::new(Sum::new(&HALF).unwrap())),
        ("calibrated", Box::new(CalibratedSum::new(&HALF, deviations).unwrap())),
        ("gdpo", Box::new(Gdpo::new(&HALF).unwrap())),
        ("dvao", Box::new(Dvao::new(&HALF).unwrap())),
        ("popo-light", Box::new(PopoLight::default())),
        ("saw", Box::new(Saw::default())),
        ("min-norm", Box::new(MinNorm::default())),
        ("gd2po", Box::new(ConflictFilter)),
        ("ctwa", Box::new(CovarianceTargets::new(&HALF, 0.3).unwrap())),
        ("popo-rewards", popo(PopoForm::Rewards)),
        ("popo-advantages", popo(PopoForm::Advantages)),
        ("popo-guarded", guarded(1.0)),
        ("popo-reversed", guarded(-1.0)),
        ("nash", Box::new(Nash::new(&HALF, deviations).unwrap())),
        ("gradient-norms", Box::new(GradientNorms::default())),
        ("random", Box::new(RandomWeights::new(3))),
    ]
}

/// Of the mean rewards over those of a start.
fn gains(rewards: &[Vec<f64>], start: &[f64]) -> Vec<f64> {
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    rewards.iter().zip(start).map(|(values, start)| mean(values) - start).collect()
}

fn deviation_of(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)).sqrt()
}
