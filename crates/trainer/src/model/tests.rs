//! Gradients against finite differences, and what the decoder promises as a whole.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use taiji_export::{Rope, RopeScaling};

use super::attention::{AttentionShape, Segment, attention};
use super::batch::LearnedRows;
use super::embedding::embed;
use super::linear::swiglu_mlp;
use super::loss::{LOGIT_BYTES, OutputRows};
use super::norm::rms_norm;
use super::*;
use crate::fit::{AdamW, AdamWSettings, Gradients, GroupSettings, ParameterSet};
use crate::nn::{Module, Parameter, TensorFile, Weight};
use crate::objective::{CrossEntropy, Evaluation};

pub(super) fn random_var(seed: u64, shape: &[usize]) -> Var {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| random.random::<f32>() * 2.0 - 1.0).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Compares the gradient of every input with central differences of Σ f(inputs) ∘ fixed random weights.
pub(super) fn check_gradients(inputs: &[Var], f: impl Fn(&[Var]) -> Tensor) {
    let probe = random_var(99, f(inputs).dims());
    let scalar = |inputs: &[Var]| (f(inputs) * probe.as_tensor()).unwrap().sum_all().unwrap();
    let gradients = scalar(inputs).backward().unwrap();
    for (which, input) in inputs.iter().enumerate() {
        let gradient: Vec<f32> = gradients.get(input).expect("gradient").flatten_all().unwrap().to_vec1().unwrap();
        let start: Vec<f32> = input.flatten_all().unwrap().to_vec1().unwrap();
        let shift = 1e-2f32;
        for index in (0..start.len()).step_by((start.len() / 40).max(1)) {
            let at = |delta: f32| {
                let mut moved = start.clone();
                moved[index] += delta;
                input.set(&Tensor::from_vec(moved, input.dims(), &Device::Cpu).unwrap()).unwrap();
                f64::from(scalar(inputs).to_scalar::<f32>().unwrap())
            };
            let slope = (at(shift) - at(-shift)) / (2.0 * f64::from(shift));
            at(0.0);
            let difference = (slope - f64::from(gradient[index])).abs();
            assert!(
                difference < 0.02 * slope.abs().max(1.0),
                "input {which} value {index}: {slope} numerically, {} by backward",
                gradient[index]
            );
        }
    }
}

#[test]
fn rms_norm_gradient() {
    check_gradients(&[random_var(1, &[150, 32]), random_var(2, &[32])], |v| rms_norm(&v[0], &v[1], 1e-6).unwrap());
}

#[test]
fn swiglu_gradient() {
    let inputs = [random_var(1, &[9, 16]), random_var(2, &[48, 16]), random_var(3, &[16, 24])];
    check_gradients(&inputs, |v| swiglu_mlp(&v[0], &v[1], &v[2]).unwrap());
}

#[test]
fn embedding_gradient_adds_repeated_tokens() {
    check_gradients(&[random_var(1, &[5, 8])], |v| embed(&v[0], &[3, 1, 3, 3, 0]).unwrap());
}

/// Output layer over rows 0, 2, 3, 5 of `hidden`.
fn output_loss(hidden: &Tensor, table: &Tensor, objective: &dyn Objective, logit_bytes: usize) -> Tensor {
    let learned = LearnedRows { places: vec![0, 2, 3, 5], targets: vec![3, 10, 7, 3] };
    let smoothing = objective.label_smoothing();
    OutputRows { hidden, table, learned: &learned, smoothing, logit_bytes }.loss(objective).unwrap()
}

#[test]
fn output_gradient_with_signed_weights_smoothing_and_small_chunks() {
    let inputs = [random_var(1, &[6, 8]), random_var(2, &[11, 8])];
    let objective = CrossEntropy::sum(&[1.0, -0.5, 0.3, 2.0], 1.7).unwrap();
    // Two rows of logits at once, then one, then all.
    for logit_bytes in [2 * 11 * 4, 1, LOGIT_BYTES] {
        check_gradients(&inputs, |v| output_loss(&v[0], &v[1], &objective, logit_bytes));
        let smoothed = objective.clone().smoothed(0.3).unwrap();
        check_gradients(&inputs, |v| output_loss(&v[0], &v[1], &smoothed, logit_bytes));
    }
}

