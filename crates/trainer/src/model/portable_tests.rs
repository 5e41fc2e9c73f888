//! The CPU kernels against the same operations in candle's plain ones: values and every gradient.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::attention::{AttentionShape, Segment};
use super::batch::LearnedRows;
use super::compute::Compute;
use super::loss::{LOGIT_BYTES, OutputRows};
use super::tests::{plain_rope, random_var, relative_distance};
use super::{Decoder, DecoderConfig, Dropout, LoraSettings, Objective, TrainBatch};
use super::{attention, embedding, linear, norm, portable};
use crate::nn::Module;
use crate::objective::{CrossEntropy, Preference, SoftmaxDpo};

pub(super) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Value and gradients of Σ f(inputs) ∘ fixed random weights.
pub(super) fn value_and_gradients(inputs: &[Var], f: impl Fn(&[Var]) -> Result<Tensor>) -> Vec<Vec<f32>> {
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

/// Of 92 rows: two texts, each with continuations that share its rows.
pub(super) fn segments_with_prefixes() -> Arc<Vec<Segment>> {
    let segment = |rows, prefix| Segment { rows, prefix };
    Arc::new(vec![
        segment(0..33, 0..0),
        segment(33..50, 0..33),
        segment(50..51, 0..33),
        segment(51..60, 0..0),
        segment(60..92, 51..60),
    ])
}

#[test]
fn attention_is_its_formula_with_prefixes_and_without() {
    let shape = Arc::new(AttentionShape::new(4, 2, 32, 64, &plain_rope()));
    let segments = segments_with_prefixes();
    let inputs = [random_var(1, &[92, 8 * 32]), random_var(2, &[8 * 32])];
    let some = Dropout { rate: 0.0, attention: 0.3, seed: 5, batch: 6 }.of_attention(2);
    assert!(some.is_some());
    for dropout in [None, some] {
        let bias = |v: &[Var]| v.get(1).map(|bias| bias.as_tensor().clone());
        let kernel = |v: &[Var]| attention::attention(&v[0], bias(v).as_ref(), &segments, &shape, dropout);
        let plain = |v: &[Var]| portable::attention(&v[0], bias(v).as_ref(), &segments, &shape, dropout);
        assert_same(&inputs, kernel, plain);
        assert_same(&inputs[..1], kernel, plain);
    }
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
        let with_rows = |v: &[Var], loss: &dyn Fn(&OutputRows<'_>) -> Tensor| {
            let (hidden, table) = (v[0].as_tensor(), v[1].as_tensor());
            Ok(loss(&OutputRows { hidden, table, learned: &learned, smoothing, logit_bytes: LOGIT_BYTES }))
        };
        let kernel = |v: &[Var]| with_rows(v, &|rows| rows.loss(objective).unwrap());
        let plain = |v: &[Var]| with_rows(v, &|rows| portable::loss(rows, objective).unwrap());
        assert_same(&inputs, kernel, plain);
    }
}

/// A decoder with everything that a checkpoint can have, and adapters; two prompts, one with two answers.
pub(super) fn decoder_and_batch() -> (Decoder, TrainBatch) {
    let config = DecoderConfig { tie_word_embeddings: false, ..DecoderConfig::small(61, 32, 2, 2, 1, 48) };
    let mut decoder = Decoder::random(&config, 1).unwrap();
    let rank = LoraSettings { rank: 2, alpha: 4.0, ..LoraSettings::default() };
    decoder.add_adapters(&rank, 2).unwrap();
    for parameter in decoder.parameters().iter().filter(|parameter| parameter.name.ends_with("lora_B.weight")) {
        parameter.var.set(random_var(7, parameter.var.dims()).as_tensor()).unwrap();
    }
    let mut batch = TrainBatch::default();
    let text = |first: u32, len: u32| (first..first + len).map(|token| token * 7 % 61).collect::<Vec<u32>>();
    batch.push_group(&text(1, 9), [text(20, 4).as_slice(), &text(30, 6)], 0.2).unwrap();
    batch.push_group(&text(5, 12), [text(40, 5).as_slice()], 0.2).unwrap();
    (decoder, batch)
}

/// Loss, every gradient, and scores.
pub(super) fn computed(
    decoder: &mut Decoder,
    batch: &TrainBatch,
    compute: Compute,
) -> (f64, Vec<Vec<f32>>, Vec<(f64, u32)>) {
    decoder.compute = compute;
    decoder.set_dropout(Some(Dropout { rate: 0.1, attention: 0.2, seed: 3, batch: 4 }));
    let loss = decoder.loss(batch, &CrossEntropy::mean(&batch.weights).unwrap()).unwrap();
    let store = loss.backward().unwrap();
    decoder.set_dropout(None);
    let each = decoder.parameters().iter().map(|parameter| values(store.get(&parameter.var).unwrap())).collect();
    (f64::from(loss.to_scalar::<f32>().unwrap()), each, decoder.scores(batch).unwrap())
}

#[test]
fn the_whole_decoder_is_the_same_by_plain_operations() {
    let (mut decoder, batch) = decoder_and_batch();
    let kernels = computed(&mut decoder, &batch, Compute::Kernels);
    let plain = computed(&mut decoder, &batch, Compute::Plain { device: Device::Cpu, dtype: DType::F32 });
    assert!((kernels.0 - plain.0).abs() < 1e-5, "{} and {}", kernels.0, plain.0);
    assert_eq!(kernels.1.len(), plain.1.len());
    for (which, (a, b)) in kernels.1.iter().zip(&plain.1).enumerate() {
        let distance = relative_distance(a, b);
        assert!(distance < 2e-5, "gradient {which}: {distance}");
    }
    for (a, b) in kernels.2.iter().zip(&plain.2) {
        assert!((a.0 - b.0).abs() < 1e-5 && a.1 == b.1, "{a:?} and {b:?}");
    }
}

/// bf16 has 8 bits: a few percent of all gradients together, more of a single small one.
#[test]
fn in_bf16_loss_and_gradients_are_nearly_the_same_and_weights_stay_f32() {
    let (mut decoder, batch) = decoder_and_batch();
    let exact = computed(&mut decoder, &batch, Compute::Kernels);
    let rough = computed(&mut decoder, &batch, Compute::Plain { device: Device::Cpu, dtype: DType::BF16 });
    assert!((exact.0 - rough.0).abs() < 0.01 * exact.0, "{} and {}", exact.0, rough.0);
    for (which, (a, b)) in exact.1.iter().zip(&rough.1).enumerate() {
        let distance = relative_distance(a, b);
        assert!(distance < 0.2, "gradient {which}: {distance}");
    }
    let distance = relative_distance(&exact.1.concat(), &rough.1.concat());
    assert!(distance < 0.1, "all gradients: {distance}");
    assert!(decoder.parameters().iter().all(|parameter| parameter.var.dtype() == DType::F32));
    assert!(exact.1.iter().flatten().zip(rough.1.iter().flatten()).any(|(a, b)| a != b), "bf16 was not used");
}
