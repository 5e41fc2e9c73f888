//! Rates of training steps, printed: `cargo test --release -p taiji-trainer --lib -- --ignored --nocapture speed`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::fit::{AdamW, AdamWSettings, Gradients, ParameterSet};
use crate::objective::CrossEntropy;

fn million() -> Decoder {
    Decoder::random(&DecoderConfig::small(2048, 128, 4, 4, 2, 384), 1).unwrap()
}

fn text(random: &mut ChaCha8Rng, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.random_range(0..2048)).collect()
}

/// Runs on one thread and returns the shortest time of `times` calls, seconds.
fn shortest(times: usize, mut job: impl FnMut() + Send) -> f64 {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let mut once = || {
            let started = Instant::now();
            job();
            started.elapsed().as_secs_f64()
        };
        (0..times).map(|_| once()).fold(f64::MAX, f64::min)
    })
}

#[test]
#[ignore = "prints a rate"]
fn speed_of_steps_at_one_million_parameters() {
    let decoder = million();
    let mut optimizer = AdamW::new(ParameterSet::all(&decoder), AdamWSettings::default());
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let sequences: Vec<Vec<u32>> = (0..8).map(|_| text(&mut random, 256)).collect();
    let input = TokenBatch::from_sequences(sequences.iter().map(Vec::as_slice));
    let targets = input.tokens.iter().map(|token| (token * 7 + 3) % 2048).collect();
    let weights: Vec<f32> = (0..2048).map(|place| if place % 256 < 210 { 0.2 } else { 1.0 }).collect();
    let batch = TrainBatch { input, targets, weights };
    let objective = CrossEntropy::mean(&batch.weights).unwrap();
    let mut last = 0.0;
    let best = shortest(40, || {
        let loss = decoder.loss(&batch, &objective).unwrap();
        let gradients = Gradients::collect(optimizer.set(), &loss.backward().unwrap()).unwrap();
        optimizer.update(&gradients, 1e-3).unwrap();
        last = loss.to_scalar::<f32>().unwrap();
    });
    println!("{:.0} tokens/s, best of 40 steps; loss {last} ({:08x})", 2048.0 / best, last.to_bits());
    assert!(last.is_finite());
}

/// Groups of four answers of 46 tokens to a prompt of 227; `apart`: each answer with a prompt of its own.
fn groups(apart: bool, prompt_weight: f32) -> TrainBatch {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut batch = TrainBatch::default();
    for _ in 0..2 {
        let prompt = text(&mut random, 227);
        let answers: Vec<Vec<u32>> = (0..4).map(|_| text(&mut random, 46)).collect();
        if !apart {
            batch.push_group(&prompt, answers.iter().map(Vec::as_slice), prompt_weight).unwrap();
            continue;
        }
        for answer in &answers {
            let whole = [prompt.as_slice(), answer].concat();
            batch.input.push(&whole[..272], None);
            batch.targets.extend_from_slice(&whole[1..]);
            batch.weights.extend((0..272).map(|place| if place < 226 { prompt_weight } else { 1.0 }));
        }
    }
    batch
}

#[test]
#[ignore = "prints a ratio"]
fn speed_of_groups_that_share_their_prompt() {
    let decoder = million();
    let step = |batch: &TrainBatch| {
        let objective = CrossEntropy::sum(&batch.weights, 8.0 * 46.0).unwrap();
        decoder.loss(batch, &objective).unwrap().backward().unwrap();
    };
    // A weight that changes nothing and still asks for the logits of all rows, as they were made before.
    let (all_logits, answer_logits, shared) = (groups(true, 1e-30), groups(true, 0.0), groups(false, 0.0));
    let rates: Vec<f64> =
        [&all_logits, &answer_logits, &shared].iter().map(|batch| 8.0 / shortest(20, || step(batch))).collect();
    println!(
        "sequences/s of 227 + 46 tokens: whole, logits of all rows {:.1}; whole, logits of answers {:.1}; groups of 4 sharing \
         their prompt {:.1}: {:.2} and {:.2} times as many",
        rates[0],
        rates[1],
        rates[2],
        rates[2] / rates[0],
        rates[2] / rates[1]
    );
    assert!(rates[2] > rates[0]);
}
