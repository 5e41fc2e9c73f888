//! The CPU kernels against the same operations in candle's plain ones: values and every gradient.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use candle_core::{Result, Tensor, Var};

use super::attention::{AttentionShape, Segment};
use super::batch::LearnedRows;
use super::loss::{LOGIT_BYTES, OutputRows};
use super::tests::{plain_rope, random_var, relative_distance};
use super::{Objective, attention, embedding, linear, norm, portable};
use crate::objective::{CrossEntropy, Preference, SoftmaxDpo};

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Value and gradients of Σ f(inputs) ∘ fixed random weights.
fn value_and_gradients(inputs: &[Var], f: impl Fn(&[Var]) -> Result<Tensor>) -> Vec<Vec<f32>> {
    let out = f(inputs).unwrap();
    let probe = random_var(99, out.dims());
    let gradients = (&out * probe.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
    std::iter::once(values(&out)).chain(inputs.iter().map(|input| values(gradients.get(input).unwrap()))).collect()
}

fn assert_same(inputs: &[Var], kernel: impl Fn(&[Var]) -> Result<Tensor>, plain: impl Fn(&[Var]) -> Result<Tensor>) {
    let (ours, theirs) = (value_and_gradients(inputs, kernel), value_and_gradients(inputs, plain));
    for (which, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        let distance = relative_distance(a, b);
        assert!(distance < 1e-5, "value and gradients, number {which}: {distance}");
    }
}

#[test]
fn embedding_is_a_selection_of_rows() {
    let tokens = [3, 1, 3, 3, 0];
    let inputs = [random_var(1, &[5, 8])];
    assert_same(&inputs, |v| embedding::embed(&v[0], &tokens), |v| portable::embed(&v[0], &tokens));
}

#[test]
fn rms_norm_is_its_formula() {
    let inputs = [random_var(1, &[300, 48]), random_var(2, &[48])];
    assert_same(&inputs, |v| norm::rms_norm(&v[0], &v[1], 1e-6), |v| portable::rms_norm(&v[0], &v[1], 1e-6));
}

#[test]
fn swiglu_is_its_formula() {
    let inputs = [random_var(1, &[70, 16]), random_var(2, &[96, 16]), random_var(3, &[16, 48])];
    let kernel = |v: &[Var]| linear::swiglu_mlp(&v[0], &v[1], &v[2]);
    assert_same(&inputs, kernel, |v| portable::swiglu_mlp(&v[0], &v[1], &v[2]));
}

#[test]
fn attention_is_its_formula_with_prefixes_and_without() {
    let shape = Arc::new(AttentionShape::new(4, 2, 32, 64, &plain_rope()));
    let segment = |rows, prefix| Segment { rows, prefix };
    let segments = Arc::new(vec![
        segment(0..33, 0..0),
        segment(33..50, 0..33),
        segment(50..51, 0..33),
        segment(51..60, 0..0),
        segment(60..92, 51..60),
    ]);
    let inputs = [random_var(1, &[92, 8 * 32]), random_var(2, &[8 * 32])];
    let kernel = |v: &[Var]| attention::attention(&v[0], v.get(1).map(Var::as_tensor), &segments, &shape);
    let plain = |v: &[Var]| portable::attention(&v[0], v.get(1).map(Var::as_tensor), &segments, &shape);
    assert_same(&inputs, kernel, plain);
    assert_same(&inputs[..1], kernel, plain);
}

#[test]
fn norms_of_heads_are_their_formula() {
    let shape = AttentionShape::new(4, 2, 16, 8, &plain_rope());
    let inputs = [random_var(1, &[300, 8 * 16]), random_var(2, &[16]), random_var(3, &[16])];
    let kernel = |v: &[Var]| norm::head_norm(&v[0], &v[1], &v[2], &shape, 1e-6);
    assert_same(&inputs, kernel, |v| portable::head_norm(&v[0], &v[1], &v[2], &shape, 1e-6));
}

#[test]
fn losses_are_their_log_softmax() {
    let learned = LearnedRows { places: vec![0, 2, 3, 5, 6, 9], targets: vec![3, 10, 7, 3, 0, 28] };
    let inputs = [random_var(1, &[10, 8]), random_var(2, &[29, 8])];
    let plain_weights = CrossEntropy::sum(&[1.0, -0.5, 0.3, 2.0, 0.1, 0.7], 1.7).unwrap();
    let preferences = vec![Preference { chosen: 0..2, rejected: vec![2..5, 5..6] }];
    let dpo = SoftmaxDpo { beta: 0.5, preferences, reference: vec![-3.0; 6], normaliser: 1.0 };
    let smoothed = plain_weights.clone().smoothed(0.2).unwrap();
    for objective in [&plain_weights as &dyn Objective, &smoothed, &dpo] {
        let smoothing = objective.label_smoothing();
        let kernel = |v: &[Var]| {
            let rows =
                OutputRows { hidden: &v[0], table: &v[1], learned: &learned, smoothing, logit_bytes: LOGIT_BYTES };
            Ok(rows.loss(objective).unwrap())
        };
        // The objective's value, with its gradients by way of the log-likelihoods that are on the tape.
        let plain = |v: &[Var]| {
            let likelihoods = portable::log_likelihoods(&v[0], &v[1], &learned, smoothing)?;
            let numbers: Vec<f64> = values(&likelihoods).into_iter().map(f64::from).collect();
            let evaluation = objective.evaluate(&numbers).unwrap();
            let slopes: Vec<f32> = evaluation.derivatives.iter().map(|slope| *slope as f32).collect();
            let linear = likelihoods.mul(&Tensor::new(slopes, likelihoods.device())?)?.sum_all()?;
            let rest = evaluation.value - f64::from(linear.to_scalar::<f32>()?);
            linear + rest
        };
        assert_same(&inputs, kernel, plain);
    }
}
