//! An embedding decoder as the encoder, against what Hugging Face computed.

use std::path::Path;

use safetensors::SafeTensors;
use taiji_export::{ExportOptions, Precision, Role, export};
use testkit::fixture;

use super::{BertEncoder, Encoder, EncoderOptions};

fn texts() -> Vec<String> {
    serde_json::from_slice(&std::fs::read(fixture("qwen3-embedding").join("texts.json")).unwrap()).unwrap()
}

/// Largest error of the service's own encoder against the reference of `qwen3-embedding`.
fn encoder_error(folder: &Path, max_batch: usize) -> f32 {
    let options = EncoderOptions { threads: 1, max_batch, ..EncoderOptions::default() };
    let encoder = BertEncoder::load(folder, options).unwrap();
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let bytes = std::fs::read(fixture("qwen3-embedding").join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let wanted = reference.tensor("sentence_embedding").unwrap();
    let wanted = wanted.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let found = encoder.encode(&texts).unwrap().concat();
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(wanted).map(|(found, wanted)| (found - wanted).abs()).fold(0.0, f32::max)
}

#[test]
fn an_embedding_checkpoint_becomes_an_encoder_by_itself() {
    let out = tempfile::tempdir().unwrap();
    let report = export(&fixture("qwen3-embedding"), out.path(), &ExportOptions::default()).unwrap();
    assert_eq!((report.architecture.as_str(), report.hidden_size), ("Qwen3ForCausalLM", 64));
    for max_batch in [1, 2, 32] {
        let error = encoder_error(out.path(), max_batch);
        println!("qwen3-embedding in batches of {max_batch}: {error:e}");
        assert!(error < 1e-4, "{error}");
    }
    for (precision, limit) in [(Precision::F16, 5e-3), (Precision::Int8, 5e-2)] {
        let options = ExportOptions { precision, ..ExportOptions::default() };
        let smaller = tempfile::tempdir().unwrap();
        export(&fixture("qwen3-embedding"), smaller.path(), &options).unwrap();
        let error = encoder_error(smaller.path(), 32);
        println!("qwen3-embedding {}: {error:e}", precision.name());
        assert!(error < limit, "{error}");
    }
}

/// The bare files, without what sentence-transformers adds.
#[test]
fn the_role_of_an_encoder_can_be_chosen() {
    let (bare, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(fixture("qwen3-embedding").join(file), bare.path().join(file)).unwrap();
    }
    let encoder = ExportOptions { role: Some(Role::Encoder), ..ExportOptions::default() };
    export(bare.path(), out.path(), &encoder).unwrap();
    assert!(encoder_error(out.path(), 32) < 1e-4);
}
