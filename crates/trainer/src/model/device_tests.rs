//! What `--device cuda` computes beside the CPU kernels: operations, the whole decoder, and steps of training.
//!
//! Built with `--features cuda` on the first GPU, which must be there; else by the same operations on the CPU, so that the check does not
//! rot. Prints a figure a line, `name | value`, for `scripts/gpu_check.sh`, which runs this program on a machine with a GPU.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::attention::AttentionShape;
use super::batch::{LearnedRows, TokenBatch};
use super::compute::Compute;
use super::loss::{LOGIT_BYTES, OutputRows};
use super::portable_tests::{computed, decoder_and_batch, segments_with_prefixes, value_and_gradients, values};
use super::tests::{plain_rope, random_var, relative_distance};
use super::{Decoder, DecoderConfig, DeviceKind, Objective, TrainBatch};
use super::{attention, embedding, linear, norm, portable};
use crate::fit::{AdamW, AdamWSettings, Gradients, ParameterSet};
use crate::nn::Module;
use crate::objective::{
    Clip, CrossEntropy, GroupPolicy, KlEstimator, KlPenalty, KlRatio, RatioLevel, Surrogate, response_weights,
};

fn device() -> Device {
    match cfg!(feature = "cuda") {
        true => Device::new_cuda(0).unwrap(),
        false => Device::Cpu,
    }
}

/// What recipes call it.
fn kind() -> DeviceKind {
    if cfg!(feature = "cuda") { DeviceKind::Cuda } else { DeviceKind::Plain }
}

fn figure(name: &str, value: f64) {
    println!("{} | {name} | {value:.3e}", kind().name());
}

/// Value and gradients of an operation, kernel against plain operation on the device in f32; the largest relative distance.
fn compare(
    name: &str,
    inputs: &[Var],
    kernel: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let device = device();
    let moved = |v: &[Var], to: &Device| v.iter().map(|input| input.to_device(to)).collect::<Result<Vec<_>>>();
    let ours = value_and_gradients(inputs, |v| kernel(&moved(v, &Device::Cpu)?));
    let theirs = value_and_gradients(inputs, |v| plain(&moved(v, &device)?)?.to_device(&Device::Cpu));
    let distance = ours.iter().zip(&theirs).map(|(a, b)| relative_distance(a, b)).fold(0.0, f64::max);
    figure(&format!("{name}, f32: value and gradients"), distance);
    assert!(distance < 1e-4, "{name}: {distance}");
}

#[test]
fn on_the_device_operations_are_the_kernels() {
    let tokens = [3, 1, 3, 3, 0];
    let table = [random_var(1, &[5, 8])];
    compare("embedding", &table, |v| embedding::embed(&v[0], &tokens), |v| portable::embed(&v[0], &tokens));

    let normed = [random_var(1, &[300, 48]), random_var(2, &[48])];
    compare("norm", &normed, |v| norm::rms_norm(&v[0], &v[1], 1e-6), |v| portable::rms_norm(&v[0], &v[1], 1e-6));

    let shape = AttentionShape::new(4, 2, 16, 8, &plain_rope());
    let heads = [random_var(1, &[300, 8 * 16]), random_var(2, &[16]), random_var(3, &[16])];
    let kernel = |v: &[Tensor]| norm::head_norm(&v[0], &v[1], &v[2], &shape, 1e-6);
    compare("norm of heads", &heads, kernel, |v| portable::head_norm(&v[0], &v[1], &v[2], &shape, 1e-6));

    let gated = [random_var(1, &[70, 16]), random_var(2, &[96, 16]), random_var(3, &[16, 48])];
    let kernel = |v: &[Tensor]| linear::swiglu_mlp(&v[0], &v[1], &v[2]);
    compare("feed-forward", &gated, kernel, |v| portable::swiglu_mlp(&v[0], &v[1], &v[2]));
}

