//! Checkpoints that others made: read into the decoder, against logits in f64 of transformers (scripts/fixtures/checkpoints.py).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use safetensors::SafeTensors;
use testkit::tensors::{floats, integers};

use super::*;

#[test]
fn shards_of_bf16_give_the_likelihoods_of_the_reference() {
    let folder = testkit::fixture("hf/qwen2-sharded");
    let decoder = load_checkpoint(&folder).unwrap();
    let bytes = std::fs::read(folder.join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let (lengths, ids) = (integers(&reference, "lengths"), integers(&reference, "input_ids"));
    let logits = floats(&reference, "prefill_logits");
    let (width, vocabulary) = (ids.len() / lengths.len(), logits.len() / ids.len());

    let rows: Vec<Vec<u32>> = lengths
        .iter()
        .enumerate()
        .map(|(row, &length)| ids[row * width..][..length as usize].iter().map(|&id| id as u32).collect())
        .collect();
    let input = TokenBatch::from_sequences(rows.iter().map(Vec::as_slice));
    // Every position's target is another token, so that all of a row's logits are looked at.
    let targets: Vec<u32> = (0..input.tokens.len()).map(|place| (place * 7 % vocabulary) as u32).collect();
    let weights = vec![1.0; targets.len()];
    let found = decoder.log_likelihoods(&TrainBatch { input, targets: targets.clone(), weights }).unwrap();

    let positions = rows.iter().enumerate().flat_map(|(row, tokens)| (0..tokens.len()).map(move |at| row * width + at));
    let mut worst = 0.0_f64;
    for (place, position) in positions.enumerate() {
        let row: Vec<f64> =
            logits[position * vocabulary..][..vocabulary].iter().map(|&value| f64::from(value)).collect();
        let normaliser = row.iter().map(|value| value.exp()).sum::<f64>().ln();
        let wanted = row[targets[place] as usize] - normaliser;
        worst = worst.max((found[place] - wanted).abs());
    }
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn what_comes_in_goes_out_and_in_again() {
    let decoder = load_checkpoint(&testkit::fixture("hf/qwen2-sharded")).unwrap();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save_checkpoint(&decoder, first.path()).unwrap();
    save_checkpoint(&load_checkpoint(first.path()).unwrap(), second.path()).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
        assert_eq!(read(&first), read(&second), "{file}");
    }
}

#[test]
fn what_is_not_trained_is_named_with_its_file() {
    for (name, key) in [
        ("hf/qwen3-wide", "config.json: architectures: is 'Qwen3ForCausalLM'"),
        ("hf/llama3", "config.json: architectures: is 'LlamaForCausalLM'"),
        ("hf/qwen2-yarn", "config.json: rope_scaling: is set"),
    ] {
        let message = load_checkpoint(&testkit::fixture(name)).unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
}
