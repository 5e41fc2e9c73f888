//! Exports the fixtures of `tests/fixtures`, runs them through ONNX Runtime and compares with Hugging Face.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_checkpoints;
mod flavours;
mod gguf;
mod hugging_face;
mod models;
mod paged;
mod precision;
mod recover;
mod run;

use std::sync::OnceLock;

use ort::environment::Environment;
use ort::session::Session;
use ort::value::Tensor;
use safetensors::SafeTensors;
use tempfile::TempDir;

use testkit::fixture;
use testkit::tensors::{floats, integers, largest_difference};

use super::config::Config;
use super::*;

const TOLERANCE: f32 = 1e-3;

fn exported(name: &str) -> (TempDir, ExportReport) {
    let out = tempfile::tempdir().unwrap();
    let report = export(&fixture(name), out.path(), &ExportOptions::default()).unwrap();
    (out, report)
}

/// ONNX Runtime allows one environment a process.
fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| ort::init_from(testkit::onnx_runtime()).unwrap().build().unwrap())
}

/// Opens a graph on the processor.
fn try_open(graph: &Path) -> Result<Session, ort::Error> {
    let builder = Session::builder(environment())?.with_intra_threads(1).map_err(ort::Error::<()>::from)?;
    let mut builder = builder.with_inter_threads(1).map_err(ort::Error::<()>::from)?;
    builder.commit_from_file(graph)
}

fn open(folder: &Path) -> Session {
    try_open(&folder.join(GRAPH_FILE)).unwrap()
}

#[test]
fn the_qwen_families_match_the_reference() {
    for name in ["qwen2", "qwen2-tied", "qwen3-tied"] {
        models::matches(&fixture(name), name);
    }
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
        let found = hex::encode(&Sha256::digest(&bytes)[..8]);
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
    let scaled = Config { rope_scaling: Some(serde_json::json!({"type": "dynamic"})), ..older };
    assert!(matches!(scaled.rope(), Err(ExportError::Setting { key, .. }) if key == "rope_scaling"));
}

#[test]
fn positions_can_be_limited() {
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { max_positions: Some(32), ..ExportOptions::default() };
    assert_eq!(export(&fixture("qwen2"), out.path(), &options).unwrap().max_positions, 32);
    let noted = open(out.path()).metadata().unwrap().custom(MAX_POSITIONS);
    assert_eq!(noted.as_deref(), Some("32"));
    let too_many = ExportOptions { max_positions: Some(257), ..ExportOptions::default() };
    assert!(export(&fixture("qwen2"), out.path(), &too_many).is_err());
}