#[test]
fn on_the_device_attention_is_the_kernel() {
    let shape = Arc::new(AttentionShape::new(4, 2, 32, 64, &plain_rope()));
    let segments = segments_with_prefixes();
    let inputs = [random_var(1, &[92, 8 * 32]), random_var(2, &[8 * 32])];
    let kernel = |v: &[Tensor]| attention::attention(&v[0], v.get(1), &segments, &shape, None);
    let plain = |v: &[Tensor]| portable::attention(&v[0], v.get(1), &segments, &shape, None);
    compare("attention with shared prefixes", &inputs, kernel, plain);
}

#[test]
fn on_the_device_the_loss_is_the_kernel() {
    let learned = LearnedRows { places: vec![0, 2, 3, 5, 6, 9], targets: vec![3, 10, 7, 3, 0, 28] };
    let inputs = [random_var(1, &[10, 8]), random_var(2, &[29, 8])];
    let objective = CrossEntropy::sum(&[1.0, -0.5, 0.3, 2.0, 0.1, 0.7], 1.7).unwrap().smoothed(0.2).unwrap();
    let smoothing = objective.label_smoothing();
    let rows = |v: &[Tensor], loss: &dyn Fn(&OutputRows<'_>) -> Tensor| {
        Ok(loss(&OutputRows { hidden: &v[0], table: &v[1], learned: &learned, smoothing, logit_bytes: LOGIT_BYTES }))
    };
    let kernel = |v: &[Tensor]| rows(v, &|rows| rows.loss(&objective).unwrap());
    compare("loss", &inputs, kernel, |v| rows(v, &|rows| portable::loss(rows, &objective).unwrap()));
}

#[test]
fn on_the_device_the_decoder_is_the_kernels() {
    let (mut decoder, batch) = decoder_and_batch();
    let exact = computed(&mut decoder, &batch, Compute::Kernels);
    for (name, dtype, most) in [("f32", DType::F32, 1e-4), ("bf16", DType::BF16, 0.15)] {
        let found = computed(&mut decoder, &batch, Compute::Plain { device: device(), dtype });
        let loss = (exact.0 - found.0).abs() / exact.0.abs();
        let gradients = relative_distance(&exact.1.concat(), &found.1.concat());
        figure(&format!("decoder, {name}: loss"), loss);
        figure(&format!("decoder, {name}: all gradients"), gradients);
        assert!(loss < most && gradients < most, "{name}: {loss} {gradients}");
    }
}

/// Loss before a step of AdamW, all gradients, and loss after it.
fn step(kind: DeviceKind, batch: &TrainBatch, objective: &dyn Objective) -> (f64, Vec<f32>, f64) {
    let mut decoder = Decoder::random(&DecoderConfig::small(61, 32, 2, 2, 1, 48), 1).unwrap();
    decoder.set_device(kind).unwrap();
    let mut optimizer = AdamW::new(ParameterSet::all(&decoder), AdamWSettings::default());
    let loss = |decoder: &Decoder| decoder.loss(batch, objective).unwrap();
    let number = |loss: &Tensor| f64::from(loss.to_scalar::<f32>().unwrap());
    let before = loss(&decoder);
    let store = before.backward().unwrap();
    let each = decoder.parameters();
    let all: Vec<f32> = each.iter().flat_map(|parameter| values(store.get(&parameter.var).unwrap())).collect();
    let gradients = Gradients::collect(optimizer.set(), &store).unwrap();
    optimizer.update(&gradients, 1e-3).unwrap();
    (number(&before), all, number(&loss(&decoder)))
}

/// Two prompts with two answers each, prompts not learned.
fn group() -> TrainBatch {
    let text = |first: u32, len: u32| (first..first + len).map(|token| token * 7 % 61).collect::<Vec<u32>>();
    let mut batch = TrainBatch::default();
    batch.push_group(&text(1, 9), [text(20, 5).as_slice(), &text(30, 5)], 0.0).unwrap();
    batch.push_group(&text(5, 12), [text(40, 5).as_slice(), &text(50, 5)], 0.0).unwrap();
    batch
}

