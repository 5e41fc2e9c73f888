//! Checkpoints that others made: read into the decoder, against logits in f64 of transformers (scripts/fixtures/checkpoints.py).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use safetensors::SafeTensors;
use testkit::tensors::{floats, integers};

use super::checkpoint::parts;
use super::tests::{mean_loss, relative_distance};
use super::*;
use crate::nn::Module;

#[test]
fn likelihoods_are_those_of_the_reference() {
    for name in ["qwen2-sharded", "qwen2-yarn", "qwen3-wide", "llama-linear", "llama3"] {
        assert_likelihoods(&testkit::fixture("hf").join(name));
    }
}

fn assert_likelihoods(folder: &Path) {
    let decoder = load_checkpoint(folder).unwrap();
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
    assert!(worst < 1e-4, "{}: {worst}", folder.display());
}

/// The batch and the gradients that scripts/fixtures/gradients.py wrote, and the folder of the checkpoint they are of.
struct Reference {
    folder: PathBuf,
    content: Vec<u8>,
}

impl Reference {
    fn read(folder: PathBuf) -> Self {
        let mut content = Vec::new();
        let file = File::open(folder.join("gradients.safetensors.gz")).unwrap();
        GzDecoder::new(file).read_to_end(&mut content).unwrap();
        Self { folder, content }
    }

    /// Asserts that the loss and each parameter's gradient are within `bound` of the reference, and gives the worst of them.
    fn compare(&self, bound: f64) -> f64 {
        let wanted = SafeTensors::deserialize(&self.content).unwrap();
        let numbers = |name: &str| -> Vec<usize> { integers(&wanted, name).iter().map(|&id| id as usize).collect() };
        let ids = |name: &str| -> Vec<u32> { integers(&wanted, name).iter().map(|&id| id as u32).collect() };
        let (mut rest, tokens) = (0, ids("tokens"));
        let texts = numbers("lengths").into_iter().map(|length| {
            rest += length;
            &tokens[rest - length..rest]
        });
        let input = TokenBatch::from_sequences(texts);
        let batch = TrainBatch { input, targets: ids("targets"), weights: floats(&wanted, "weights") };
        let decoder = load_checkpoint(&self.folder).unwrap();
        let loss = mean_loss(&decoder, &batch);
        let off = f64::from(loss.to_scalar::<f32>().unwrap()) - doubles(&wanted, "loss")[0];
        assert!(off.abs() < bound, "loss: {off}");
        let gradients = loss.backward().unwrap();
        let mut worst = (0.0, String::new());
        let mut compared = 0;
        for parameter in decoder.parameters() {
            let gradient: Vec<f32> = gradients.get(&parameter.var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let width = parameter.var.dims().get(1).copied().unwrap_or(1);
            let mut done = 0;
            for (name, rows) in parts(&parameter.name, decoder.config(), parameter.var.dims()[0]) {
                let own = &gradient[done * width..][..rows * width];
                let distance = relative_distance(own, &floats(&wanted, &name));
                if distance > worst.0 {
                    worst = (distance, name);
                }
                (done, compared) = (done + rows, compared + 1);
            }
        }
        // Every parameter of the reference, but for the batch and the loss.
        assert_eq!(compared, wanted.names().len() - 5);
        assert!(worst.0 < bound, "{}: {worst:?}", self.folder.display());
        worst.0
    }
}

fn doubles(tensors: &SafeTensors, name: &str) -> Vec<f64> {
    tensors.tensor(name).unwrap().data().as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
}

#[test]
fn loss_and_every_gradient_are_those_of_transformers() {
    for name in ["qwen2-sharded", "qwen3-wide", "llama-linear", "llama3"] {
        Reference::read(testkit::fixture("hf").join(name)).compare(1e-5);
    }
}

#[test]
fn gradients_of_smollm2() {
    const VARIABLE: &str = "TAIJI_SMOLLM2_GRADIENTS";
    let Some(folder) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        testkit::skip(&format!(
            "it needs gradients of SmolLM2 in f64: make gradient-check makes them and sets {VARIABLE}"
        ));
        return;
    };
    let worst = Reference::read(folder).compare(5e-4);
    println!("SmolLM2: loss and every gradient within {worst:.1e} of transformers in f64");
}

#[test]
fn checkpoints_of_every_kind_come_in_go_out_and_in_again() {
    for name in ["qwen2-sharded", "qwen2-yarn", "qwen3-wide", "llama-linear", "llama3"] {
        let decoder = load_checkpoint(&testkit::fixture("hf").join(name)).unwrap();
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        save_checkpoint(&decoder, first.path()).unwrap();
        let again = load_checkpoint(first.path()).unwrap();
        assert_eq!(again.config(), decoder.config());
        save_checkpoint(&again, second.path()).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
            assert_eq!(read(&first), read(&second), "{name}: {file}");
        }
    }
}

#[test]
fn what_is_not_trained_is_named_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let source = testkit::fixture("hf/llama3");
    std::fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, text.replace("\"mlp_bias\": false", "\"mlp_bias\": true")).unwrap();
    let message = load_checkpoint(folder.path()).unwrap_err().to_string();
    assert!(message.contains("config.json: mlp_bias: is set"), "{message}");
    let message = load_checkpoint(&testkit::fixture("bert")).unwrap_err().to_string();
    assert!(message.contains("BertModel"), "{message}");
}
