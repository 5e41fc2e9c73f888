//! Exports the fixtures of `tests/fixtures`, runs them through ONNX Runtime and compares with Hugging Face.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod flavours;
mod models;
mod paged;
mod precision;
mod run;

use std::path::PathBuf;

use ort::session::Session;
use ort::value::Tensor;
use safetensors::SafeTensors;
use tempfile::TempDir;

use super::config::Config;
use super::*;
use crate::llm::device::{Backend, Call, Device, DeviceOptions};
use crate::llm::graph::GraphDims;
use crate::onnx::runtime::{self, Provider};

const TOLERANCE: f32 = 1e-3;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn exported(name: &str) -> (TempDir, ExportReport) {
    let out = tempfile::tempdir().unwrap();
    let report = export(&fixture(name), out.path(), &ExportOptions::default()).unwrap();
    (out, report)
}

fn open(folder: &Path) -> Session {
    let environment = runtime::environment(None).unwrap();
    runtime::open_session(&environment, &folder.join(GRAPH_FILE), 1).unwrap()
}

fn integers(tensors: &SafeTensors, name: &str) -> Vec<i64> {
    tensors.tensor(name).unwrap().data().as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    tensors.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A ragged prefill with logits at every real position, then eight decode steps, over buffers full of garbage.
fn decoder_matches(name: &str) {
    let (out, _) = exported(name);
    let bytes = std::fs::read(fixture(name).join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let lengths = integers(&reference, "lengths");
    let input_ids = integers(&reference, "input_ids");
    let (rows, width) = (lengths.len(), input_ids.len() / lengths.len());
    let session = open(out.path());
    let dims = GraphDims::of(&session).unwrap();
    let vocabulary = dims.vocabulary;
    let options = DeviceOptions { rows, slots: 40, provider: Provider::Cpu };
    let mut device = Device::new(runtime::environment(None).unwrap(), session, dims, options).unwrap();
    device.fill(7.0).unwrap();

    let positions: Vec<usize> =
        (0..rows).flat_map(|row| (0..lengths[row] as usize).map(move |column| row * width + column)).collect();
    let prefill = Call {
        first: 0,
        rows,
        input_ids,
        width,
        seqlens: lengths.iter().map(|&length| length as i32 - 1).collect(),
        total: width as i32,
        logits_indices: positions.iter().map(|&position| position as i64).collect(),
    };
    let wanted = floats(&reference, "prefill_logits");
    let wanted: Vec<f32> =
        positions.iter().flat_map(|position| &wanted[position * vocabulary..][..vocabulary]).copied().collect();
    let prefill_error = largest_difference(device.run(&prefill).unwrap(), &wanted);

    let (chosen, wanted) = (integers(&reference, "decode_ids"), floats(&reference, "decode_logits"));
    let mut decode_error = 0.0_f32;
    for (index, (ids, step_logits)) in chosen.chunks(rows).zip(wanted.chunks(rows * vocabulary)).enumerate() {
        let seqlens: Vec<i32> = lengths.iter().map(|&length| length as i32 + index as i32).collect();
        let decode = Call {
            first: 0,
            rows,
            input_ids: ids.to_vec(),
            width: 1,
            total: seqlens.iter().max().unwrap() + 1,
            seqlens,
            logits_indices: (0..rows as i64).collect(),
        };
        decode_error = decode_error.max(largest_difference(device.run(&decode).unwrap(), step_logits));
    }
    println!("{name}: largest error {prefill_error:e} in prefill, {decode_error:e} in decode");
    assert!(prefill_error < TOLERANCE && decode_error < TOLERANCE, "{prefill_error} {decode_error}");
}

#[test]
fn qwen2_matches_the_reference() {
    decoder_matches("qwen2");
}

#[test]
fn tied_qwen2_in_bf16_matches_the_reference() {
    decoder_matches("qwen2-tied");
}

#[test]
fn qwen3_with_head_norms_matches_the_reference() {
    decoder_matches("qwen3-tied");
}

#[test]
fn bert_matches_the_reference() {
    let (out, _) = exported("bert");
    let bytes = std::fs::read(fixture("bert").join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let (lengths, input_ids) = (integers(&reference, "lengths"), integers(&reference, "input_ids"));
    let (rows, width) = (lengths.len(), input_ids.len() / lengths.len());
    let mask: Vec<i64> =
        (0..rows * width).map(|cell| i64::from((cell % width) < lengths[cell / width] as usize)).collect();
    let mut session = open(out.path());
    let outputs = session
        .run(ort::inputs![
            "input_ids" => Tensor::from_array(([rows, width], input_ids)).unwrap(),
            "attention_mask" => Tensor::from_array(([rows, width], mask)).unwrap(),
        ])
        .unwrap();
    let (_, vectors) = outputs["sentence_embedding"].try_extract_tensor::<f32>().unwrap();
    let error = largest_difference(vectors, &floats(&reference, "sentence_embedding"));
    println!("bert: largest error {error:e}");
    assert!(error < 1e-4, "{error}");
}

/// Bundles that are out there name these hashes: an exporter that changes them makes their encoders unusable.
#[test]
fn the_usual_export_has_the_bytes_it_always_had() {
    use sha2::{Digest, Sha256};

    for (name, graph, data) in [
        ("bert", "41c8911b11d1d601", "113c96507f634039"),
        ("qwen2", "92c6c3dd61f49882", "48108177d8583427"),
        ("qwen2-tied", "d67ba589e475f1a2", "559b18b6f0e2395e"),
        ("qwen3-tied", "a65a293e2d83e056", "ecef3ba0c88e00ff"),
    ] {
        let (out, report) = exported(name);
        let bytes = std::fs::read(out.path().join(GRAPH_FILE)).unwrap();
        let found: String = Sha256::digest(&bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((found.as_str(), &report.data_sha256[..16]), (graph, data), "{name}");
    }
}

#[test]
fn the_same_checkpoint_gives_the_same_bytes_on_pages() {
    let ((first, report), (second, _)) = (exported("qwen3-tied"), exported("qwen3-tied"));
    for name in &report.files {
        let read = |folder: &TempDir| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(read(&first), read(&second), "{name}");
    }
    assert!(report.files.contains(&"tokenizer.json".to_owned()) && report.files.contains(&"config.json".to_owned()));
    let leftovers = std::fs::read_dir(first.path()).unwrap().count();
    assert_eq!(leftovers, report.files.len(), "nothing else may stay behind");
    let graph = std::fs::read(first.path().join(GRAPH_FILE)).unwrap();
    let model: onnx::ModelProto = prost::Message::decode(graph.as_slice()).unwrap();
    let mut external = 0;
    for tensor in model.graph.unwrap().initializer {
        if let Some(offset) = tensor.external_data.iter().find(|entry| entry.key == "offset") {
            assert_eq!(offset.value.parse::<u64>().unwrap() % 4096, 0, "{}", tensor.name);
            external += 1;
        }
    }
    assert!(external > 10);
}

#[test]
fn what_is_not_built_is_said() {
    let out = tempfile::tempdir().unwrap();
    let run = |checkpoint: &Path, options: ExportOptions| export(checkpoint, out.path(), &options).unwrap_err();
    let sharded = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("qwen2").join("config.json"), sharded.path().join("config.json")).unwrap();
    assert!(matches!(run(sharded.path(), ExportOptions::default()), ExportError::Io { .. }));
    let gone = r#"{"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}"#;
    std::fs::write(sharded.path().join("model.safetensors.index.json"), gone).unwrap();
    let message = run(sharded.path(), ExportOptions::default()).to_string();
    assert!(message.contains("model-00002-of-00002.safetensors"), "{message}");
}

#[test]
fn damage_is_named() {
    let (checkpoint, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::copy(fixture("qwen2").join("config.json"), checkpoint.path().join("config.json")).unwrap();
    let weights = std::fs::read(fixture("qwen2").join("model.safetensors")).unwrap();
    std::fs::write(checkpoint.path().join("model.safetensors"), &weights[..weights.len() - 100]).unwrap();
    let error = export(checkpoint.path(), out.path(), &ExportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("copy the checkpoint again"), "{error}");
    assert!(!out.path().join(GRAPH_FILE).exists());
}

#[test]
fn both_layouts_of_the_rope_settings_are_read() {
    let text = std::fs::read_to_string(fixture("qwen2").join("config.json")).unwrap();
    let newer: Config = serde_json::from_str(&text).unwrap();
    assert_eq!(newer.rope().unwrap().theta, 10000.0);
    let older = Config { rope_parameters: None, rope_theta: Some(5e5), ..newer.clone() };
    assert_eq!(older.rope().unwrap().theta, 5e5);
    let scaled = Config { rope_scaling: Some(serde_json::json!({"type": "yarn"})), ..older };
    assert!(matches!(scaled.rope(), Err(ExportError::NotBuilt(_))));
}

#[test]
fn positions_can_be_limited() {
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { max_positions: Some(32), ..ExportOptions::default() };
    assert_eq!(export(&fixture("qwen2"), out.path(), &options).unwrap().max_positions, 32);
    assert_eq!(GraphDims::of(&open(out.path())).unwrap().positions, 32);
    let too_many = ExportOptions { max_positions: Some(257), ..ExportOptions::default() };
    assert!(export(&fixture("qwen2"), out.path(), &too_many).is_err());
}