/// Its derivative depends on the log-likelihoods of other rows: -log Σ e^log-likelihood.
struct LogSum;

impl Objective for LogSum {
    fn evaluate(&self, log_likelihoods: &[f64]) -> Result<Evaluation, ObjectiveError> {
        let sum: f64 = log_likelihoods.iter().map(|value| value.exp()).sum();
        let derivatives = log_likelihoods.iter().map(|value| -value.exp() / sum).collect();
        Ok(Evaluation { value: -sum.ln(), derivatives })
    }
}

#[test]
fn output_gradient_of_an_objective_over_all_rows() {
    let inputs = [random_var(1, &[6, 8]), random_var(2, &[11, 8])];
    for logit_bytes in [3 * 11 * 4, LOGIT_BYTES] {
        check_gradients(&inputs, |v| output_loss(&v[0], &v[1], &LogSum, logit_bytes));
    }
}

/// A cross-entropy that does not say its derivatives beforehand.
struct Unforeseen(CrossEntropy);

impl Objective for Unforeseen {
    fn evaluate(&self, log_likelihoods: &[f64]) -> Result<Evaluation, ObjectiveError> {
        self.0.evaluate(log_likelihoods)
    }

    fn label_smoothing(&self) -> f64 {
        self.0.label_smoothing()
    }
}

#[test]
fn one_pass_and_two_give_the_same_bits() {
    let (hidden, table) = (random_var(1, &[6, 8]), random_var(2, &[11, 8]));
    let all = |objective: &dyn Objective, logit_bytes| {
        let loss = output_loss(&hidden, &table, objective, logit_bytes);
        let gradients = loss.backward().unwrap();
        [&hidden, &table].map(|input| gradients.get(input).unwrap().to_vec2::<f32>().unwrap())
    };
    for smoothing in [0.0, 0.3] {
        let objective = CrossEntropy::sum(&[1.0, -0.5, 0.3, 2.0], 1.7).unwrap().smoothed(smoothing).unwrap();
        for logit_bytes in [1, 3 * 11 * 4, LOGIT_BYTES] {
            assert_eq!(all(&objective, logit_bytes), all(&Unforeseen(objective.clone()), logit_bytes));
        }
    }
}

