//! The engine's calls on exported graphs, against what Hugging Face computed.

use std::io::Read;
use std::path::Path;

use ort::session::Session;
use safetensors::SafeTensors;
use taiji_export::{ExportOptions, export};
use tempfile::TempDir;
use testkit::fixture;
use testkit::tensors::{floats, integers, largest_difference};

use super::device::{Backend, Call, Device, DeviceOptions};
use super::graph::GraphDims;
use crate::onnx::runtime::{self, Provider};
use crate::onnx::{GRAPH_FILE, folder};

const TOLERANCE: f32 = 1e-3;

fn exported(name: &str, options: &ExportOptions) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    export(&fixture(name), out.path(), options).unwrap();
    out
}

fn open(folder: &Path) -> Session {
    let environment = runtime::environment(None).unwrap();
    runtime::open_session(&environment, &folder.join(GRAPH_FILE), 1).unwrap()
}

/// A ragged prefill with logits at every real position, then eight decode steps, over buffers full of garbage.
fn decoder_matches(name: &str) {
    let out = exported(name, &ExportOptions::default());
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
fn a_graph_says_how_many_positions_it_takes() {
    let out = exported("qwen2", &ExportOptions { max_positions: Some(32), ..ExportOptions::default() });
    assert_eq!(GraphDims::of(&open(out.path())).unwrap().positions, 32);
}

/// The published tokenizer gives the ids that the reference implementation gave, and its text back.
#[test]
fn the_qwen3_tokenizer_passes_its_goldens() {
    let shared = testkit::data_folder().join("tokenizers");
    let unpacked = |path: &Path| {
        let mut text = String::new();
        flate2::read::GzDecoder::new(std::fs::File::open(path).ok()?).read_to_string(&mut text).ok()?;
        Some(text)
    };
    let (Some(tokenizer), Some(goldens)) =
        (unpacked(&shared.join("qwen3/tokenizer.json.gz")), unpacked(&shared.join("goldens.jsonl.gz")))
    else {
        testkit::skip(&format!("{} is not there; TAIJI_DATA_DIR names the folder", shared.display()));
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let tokenizer = folder::load_tokenizer(folder.path()).unwrap();
    let mut checked = 0;
    for line in goldens.lines() {
        let golden: serde_json::Value = serde_json::from_str(line).unwrap();
        if golden["tokenizer"] != "qwen3" {
            continue;
        }
        let text = golden["text"].as_str().unwrap();
        for (special, field) in [(false, "ids"), (true, "ids_special")] {
            let wanted: Vec<u32> = serde_json::from_value(golden[field].clone()).unwrap();
            assert_eq!(tokenizer.encode(text, special).unwrap().get_ids(), wanted, "{text:?}");
        }
        let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), golden["decoded"].as_str().unwrap(), "{text:?}");
        checked += 1;
    }
    assert_eq!(checked, 86);
}
