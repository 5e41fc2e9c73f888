//! Graphs back to checkpoints.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::nbits::PackedWeight;
use crate::options::Blocks;

/// Name → shape and values as the bytes of f32, of a folder's weights.
fn weights(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(folder.join(WEIGHTS_FILE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut source = Checkpoint::open(folder).unwrap();
    let read = |(name, view): (String, TensorView)| {
        let values = source.read(&name, view.shape()).unwrap().values;
        (name, (view.shape().to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect()))
    };
    tensors.tensors().into_iter().map(read).collect()
}

fn exported_as(checkpoint: &Path, options: &ExportOptions) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    export(checkpoint, out.path(), options).unwrap();
    out
}

fn recovered(graphs: &Path) -> (TempDir, RecoverReport) {
    let out = tempfile::tempdir().unwrap();
    let report = recover(graphs, out.path()).unwrap();
    (out, report)
}

#[test]
fn a_graph_in_f32_gives_back_the_bytes_of_its_checkpoint() {
    for name in ["qwen2", "qwen2-tied", "qwen3-tied", "hf/llama-linear", "hf/qwen3-wide"] {
        let graphs = exported_as(&fixture(name), &ExportOptions::default());
        let (checkpoint, report) = recovered(graphs.path());
        assert_eq!((report.precision.as_str(), report.unpacked), ("f32", 0));
        assert!(weights(checkpoint.path()) == weights(&fixture(name)), "{name}");
        let bytes = std::fs::read(checkpoint.path().join(WEIGHTS_FILE)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert!(tensors.tensors().iter().all(|(_, view)| view.dtype() == Dtype::F32));
        // Whatever was kept beside the weights is enough to export it again, to the same model.
        let again = exported_as(checkpoint.path(), &ExportOptions::default());
        let graph = |folder: &TempDir| std::fs::read(folder.path().join(GRAPH_FILE)).unwrap();
        assert!(graph(&again) == graph(&graphs), "{name}");
    }
}

#[test]
fn rounded_graphs_give_the_numbers_they_multiply_with() {
    for (precision, options) in [
        ("f16", ExportOptions { precision: Precision::F16, ..ExportOptions::default() }),
        ("bf16", ExportOptions { precision: Precision::Bf16, ..ExportOptions::default() }),
        ("int4", ExportOptions { precision: Precision::Int4, block: Some(32), ..ExportOptions::default() }),
        ("int4", ExportOptions { precision: Precision::Int4, head_bits: Some(8), ..ExportOptions::default() }),
        ("int8", ExportOptions { precision: Precision::Int8, ..ExportOptions::default() }),
        ("int8", ExportOptions { precision: Precision::Int8, activations: Element::Bf16, ..ExportOptions::default() }),
    ] {
        for name in ["qwen2", "qwen3-tied"] {
            let graphs = exported_as(&fixture(name), &options);
            let (checkpoint, report) = recovered(graphs.path());
            assert_eq!(report.precision, precision);
            assert_eq!(precision_of(graphs.path()).unwrap(), options.precision);
            assert_eq!(report.unpacked > 0, precision.starts_with("int"), "{report:?}");
            let (found, wanted) = (weights(checkpoint.path()), weights(&fixture(name)));
            for (tensor, (shape, bytes)) in &wanted {
                assert_eq!(&found[tensor].0, shape, "{tensor}");
                let numbers = |bytes: &[u8]| -> Vec<f32> {
                    bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect()
                };
                let (found, wanted) = (numbers(&found[tensor].1), numbers(bytes));
                let scale = wanted.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                let bound = match precision {
                    "int4" => 0.25,
                    _ => 0.01,
                };
                assert!(largest_difference(&found, &wanted) <= bound * scale, "{name} {precision} {tensor}");
            }
        }
    }
}

#[test]
fn blocks_become_what_they_stand_for() {
    for (precision, bits, block) in [(Precision::Int4, 4, 32), (Precision::Int8, 8, 64)] {
        let alike = (precision == Precision::Int4).then_some(bits);
        let (blocks, options) = (
            Blocks { bits, block, accuracy_level: 4, zero_points: false },
            ExportOptions {
                precision,
                block: Some(block),
                head_bits: alike,
                sensitive_bits: alike,
                ..ExportOptions::default()
            },
        );
        let (checkpoint, report) = recovered(exported_as(&fixture("qwen2"), &options).path());
        let (found, mut source) = (weights(checkpoint.path()), Checkpoint::open(&fixture("qwen2")).unwrap());
        let packed = found.iter().filter(|(name, _)| name.ends_with("_proj.weight") || *name == "lm_head.weight");
        let mut count = 0;
        for (name, (shape, bytes)) in packed {
            let wanted = PackedWeight::of(&source.read(name, shape).unwrap(), blocks).dequantised(blocks, shape[1]);
            let wanted: Vec<u8> = wanted.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert!(*bytes == wanted, "{name}");
            count += 1;
        }
        assert_eq!(report.unpacked, count);
    }
}

#[test]
fn zero_points_are_read_back() {
    let bits = Some(4);
    let options = ExportOptions {
        precision: Precision::Int4,
        zero_points: true,
        head_bits: bits,
        sensitive_bits: bits,
        ..ExportOptions::default()
    };
    let (checkpoint, _) = recovered(exported_as(&fixture("qwen2"), &options).path());
    let mut source = Checkpoint::open(&fixture("qwen2")).unwrap();
    let blocks = Blocks { bits: 4, block: 32, accuracy_level: 4, zero_points: true };
    let name = "model.layers.1.self_attn.v_proj.weight";
    let (shape, bytes) = &weights(checkpoint.path())[name];
    let wanted = PackedWeight::of(&source.read(name, shape).unwrap(), blocks).dequantised(blocks, shape[1]);
    let wanted: Vec<u8> = wanted.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(*bytes == wanted);
}

#[test]
fn blocks_kept_from_a_file_give_its_numbers() {
    let (checkpoint, graphs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    crate::gguf::convert(&testkit::fixture("gguf/llama").join("model.gguf"), checkpoint.path(), true).unwrap();
    let options = ExportOptions { precision: Precision::Int4, ..ExportOptions::default() };
    export(checkpoint.path(), graphs.path(), &options).unwrap();
    let (found, _) = recovered(graphs.path());
    let wanted = weights(checkpoint.path());
    for (tensor, (_, bytes)) in weights(found.path()) {
        let pairs = bytes.as_chunks::<4>().0.iter().zip(wanted[&tensor].1.as_chunks::<4>().0);
        let far = pairs.map(|(a, b)| (f32::from_le_bytes(*a) - f32::from_le_bytes(*b)).abs()).fold(0.0, f32::max);
        assert!(far < 1e-5, "{tensor}: {far}");
    }
}

#[test]
fn a_checkpoint_in_f16_is_half_as_long_and_reads_back() {
    let out = tempfile::tempdir().unwrap();
    save_f16(&fixture("qwen2"), out.path()).unwrap();
    let length = |folder: &Path| folder.join(WEIGHTS_FILE).metadata().unwrap().len();
    assert!(length(out.path()) * 2 < length(&fixture("qwen2")) + 8192);
    let (mut rounded, mut whole) =
        (Checkpoint::open(out.path()).unwrap(), Checkpoint::open(&fixture("qwen2")).unwrap());
    for (name, (shape, _)) in weights(&fixture("qwen2")) {
        let (found, wanted) = (rounded.read(&name, &shape).unwrap(), whole.read(&name, &shape).unwrap());
        for (found, wanted) in found.values.iter().zip(&wanted.values) {
            assert_eq!(*found, half::f16::from_f32(*wanted).to_f32(), "{name}");
        }
    }
    assert!(out.path().join("tokenizer.json").is_file());
}

#[test]
fn what_cannot_be_recovered_is_said_and_leaves_nothing() {
    let graphs = exported_as(&fixture("qwen2"), &ExportOptions::default());
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    let refused = |graphs: &Path| {
        let message = recover(graphs, &out).unwrap_err().to_string();
        assert_eq!(parent.path().read_dir().unwrap().count(), 0, "{message}");
        message
    };
    let (bert, _) = exported("bert");
    assert!(refused(bert.path()).contains("is an encoder"));
    let data = graphs.path().join(DATA_FILE);
    let bytes = std::fs::read(&data).unwrap();
    std::fs::write(&data, &bytes[..bytes.len() - 4]).unwrap();
    assert!(refused(graphs.path()).contains("belongs to another graph.onnx.data"));
    std::fs::write(&data, &bytes).unwrap();
    // Settings of another model.
    std::fs::copy(fixture("qwen3-tied").join(CONFIG_FILE), graphs.path().join(CONFIG_FILE)).unwrap();
    let message = refused(graphs.path());
    assert!(message.contains("graph.onnx") && message.contains("config.json asks for"), "{message}");
    std::fs::write(graphs.path().join(GRAPH_FILE), "no graph").unwrap();
    assert!(refused(graphs.path()).contains("graph.onnx"));
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("file"), "mine").unwrap();
    let (fresh, _) = exported("qwen2");
    assert!(matches!(recover(fresh.path(), &out), Err(ExportError::Exists { .. })));
    assert_eq!(std::fs::read_to_string(out.join("file")).unwrap(), "mine");
}