#[test]
fn smoothed_loss_is_the_cross_entropy_with_the_smoothed_target() {
    let (hidden, table) = (random_var(1, &[6, 8]), random_var(2, &[11, 8]));
    let mean = |objective: CrossEntropy| {
        f64::from(output_loss(&hidden, &table, &objective, LOGIT_BYTES).to_scalar::<f32>().unwrap())
    };
    let logits = hidden.matmul(&table.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let (mut target, mut uniform) = (0.0, 0.0);
    for (place, wanted) in [(0, 3), (2, 10), (3, 7), (5, 3)] {
        let sum: f64 = logits[place].iter().map(|logit| f64::from(*logit).exp()).sum();
        let nll: Vec<f64> = logits[place].iter().map(|logit| sum.ln() - f64::from(*logit)).collect();
        target += nll[wanted] / 4.0;
        uniform += nll.iter().sum::<f64>() / 44.0;
    }
    let plain = CrossEntropy::mean(&[1.0; 4]).unwrap();
    assert!((mean(plain.clone()) - target).abs() < 1e-6);
    assert!((mean(plain.smoothed(0.1).unwrap()) - (0.9 * target + 0.1 * uniform)).abs() < 1e-6);
}

/// No change of the frequencies.
pub(super) fn plain_rope() -> Rope {
    Rope { theta: 10_000.0, scaling: RopeScaling::Default }
}

/// Sequences of these lengths, none continuing another.
fn apart(lengths: &[usize]) -> Arc<Vec<Segment>> {
    let mut start = 0;
    let segment = |len: &usize| {
        start += len;
        Segment { rows: start - len..start, prefix: 0..0 }
    };
    Arc::new(lengths.iter().map(segment).collect())
}

#[test]
fn attention_gradient_over_uneven_sequences() {
    let shape = Arc::new(AttentionShape::new(4, 2, 16, 64, &plain_rope()));
    let inputs = [random_var(1, &[37, 8 * 16]), random_var(2, &[8 * 16])];
    check_gradients(&inputs, |v| attention(&v[0], Some(&v[1]), &apart(&[1, 19, 17]), &shape, None).unwrap());
}

#[test]
fn attention_gradient_with_a_shared_prefix() {
    let shape = Arc::new(AttentionShape::new(4, 2, 16, 64, &plain_rope()));
    let inputs = [random_var(1, &[45, 8 * 16]), random_var(2, &[8 * 16])];
    let child = |rows| Segment { rows, prefix: 0..19 };
    let segments = vec![Segment { rows: 0..19, prefix: 0..0 }, child(19..20), child(20..37), child(37..45)];
    check_gradients(&inputs, |v| attention(&v[0], Some(&v[1]), &Arc::new(segments.clone()), &shape, None).unwrap());
}

pub(super) fn tiny(tie: bool) -> DecoderConfig {
    DecoderConfig { tie_word_embeddings: tie, ..DecoderConfig::small(40, 32, 2, 2, 1, 48) }
}

pub(super) fn tiny_batch(seed: u64) -> TrainBatch {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let sequences: Vec<Vec<u32>> =
        [7, 20, 33].iter().map(|len| (0..*len).map(|_| random.random_range(0..40)).collect()).collect();
    let input = TokenBatch::from_sequences(sequences.iter().map(Vec::as_slice));
    let targets = (0..60).map(|_| random.random_range(0..40)).collect();
    TrainBatch { input, targets, weights: (0..60).map(|i| (i % 3) as f32).collect() }
}

/// Weighted mean cross-entropy.
pub(super) fn mean_loss(decoder: &Decoder, batch: &TrainBatch) -> Tensor {
    decoder.loss(batch, &CrossEntropy::mean(&batch.weights).unwrap()).unwrap()
}

#[test]
fn every_trainable_tensor_gets_a_gradient() {
    for tie in [true, false] {
        let decoder = Decoder::random(&tiny(tie), 1).unwrap();
        let gradients = mean_loss(&decoder, &tiny_batch(1)).backward().unwrap();
        for parameter in decoder.parameters() {
            let gradient = gradients.get(&parameter.var).unwrap_or_else(|| panic!("{} has none", parameter.name));
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(norm > 0.0 && norm.is_finite(), "{}: {norm}", parameter.name);
        }
    }
}

/// Frozen parameters get none, and all others the gradients they get when everything is trained.
#[test]
fn a_band_of_layers_gets_the_gradients_it_has_in_the_whole() {
    let decoder = Decoder::random(&tiny(false), 1).unwrap();
    let loss_gradients = || mean_loss(&decoder, &tiny_batch(1)).backward().unwrap();
    let whole = loss_gradients();
    let frozen = |names: &[&str]| GroupSettings {
        names: names.iter().map(ToString::to_string).collect(),
        frozen: true,
        ..GroupSettings::default()
    };
    for group in [
        frozen(&["*embed_tokens*", "model.layers.0.*"]),
        frozen(&["*proj.weight"]),
        frozen(&["model.layers.{0..1}.*", "model.norm*"]),
        frozen(&["*gate_up*", "*norm*", "*bias"]),
        frozen(&["*down*", "*embed*", "lm_head*"]),
    ] {
        let set = ParameterSet::grouped(&decoder, std::slice::from_ref(&group), 1.0).unwrap();
        let band = loss_gradients();
        assert!(set.trainable().count() < decoder.parameters().len());
        Gradients::collect(&set, &band).unwrap();
        for parameter in set.trainable() {
            let (a, b) = (whole.get(&parameter.var).unwrap(), band.get(&parameter.var).unwrap());
            let off = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(off < 1e-7, "{}: {off}", parameter.name);
        }
    }
}

/// Larger weights than the initial ones, so that every path carries a visible gradient.
pub(super) fn scaled_up(seed: u64) -> Decoder {
    let decoder = Decoder::random(&tiny(true), seed).unwrap();
    for (index, parameter) in decoder.parameters().iter().enumerate().filter(|(_, parameter)| parameter.var.rank() == 2)
    {
        let values = random_var(index as u64, parameter.var.dims());
        parameter.var.set(&(values.as_tensor() * 0.3).unwrap()).unwrap();
    }
    decoder
}

#[test]
fn whole_decoder_gradient_matches_finite_differences() {
    let decoder = scaled_up(5);
    let batch = tiny_batch(2);
    let inputs: Vec<Var> = decoder.parameters().into_iter().map(|p| p.var).collect();
    check_gradients(&inputs, |_| (mean_loss(&decoder, &batch) * 50.0).unwrap());
}

fn train_steps(decoder: &Decoder, optimizer: &mut AdamW, steps: u64) -> Vec<f32> {
    (0..steps)
        .map(|step| {
            let loss = mean_loss(decoder, &tiny_batch(step % 2));
            let gradients = Gradients::collect(optimizer.set(), &loss.backward().unwrap()).unwrap();
            assert!(optimizer.update(&gradients, 3e-3).unwrap().taken);
            loss.to_scalar::<f32>().unwrap()
        })
        .collect()
}

#[test]
fn training_memorises_and_repeats_bit_for_bit_over_a_resume() {
    let fresh = || {
        let decoder = Decoder::random(&tiny(false), 3).unwrap();
        let optimizer = AdamW::new(ParameterSet::all(&decoder), AdamWSettings::default());
        (decoder, optimizer)
    };
    let (decoder, mut optimizer) = fresh();
    let whole = train_steps(&decoder, &mut optimizer, 60);
    assert!(whole[59] < whole[0] * 0.5, "{} to {}", whole[0], whole[59]);

    let folder = tempfile::tempdir().unwrap();
    let (decoder, mut optimizer) = fresh();
    train_steps(&decoder, &mut optimizer, 30);
    save_checkpoint(&decoder, folder.path()).unwrap();
    optimizer.save(&folder.path().join("optimizer.safetensors")).unwrap();
    let loaded = load_checkpoint(folder.path()).unwrap();
    let mut restored = AdamW::new(ParameterSet::all(&loaded), AdamWSettings::default());
    restored.restore(&folder.path().join("optimizer.safetensors")).unwrap();
    assert_eq!(restored.steps(), 30);
    assert_eq!(train_steps(&loaded, &mut restored, 30), whole[30..]);
}

#[test]
fn checkpoint_has_the_names_of_hugging_face() {
    let folder = tempfile::tempdir().unwrap();
    save_checkpoint(&Decoder::random(&tiny(true), 1).unwrap(), folder.path()).unwrap();
    let file = TensorFile::read(&folder.path().join("model.safetensors")).unwrap();
    let shape = |name: &str| file.tensors.iter().find(|(found, ..)| found == name).map(|(_, shape, _)| shape.clone());
    assert_eq!(shape("model.layers.1.self_attn.k_proj.weight"), Some(vec![16, 32]));
    assert_eq!(shape("model.layers.1.self_attn.q_proj.bias"), Some(vec![32]));
    assert_eq!(shape("model.layers.0.mlp.down_proj.weight"), Some(vec![32, 48]));
    assert_eq!(shape("lm_head.weight"), None);
    assert_eq!(file.tensors.len(), 2 + 2 * 12);
    let message = load_checkpoint(&folder.path().join("absent")).unwrap_err().to_string();
    assert!(message.contains("config.json"), "{message}");
}

#[test]
fn bad_shapes_and_batches_are_refused_by_name() {
    let odd = DecoderConfig::small(40, 40, 1, 2, 1, 8);
    assert!(Decoder::random(&odd, 1).unwrap_err().to_string().contains("hidden_size"));
    let decoder = Decoder::random(&tiny(true), 1).unwrap();
    let mut batch = tiny_batch(1);
    let objective = CrossEntropy::mean(&batch.weights).unwrap();
    let refused = |batch: &TrainBatch| decoder.loss(batch, &objective).unwrap_err().to_string();
    batch.input.parents = vec![None, Some(0), Some(1)];
    assert!(refused(&batch).contains("segment 2 must follow its parent"));
    batch.input.parents = vec![None, None, Some(0)];
    assert!(refused(&batch).contains("segment 2 must follow its parent"));
    batch.input.parents = vec![Some(0), None, None];
    assert!(refused(&batch).contains("segment 0 must follow its parent"));
    batch.input.parents = vec![None, Some(0), Some(7)];
    assert!(refused(&batch).contains("segment 2 must follow its parent"));
    batch.input.parents = vec![None; 2];
    assert!(refused(&batch).contains("as many parents"));
    batch.input.parents = vec![None; 3];
    batch.weights[0] = 1.0;
    assert!(refused(&batch).contains("derivatives for 40 rows, the batch has 41 with a weight"));
    batch.weights.fill(0.0);
    assert!(refused(&batch).contains("nothing to learn"));
    batch.input.offsets = vec![0, 10];
    assert!(refused(&batch).contains("offsets must rise"));
    let mut group = TrainBatch::default();
    assert!(group.push_group(&[], [[1].as_slice()], 0.0).unwrap_err().to_string().contains("needs a prompt"));
    assert!(group.push_group(&[1], [[].as_slice()], 0.0).unwrap_err().to_string().contains("needs a token"));
}

fn gradients_of(decoder: &Decoder, loss: &Tensor) -> Vec<Vec<f32>> {
    let gradients = loss.backward().unwrap();
    let values =
        |parameter: Parameter| gradients.get(&parameter.var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    decoder.parameters().into_iter().map(values).collect()
}

/// ‖a - b‖ / ‖b‖.
pub(crate) fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |value: f32| f64::from(value).powi(2);
    let distance: f64 = a.iter().zip(b).map(|(x, y)| square(x - y)).sum();
    (distance / b.iter().map(|value| square(*value)).sum::<f64>()).sqrt()
}

#[test]
fn a_policy_gradient_keeps_the_scale_of_its_advantages() {
    let decoder = Decoder::random(&tiny(true), 1).unwrap();
    let mut batch = tiny_batch(1);
    let at = |batch: &TrainBatch| {
        let objective = CrossEntropy::sum(&batch.weights, 60.0).unwrap();
        gradients_of(&decoder, &decoder.loss(batch, &objective).unwrap())
    };
    let one = at(&batch);
    batch.weights.iter_mut().for_each(|weight| *weight *= -4.0);
    for (ours, theirs) in at(&batch).iter().zip(&one) {
        let expected: Vec<f32> = theirs.iter().map(|value| value * -4.0).collect();
        assert!(relative_distance(ours, &expected) < 1e-6);
    }
}

#[test]
fn two_objectives_share_one_forward() {
    let decoder = Decoder::random(&tiny(false), 1).unwrap();
    let batch = tiny_batch(1);
    let hidden = decoder.hidden(&batch.input).unwrap();
    let objective = CrossEntropy::mean(&batch.weights).unwrap();
    let (first, second) =
        (decoder.loss_of(&hidden, &batch, &objective).unwrap(), decoder.loss_of(&hidden, &batch, &LogSum).unwrap());
    assert_eq!(gradients_of(&decoder, &first), gradients_of(&decoder, &mean_loss(&decoder, &batch)));
    assert_eq!(gradients_of(&decoder, &second), gradients_of(&decoder, &decoder.loss(&batch, &LogSum).unwrap()));
}

#[test]
fn likelihoods_without_a_tape_are_those_of_the_loss() {
    let decoder = Decoder::random(&tiny(true), 1).unwrap();
    let mut batch = tiny_batch(1);
    let likelihoods = decoder.log_likelihoods(&batch).unwrap();
    assert_eq!(likelihoods.len(), 40);
    let learned = batch.weights.iter().filter(|weight| **weight > 0.0);
    let expected =
        -likelihoods.iter().zip(learned).map(|(value, weight)| value * f64::from(*weight)).sum::<f64>() / 60.0;
    assert!((f64::from(mean_loss(&decoder, &batch).to_scalar::<f32>().unwrap()) - expected).abs() < 1e-6);
    assert!(!decoder.forward(&batch.input, Weight::off_tape).unwrap().track_op());
    assert!(decoder.hidden(&batch.input).unwrap().track_op());
    batch.targets[1] = 40;
    assert!(decoder.log_likelihoods(&batch).unwrap_err().to_string().contains("outside the vocabulary"));
    // Position 0 has no weight: what stands there as target does not matter.
    batch.targets[1] = 3;
    batch.targets[0] = 999;
    assert!(decoder.log_likelihoods(&batch).is_ok());
}