fn assert_same_step(name: &str, objective: &dyn Objective) {
    let (ours, theirs) = (step(DeviceKind::Cpu, &group(), objective), step(kind(), &group(), objective));
    let (one, other) = (ours.2 - ours.0, theirs.2 - theirs.0);
    figure(&format!("{name} step: loss"), (ours.0 - theirs.0).abs());
    figure(&format!("{name} step: all gradients"), relative_distance(&ours.1, &theirs.1));
    figure(&format!("{name} step: what it changed the loss by, CPU"), one);
    figure(&format!("{name} step: what it changed the loss by"), other);
    assert!(relative_distance(&ours.1, &theirs.1) < 0.1, "gradients");
    assert!(one < 0.0 && (one - other).abs() < 0.1 * one.abs(), "{one} {other}");
}

#[test]
fn on_the_device_a_step_of_sft_is_the_same() {
    assert_same_step("SFT", &CrossEntropy::mean(&group().weights).unwrap());
}

#[test]
fn on_the_device_a_step_of_grpo_is_the_same() {
    let decoder = Decoder::random(&DecoderConfig::small(61, 32, 2, 2, 1, 48), 1).unwrap();
    let old = decoder.log_likelihoods(&group()).unwrap();
    // An answer that is learned has as many rows as it has tokens, the mark of its end among them.
    let length = old.len() / 4;
    let advantages = [1.0, -1.0, 0.5, -0.5].iter().flat_map(|&one| std::iter::repeat_n(one, length)).collect();
    let reference = old.iter().enumerate().map(|(row, old)| old - 0.1 * (row % 3) as f64).collect();
    let penalty = Some(KlPenalty { strength: 0.05, estimator: KlEstimator::K2, ratio: KlRatio::Held, reference });
    let weights = response_weights(&[length; 4], 4.0).unwrap();
    let policy = GroupPolicy {
        weights,
        advantages,
        lengths: vec![length; 4],
        old: Some(old),
        sampled: None,
        surrogate: Surrogate::Clipped(Clip { low: 0.2, high: 0.28 }),
        level: RatioLevel::Token,
        penalty,
    };
    assert_same_step("GRPO", &policy);
}

/// `cargo test --release -p taiji-trainer --lib [--features cuda] -- --ignored --nocapture speed_on_the_device`
#[test]
#[ignore = "prints a rate"]
fn speed_on_the_device_at_the_shape_of_smollm2() {
    let full = cfg!(feature = "cuda");
    let (vocabulary, layers, rows, length) = if full { (49_152, 30, 16, 512) } else { (1_024, 2, 2, 64) };
    let mut decoder = Decoder::random(&DecoderConfig::small(vocabulary, 576, layers, 9, 3, 1_536), 1).unwrap();
    decoder.set_device(kind()).unwrap();
    let mut optimizer = AdamW::new(ParameterSet::all(&decoder), AdamWSettings::default());
    let token = |place: usize| (place * 7 % vocabulary) as u32;
    let sequences: Vec<Vec<u32>> =
        (0..rows).map(|row| (row * length..(row + 1) * length).map(token).collect()).collect();
    let input = TokenBatch::from_sequences(sequences.iter().map(Vec::as_slice));
    let targets = (1..=rows * length).map(token).collect();
    let batch = TrainBatch { input, targets, weights: vec![1.0; rows * length] };
    let objective = CrossEntropy::mean(&batch.weights).unwrap();
    let mut seconds = Vec::new();
    for _ in 0..6 {
        let started = Instant::now();
        let loss = decoder.loss(&batch, &objective).unwrap();
        let gradients = Gradients::collect(optimizer.set(), &loss.backward().unwrap()).unwrap();
        let passed = started.elapsed().as_secs_f64();
        optimizer.update(&gradients, 1e-4).unwrap();
        seconds.push((started.elapsed().as_secs_f64(), passed));
        assert!(loss.to_scalar::<f32>().unwrap().is_finite());
    }
    seconds[1..].sort_by(|one, other| one.0.total_cmp(&other.0));
    let (step, passes) = seconds[3];
    figure(
        &format!("training, {layers} layers of width 576, {rows} × {length} tokens: tokens/s"),
        (rows * length) as f64 / step,
    );
    figure("share of a step that the two passes take (the rest is AdamW on the CPU)", passes / step);
}
