//! Gradients against finite differences, and what the decoder promises as a whole.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::attention::{AttentionShape, attention};
use super::embedding::embed;
use super::linear::swiglu_mlp;
use super::loss::cross_entropy;
use super::norm::rms_norm;
use super::*;

fn random_var(seed: u64, shape: &[usize]) -> Var {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| random.random::<f32>() * 2.0 - 1.0).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Compares the gradient of every input with central differences of Σ f(inputs) ∘ fixed random weights.
fn check_gradients(inputs: &[Var], f: impl Fn(&[Var]) -> Tensor) {
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

#[test]
fn cross_entropy_gradient_with_signed_weights() {
    let weights = [1.0, 0.0, -0.5, 0.3, 2.0];
    check_gradients(&[random_var(1, &[5, 8]), random_var(2, &[11, 8])], |v| {
        cross_entropy(&v[0], &v[1], &[3, 10, 0, 7, 3], &weights, 1.7).unwrap()
    });
}

#[test]
fn attention_gradient_over_uneven_sequences() {
    let shape = Arc::new(AttentionShape::new(4, 2, 16, 64, 10_000.0));
    let offsets = Arc::new(vec![0, 1, 20, 37]);
    let inputs = [random_var(1, &[37, 8 * 16]), random_var(2, &[8 * 16])];
    check_gradients(&inputs, |v| attention(&v[0], &v[1], &offsets, &shape).unwrap());
}

/// The same attention written with candle's plain operations, one sequence, one query head at a time.
fn plain_attention(qkv: &Tensor, bias: &Tensor, shape: &AttentionShape) -> Tensor {
    let (len, dim) = (qkv.dim(0).unwrap(), shape.head_dim);
    let qkv = qkv.broadcast_add(bias).unwrap();
    let part = |slot: usize| qkv.narrow(1, slot * dim, dim).unwrap().contiguous().unwrap();
    let rotate = |head: Tensor| {
        let mut values: Vec<f32> = head.flatten_all().unwrap().to_vec1().unwrap();
        for (position, row) in values.chunks_exact_mut(dim).enumerate() {
            shape.rotate(row, position, 1.0);
        }
        Tensor::from_vec(values, (len, dim), &Device::Cpu).unwrap()
    };
    let mask: Vec<f32> = (0..len * len).map(|i| if i % len > i / len { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (len, len), &Device::Cpu).unwrap();
    let heads: Vec<Tensor> = (0..shape.heads)
        .map(|head| {
            let group = head / (shape.heads / shape.kv_heads);
            let (query, key) = (rotate(part(head)), rotate(part(shape.heads + group)));
            let scores = (query.matmul(&key.t().unwrap()).unwrap() / (dim as f64).sqrt()).unwrap().add(&mask).unwrap();
            let exponents = scores.exp().unwrap();
            let sums = exponents.sum_keepdim(1).unwrap();
            exponents.broadcast_div(&sums).unwrap().matmul(&part(shape.heads + shape.kv_heads + group)).unwrap()
        })
        .collect();
    Tensor::cat(&heads, 1).unwrap()
}

#[test]
fn attention_matches_plain_operations_and_keeps_sequences_apart() {
    let shape = Arc::new(AttentionShape::new(4, 2, 32, 64, 10_000.0));
    let (qkv, bias) = (random_var(1, &[50, 8 * 32]), random_var(2, &[8 * 32]));
    let offsets = Arc::new(vec![0, 33, 50]);
    let fused: Vec<f32> = attention(&qkv, &bias, &offsets, &shape).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let parts =
        [(0, 33), (33, 17)].map(|(start, len)| plain_attention(&qkv.narrow(0, start, len).unwrap(), &bias, &shape));
    let plain: Vec<f32> = Tensor::cat(&parts, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    for (a, b) in fused.iter().zip(&plain) {
        assert!((a - b).abs() < 1e-5, "{a} against {b}");
    }
}

fn tiny(tie: bool) -> DecoderConfig {
    DecoderConfig { tie_word_embeddings: tie, ..DecoderConfig::small(40, 32, 2, 2, 1, 48) }
}

fn tiny_batch(seed: u64) -> TrainBatch {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let sequences: Vec<Vec<u32>> =
        [7, 20, 33].iter().map(|len| (0..*len).map(|_| random.random_range(0..40)).collect()).collect();
    let input = TokenBatch::from_sequences(sequences.iter().map(Vec::as_slice));
    let targets = (0..60).map(|_| random.random_range(0..40)).collect();
    TrainBatch { input, targets, weights: (0..60).map(|i| (i % 3) as f32).collect() }
}

#[test]
fn every_trainable_tensor_gets_a_gradient() {
    for tie in [true, false] {
        let decoder = Decoder::random(&tiny(tie), 1).unwrap();
        let gradients = decoder.loss(&tiny_batch(1)).unwrap().backward().unwrap();
        for parameter in decoder.parameters() {
            let gradient = gradients.get(&parameter.var).unwrap_or_else(|| panic!("{} has none", parameter.name));
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(norm > 0.0 && norm.is_finite(), "{}: {norm}", parameter.name);
        }
    }
}

#[test]
fn whole_decoder_gradient_matches_finite_differences() {
    let decoder = Decoder::random(&tiny(true), 5).unwrap();
    let batch = tiny_batch(2);
    let inputs: Vec<Var> = decoder.parameters().into_iter().map(|p| p.var).collect();
    // Larger weights than the initial ones, so that every path carries a visible gradient.
    for (index, var) in inputs.iter().enumerate().filter(|(_, var)| var.rank() == 2) {
        var.set(&(random_var(index as u64, var.dims()).as_tensor() * 0.3).unwrap()).unwrap();
    }
    check_gradients(&inputs, |_| (decoder.loss(&batch).unwrap() * 50.0).unwrap());
}

fn train_steps(decoder: &Decoder, optimizer: &mut AdamW, steps: u64) -> Vec<f32> {
    (0..steps)
        .map(|step| {
            let loss = decoder.loss(&tiny_batch(step % 2)).unwrap();
            optimizer.update(&loss.backward().unwrap(), 3e-3).unwrap();
            loss.to_scalar::<f32>().unwrap()
        })
        .collect()
}

#[test]
fn training_memorises_and_repeats_bit_for_bit_over_a_resume() {
    let fresh = || {
        let decoder = Decoder::random(&tiny(false), 3).unwrap();
        let optimizer = AdamW::new(decoder.parameters(), AdamWSettings::default());
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
    let mut restored = AdamW::new(loaded.parameters(), AdamWSettings::default());
    restored.restore(&folder.path().join("optimizer.safetensors")).unwrap();
    assert_eq!(restored.steps(), 30);
    assert_eq!(train_steps(&loaded, &mut restored, 30), whole[30..]);
}

#[test]
fn checkpoint_has_the_names_of_hugging_face() {
    let folder = tempfile::tempdir().unwrap();
    save_checkpoint(&Decoder::random(&tiny(true), 1).unwrap(), folder.path()).unwrap();
    let file = checkpoint::read_tensors(&folder.path().join("model.safetensors")).unwrap();
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
    batch.weights.fill(0.0);
    assert!(matches!(decoder.loss(&batch), Err(ModelError::Batch(_))));
    batch.input.offsets = vec![0, 10];
    assert!(matches!(decoder.loss(&batch), Err(ModelError::Batch(_))));
}

#[test]
fn schedule_rises_then_falls() {
    let schedule = Schedule { peak: 1.0, warmup: 10, total: 110, floor: 0.1 };
    assert_eq!(schedule.rate(5), 0.5);
    assert_eq!(schedule.rate(10), 1.0);
    assert!((schedule.rate(60) - 0.55).abs() < 1e-9);
    assert!((schedule.rate(110) - 0.1).abs() < 1e-9);
}
