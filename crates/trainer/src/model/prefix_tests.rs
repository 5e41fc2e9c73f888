//! Continuations that share a prompt against the same sequences laid out in full.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::Range;

use candle_core::Var;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::tests::{relative_distance, scaled_up};
use super::*;
use crate::nn::Module;
use crate::objective::{
    Clip, GroupPolicy, KlEstimator, KlPenalty, KlRatio, Preference, RatioLevel, SoftmaxDpo, Surrogate,
};

/// Lengths of one prompt and its continuations.
type Group = (usize, Vec<usize>);

/// Both layouts of the same random texts, and each group's continuations as ranges of the learned rows.
struct Layouts {
    shared: TrainBatch,
    unshared: TrainBatch,
    answers: Vec<Vec<Range<usize>>>,
}

fn layouts(groups: &[Group], seed: u64) -> Layouts {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut text = |len: usize| -> Vec<u32> { (0..len).map(|_| random.random_range(0..40)).collect() };
    let (mut shared, mut unshared) = (TrainBatch::default(), TrainBatch::default());
    let mut segments = Vec::new();
    for (prompt, continuations) in groups {
        let prompt = text(*prompt);
        let answers: Vec<Vec<u32>> = continuations.iter().map(|len| text(*len)).collect();
        segments.push(shared.push_group(&prompt, answers.iter().map(Vec::as_slice), 0.0).unwrap());
        for answer in &answers {
            unshared.push_group(&prompt, [answer.as_slice()], 0.0).unwrap();
        }
    }
    // One text, one segment: not even a pair of prompt and answer is left.
    let whole: Vec<Vec<u32>> = (0..unshared.input.segments())
        .filter_map(|segment| {
            let own = &unshared.input.tokens[unshared.input.places(segment)];
            let is_prompt = unshared.input.parents.get(segment + 1) == Some(&Some(segment));
            let before = unshared.input.parents[segment].map(|parent| unshared.input.places(parent));
            (!is_prompt).then(|| [&unshared.input.tokens[before.unwrap_or(0..0)], own].concat())
        })
        .collect();
    unshared.input = TokenBatch::from_sequences(whole.iter().map(Vec::as_slice));
    let rows = shared.row_ranges();
    let answers = segments.into_iter().map(|group| rows[group].to_vec()).collect();
    Layouts { shared, unshared, answers }
}

fn gradients(decoder: &Decoder, batch: &TrainBatch, objective: &dyn Objective) -> (f32, Vec<Vec<f32>>) {
    let loss = decoder.loss(batch, objective).unwrap();
    let gradients = loss.backward().unwrap();
    let values = |var: &Var| gradients.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (loss.to_scalar().unwrap(), decoder.parameters().iter().map(|parameter| values(&parameter.var)).collect())
}

fn assert_equal(decoder: &Decoder, layouts: &Layouts, objective: &dyn Objective) {
    let (shared_value, shared) = gradients(decoder, &layouts.shared, objective);
    let (value, unshared) = gradients(decoder, &layouts.unshared, objective);
    assert!((shared_value - value).abs() <= 1e-5 * value.abs().max(1.0), "{shared_value} against {value}");
    for ((ours, theirs), parameter) in shared.iter().zip(&unshared).zip(decoder.parameters()) {
        let distance = relative_distance(ours, theirs);
        assert!(distance < 1e-5, "{}: {distance}", parameter.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn shared_prompts_give_the_values_and_gradients_of_whole_sequences(
        groups in prop::collection::vec((1..40usize, prop::collection::vec(1..24usize, 1..5)), 1..4), seed in 0..1000u64,
    ) {
        let decoder = scaled_up(seed);
        let layouts = layouts(&groups, seed);
        let likelihoods = decoder.log_likelihoods(&layouts.unshared).unwrap();
        for (ours, theirs) in decoder.log_likelihoods(&layouts.shared).unwrap().iter().zip(&likelihoods) {
            prop_assert!((ours - theirs).abs() < 1e-5 * theirs.abs().max(1.0), "{} against {}", ours, theirs);
        }
        let shifted = |by: f64| likelihoods.iter().enumerate().map(|(row, value)| value + by * (row as f64).sin()).collect();
        let reference: Vec<f64> = shifted(0.5);
        let policy = GroupPolicy {
            weights: vec![0.1; likelihoods.len()],
            advantages: (0..likelihoods.len()).map(|row| (row as f64 * 1.7).cos()).collect(),
            lengths: vec![1; likelihoods.len()],
            old: Some(shifted(0.1)),
            sampled: None,
            surrogate: Surrogate::Clipped(Clip { low: 0.2, high: 0.28 }),
            level: RatioLevel::Token,
            penalty: Some(KlPenalty {
                strength: 0.1,
                estimator: KlEstimator::K3,
                ratio: KlRatio::Held,
                reference: reference.clone(),
            }),
        };
        assert_equal(&decoder, &layouts, &policy);
        let groups = layouts.answers.iter().filter(|answers| answers.len() > 1);
        let preferences: Vec<Preference> =
            groups.map(|answers| Preference { chosen: answers[0].clone(), rejected: answers[1..].to_vec() }).collect();
        if !preferences.is_empty() {
            let normaliser = preferences.len() as f64;
            assert_equal(&decoder, &layouts, &SoftmaxDpo { beta: 0.5, preferences, reference, normaliser });
        }
    }
}

#[test]
fn a_group_lays_its_prompt_down_once() {
    let mut batch = TrainBatch::default();
    let continuations: [&[u32]; 2] = [&[7, 8], &[9]];
    assert_eq!(batch.push_group(&[1, 2, 3], continuations, 0.5).unwrap(), 1..3);
    assert_eq!(batch.push_group(&[4], continuations, 0.0).unwrap(), 3..5);
    assert_eq!(batch.input.tokens, [1, 2, 3, 7, 3, 4, 7, 4]);
    assert_eq!(batch.targets, [2, 3, 7, 8, 9, 7, 8, 9]);
    assert_eq!(batch.weights, [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(batch.input.parents, [None, Some(0), Some(0), None, None]);
    assert_eq!(batch.row_ranges(), [0..2, 2..4, 4..5, 5..7, 7..8]);
    batch.input.check(4).unwrap();
    assert!(batch.input.check(3).unwrap_err().to_string().contains("a sequence of 4 tokens"));
}
