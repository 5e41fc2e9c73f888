//! Adapters: what they add, that they alone are trained, and PEFT's files. Dropout, which stands in the same branches.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::lora::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraSettings, adapter_groups};
use super::tests::{mean_loss, random_var, relative_distance, tiny, tiny_batch};
use super::*;
use crate::fit::{AdamW, AdamWSettings, Gradients, ParameterSet};
use crate::nn::Module;

fn settings(targets: &[&str], last_layers: usize) -> LoraSettings {
    LoraSettings { rank: 4, alpha: 8.0, targets: targets.iter().map(ToString::to_string).collect(), last_layers }
}

/// Log-likelihoods of tokens by a decoder.
fn likelihoods(decoder: &Decoder) -> Vec<f64> {
    decoder.log_likelihoods(&tiny_batch(5)).unwrap()
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// A decoder with adapters, trained a little so that they add something.
fn trained(settings: &LoraSettings) -> Decoder {
    let mut decoder = Decoder::random(&tiny(true), 3).unwrap();
    let before = likelihoods(&decoder);
    decoder.add_adapters(settings, 1).unwrap();
    assert!(farthest(&before, &likelihoods(&decoder)) == 0.0, "B is 0: nothing is added yet");
    let base = |decoder: &Decoder| -> Vec<Vec<f32>> {
        let all = decoder.parameters().into_iter().filter(|parameter| !parameter.name.contains("lora"));
        all.map(|parameter| parameter.var.flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    let untouched = base(&decoder);
    let set = ParameterSet::grouped(&decoder, &adapter_groups(), 1e-2).unwrap();
    assert!(set.trainable().all(|parameter| parameter.name.contains("lora")));
    let mut optimizer = AdamW::new(set, AdamWSettings::default());
    let mut losses = Vec::new();
    for step in 0..12 {
        let loss = mean_loss(&decoder, &tiny_batch(step % 2));
        losses.push(loss.to_scalar::<f32>().unwrap());
        let store = loss.backward().unwrap();
        // Nothing else has a gradient either.
        for parameter in decoder.parameters().iter().filter(|parameter| parameter.name.ends_with("proj.weight")) {
            assert!(store.get(&parameter.var).is_none(), "{}", parameter.name);
        }
        optimizer.update(&Gradients::collect(optimizer.set(), &store).unwrap(), 1e-2).unwrap();
    }
    assert!(losses[11] < losses[1], "{losses:?}");
    assert_eq!(base(&decoder), untouched);
    decoder
}

#[test]
fn merged_and_unmerged_give_the_same() {
    for settings in [
        settings(&["q_proj", "v_proj"], 0),
        settings(&["k_proj", "o_proj", "gate_proj", "down_proj"], 1),
        settings(&["up_proj"], 0),
        LoraSettings::default(),
    ] {
        let mut decoder = trained(&settings);
        let apart = likelihoods(&decoder);
        let folder = tempfile::tempdir().unwrap();
        let message = save_checkpoint(&decoder, folder.path()).unwrap_err().to_string();
        assert!(message.contains("merge"), "{message}");
        decoder.merge_adapters().unwrap();
        assert!(!decoder.has_adapters());
        assert!(farthest(&apart, &likelihoods(&decoder)) < 1e-5);
        save_checkpoint(&decoder, folder.path()).unwrap();
        assert!(farthest(&apart, &likelihoods(&load_checkpoint(folder.path()).unwrap())) < 1e-5);
    }
}

/// Beside a frozen matrix they are one operation with it, beside a trained one an operation of their own.
#[test]
fn adapters_have_the_same_gradients_beside_a_frozen_base_and_a_trained_one() {
    for settings in [settings(&["k_proj", "v_proj", "up_proj"], 0), LoraSettings::default()] {
        let decoder = trained(&settings);
        let gradients = || {
            let store = mean_loss(&decoder, &tiny_batch(7)).backward().unwrap();
            let all = decoder.parameters().into_iter().filter(|parameter| parameter.name.contains("lora"));
            all.map(|found| store.get(&found.var).unwrap().flatten_all().unwrap().to_vec1().unwrap()).collect()
        };
        let frozen: Vec<Vec<f32>> = gradients();
        decoder.freeze(&|_| false);
        for (beside_frozen, beside_trained) in frozen.iter().zip(&gradients()) {
            assert!(relative_distance(beside_frozen, beside_trained) < 1e-5);
        }
    }
}

#[test]
fn saved_adapters_come_back_to_the_last_bit() {
    for chosen in [settings(&["q_proj", "v_proj", "down_proj"], 1), LoraSettings::default()] {
        let decoder = trained(&chosen);
        let folder = tempfile::tempdir().unwrap();
        decoder.save_adapters("base".as_ref(), folder.path()).unwrap();
        let mut again = Decoder::random(&tiny(true), 3).unwrap();
        again.load_adapters(folder.path()).unwrap();
        assert_eq!(likelihoods(&again), likelihoods(&decoder));
        let second = tempfile::tempdir().unwrap();
        again.save_adapters("base".as_ref(), second.path()).unwrap();
        for file in [ADAPTER_CONFIG, ADAPTER_WEIGHTS] {
            let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
            assert!(read(&folder) == read(&second), "{file}");
        }
    }
}

#[test]
fn adapters_that_are_not_computed_here_are_refused_by_key() {
    let decoder = trained(&settings(&["q_proj"], 0));
    let folder = tempfile::tempdir().unwrap();
    decoder.save_adapters("base".as_ref(), folder.path()).unwrap();
    let path = folder.path().join(ADAPTER_CONFIG);
    let text = std::fs::read_to_string(&path).unwrap();
    for (key, value) in [
        ("use_dora", "true"),
        ("use_rslora", "true"),
        ("bias", "\"all\""),
        ("rank_pattern", "{\"q_proj\": 2}"),
        ("peft_type", "\"IA3\""),
        ("init_lora_weights", "\"pissa\""),
        ("r", "3"),
        ("lora_alpha", "null"),
    ] {
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[key] = serde_json::from_str(value).unwrap();
        std::fs::write(&path, config.to_string()).unwrap();
        let mut other = Decoder::random(&tiny(true), 3).unwrap();
        let message = other.load_adapters(folder.path()).unwrap_err().to_string();
        assert!(message.contains(if key == "r" { "lora_A" } else { key }) && message.contains("adapter_"), "{message}");
    }
    std::fs::write(&path, &text).unwrap();
    let narrow = DecoderConfig { num_hidden_layers: 1, ..tiny(true) };
    let message = Decoder::random(&narrow, 3).unwrap().load_adapters(folder.path()).unwrap_err().to_string();
    assert!(message.contains("layers.1.self_attn.q_proj.lora_"), "{message}");
    let mut decoder = Decoder::random(&tiny(true), 3).unwrap();
    assert!(decoder.add_adapters(&settings(&["w_proj"], 0), 1).unwrap_err().to_string().contains("w_proj"));
}

#[test]
fn dropout_keeps_the_mean_and_its_gradient_has_the_same_mask() {
    let dropout = Dropout { rate: 0.25, attention: 0.0, seed: 3, batch: 7 };
    let ones = candle_core::Var::ones((500, 32), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let once = dropout.apply(&ones, 1).unwrap();
    let values: Vec<f32> = once.flatten_all().unwrap().to_vec1().unwrap();
    let dropped = values.iter().filter(|value| **value == 0.0).count() as f64 / 16_000.0;
    assert!((dropped - 0.25).abs() < 0.015, "{dropped}");
    assert!(values.iter().all(|value| *value == 0.0 || (value - 4.0 / 3.0).abs() < 1e-6));
    let gradient = once.sum_all().unwrap().backward().unwrap().remove(&ones).unwrap();
    assert_eq!(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
    for other in [Dropout { batch: 8, ..dropout }.apply(&ones, 1), dropout.apply(&ones, 2)] {
        assert_ne!(other.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
    }
    assert_eq!(dropout.apply(&ones, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
}

#[test]
fn dropout_of_attention_drops_its_share_and_each_query_has_its_own_mask() {
    let dropout = Dropout { rate: 0.0, attention: 0.25, seed: 3, batch: 7 };
    let mask = |dropout: Dropout, layer: usize, query: usize| {
        let mut values = vec![1.0f32; 500];
        dropout.of_attention(layer).unwrap().apply(query, &mut values);
        values
    };
    let all: Vec<f32> = (0..32).flat_map(|query| mask(dropout, 1, query)).collect();
    let dropped = all.iter().filter(|value| **value == 0.0).count() as f64 / 16_000.0;
    assert!((dropped - 0.25).abs() < 0.015, "{dropped}");
    assert!(all.iter().all(|value| *value == 0.0 || (value - 4.0 / 3.0).abs() < 1e-6));
    assert_eq!(mask(dropout, 1, 0), mask(dropout, 1, 0));
    for other in [mask(dropout, 1, 1), mask(dropout, 2, 0), mask(Dropout { batch: 8, ..dropout }, 1, 0)] {
        assert_ne!(mask(dropout, 1, 0), other);
    }
    assert!(Dropout { attention: 0.0, ..dropout }.of_attention(0).is_none());
}

#[test]
fn a_decoder_drops_only_while_it_is_told_to() {
    let mut decoder = Decoder::random(&tiny(true), 3).unwrap();
    let loss = |decoder: &Decoder| mean_loss(decoder, &tiny_batch(1)).to_scalar::<f32>().unwrap();
    let plain = loss(&decoder);
    decoder.set_dropout(Some(Dropout { rate: 0.2, attention: 0.0, seed: 1, batch: 0 }));
    let dropped = loss(&decoder);
    assert_ne!(dropped, plain);
    assert_eq!(dropped, loss(&decoder));
    decoder.set_dropout(None);
    assert_eq!(loss(&decoder), plain);
}

#[test]
fn logits_are_scaled_for_an_act_and_have_their_bits_again() {
    let decoder = Decoder::random(&tiny(true), 3).unwrap();
    let batch = tiny_batch(1);
    let before = decoder.log_likelihoods(&batch).unwrap();
    let scaled = decoder.with_scaled_logits(0.7, |decoder| decoder.log_likelihoods(&batch)).unwrap();
    assert_ne!(scaled, before);
    assert_eq!(decoder.log_likelihoods(&batch).unwrap(), before);
}

#[test]
fn swiglu_alone_has_the_gradient_of_the_block() {
    super::tests::check_gradients(&[random_var(1, &[9, 48])], |v| super::linear::swiglu(&v[0]).unwrap());
}

/// One half of scripts/peft_check.py, which gives the folder and judges what is written into it.
#[test]
#[ignore = "run by scripts/peft_check.py"]
fn adapters_for_peft() {
    let folder = std::path::PathBuf::from(std::env::var("TAIJI_PEFT").expect("TAIJI_PEFT: a folder"));
    let read = |name: &str| serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap();
    let tokens: Vec<u32> = read("tokens.json");
    let base = || load_checkpoint(&folder.join("base")).unwrap();
    let write = |decoder: &Decoder, name: &str| {
        let input = TokenBatch::from_sequences([tokens.as_slice()]);
        let of = |token: u32| {
            let (targets, weights) = (vec![token; tokens.len()], vec![1.0; tokens.len()]);
            decoder.log_likelihoods(&TrainBatch { input: input.clone(), targets, weights }).unwrap()
        };
        let columns: Vec<Vec<f64>> = (0..decoder.config().vocab_size as u32).map(of).collect();
        let rows: Vec<Vec<f64>> =
            (0..tokens.len()).map(|row| columns.iter().map(|column| column[row]).collect()).collect();
        std::fs::write(folder.join(name), serde_json::to_vec(&rows).unwrap()).unwrap();
    };
    let mut theirs = base();
    theirs.load_adapters(&folder.join("theirs")).unwrap();
    write(&theirs, "theirs.json");

    let mut ours = base();
    ours.add_adapters(&settings(&["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"], 1), 5).unwrap();
    let mut optimizer =
        AdamW::new(ParameterSet::grouped(&ours, &adapter_groups(), 1e-2).unwrap(), AdamWSettings::default());
    for step in 0..20 {
        let store = mean_loss(&ours, &tiny_batch(step % 2)).backward().unwrap();
        optimizer.update(&Gradients::collect(optimizer.set(), &store).unwrap(), 1e-2).unwrap();
    }
    ours.save_adapters("base".as_ref(), &folder.join("ours")).unwrap();
    write(&ours, "ours.json");
    ours.merge_adapters().unwrap();
    save_checkpoint(&ours, &folder.join("merged")).unwrap();
    write(&ours, "merged.json");
}
