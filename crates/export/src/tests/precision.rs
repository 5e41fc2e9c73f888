//! Number formats: what is computed, what is written, what is refused.

use std::fmt::Debug;

use half::f16;
use ort::value::PrimitiveTensorElementType;
use safetensors::tensor::{Dtype, TensorView};

use super::run::{Reference, Runner, error_of, prompt_then_answer};
use super::*;
use crate::nbits::PackedWeight;
use crate::options::Blocks;

fn with(precision: Precision) -> ExportOptions {
    ExportOptions { precision, ..ExportOptions::default() }
}

/// Head and layers alike.
fn plainly(precision: Precision, bits: usize, block: usize) -> ExportOptions {
    let bits = (precision == Precision::Int4).then_some(bits);
    ExportOptions { head_bits: bits, sensitive_bits: bits, block: Some(block), ..with(precision) }
}

fn exported_as(checkpoint: &Path, options: &ExportOptions) -> (TempDir, ExportReport) {
    let out = tempfile::tempdir().unwrap();
    let report = export(checkpoint, out.path(), options).unwrap();
    (out, report)
}

/// Logits of every prompt and answer of a fixture, the answers being fed whatever the graph would choose.
pub(super) fn all_logits<T: PrimitiveTensorElementType + Copy + Debug + 'static>(
    folder: &TempDir,
    reference: &Reference,
    garbage: T,
) -> Vec<f32> {
    let mut runner = Runner::open(&folder.path().join(GRAPH_FILE), reference.rows(), 40, garbage);
    prompt_then_answer(reference).iter().flat_map(|pieces| runner.shared(reference, pieces, None)).collect()
}

/// A checkpoint in f32 whose packed weights are what their bytes stand for.
fn dequantised(name: &str, blocks: Blocks) -> TempDir {
    rewritten(name, |weight, width| PackedWeight::of(&weight, blocks).dequantised(blocks, width))
}

/// A checkpoint whose linear layers are changed.
fn rewritten(name: &str, change: impl Fn(checkpoint::Weight, usize) -> checkpoint::Weight) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut source = Checkpoint::open(&fixture(name)).unwrap();
    let tied = source.config.tie_word_embeddings;
    let mut floats: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (tensor, view) in tensors.tensors() {
        let packed = tensor.ends_with("_proj.weight")
            || tensor == "lm_head.weight"
            || (tied && tensor == "model.embed_tokens.weight");
        let mut weight = source.read(&tensor, view.shape()).unwrap();
        if packed {
            weight = change(weight, view.shape()[1]);
        }
        let bytes = weight.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        floats.push((tensor, view.shape().to_vec(), bytes));
    }
    let views = floats
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

#[test]
fn packed_weights_compute_what_their_bytes_stand_for() {
    for name in ["qwen2", "qwen2-tied", "qwen3-tied"] {
        let reference = Reference::of(name);
        for (precision, bits, block) in
            [(Precision::Int4, 4, 32), (Precision::Int4, 4, 128), (Precision::Int8, 8, 32), (Precision::Int8, 8, 128)]
        {
            let checkpoint = dequantised(name, Blocks { bits, block, accuracy_level: 1, zero_points: false });
            let (plain, _) = exported_as(checkpoint.path(), &ExportOptions::default());
            let wanted = all_logits(&plain, &reference, 7.0_f32);
            let error = |accuracy_level| {
                let options = ExportOptions { accuracy_level, ..plainly(precision, bits, block) };
                let (packed, _) = exported_as(&fixture(name), &options);
                largest_difference(&all_logits(&packed, &reference, 7.0_f32), &wanted)
            };
            let (exact, fast, scale) = (error(1), error(4), reference.scale());
            println!("{name} int{bits} block {block}: {exact:e} at level 1, {fast:e} at level 4, logits to {scale}");
            assert!(exact < 1e-4, "{exact}");
            assert!(fast < 0.2 * scale, "{fast}");
        }
    }
}

/// Bytes of the data file when these tensors follow each other.
fn data_bytes(tensors: impl IntoIterator<Item = usize>) -> u64 {
    let external = tensors.into_iter().filter(|&bytes| bytes >= 1024);
    external.fold(0_usize, |end, bytes| end.next_multiple_of(4096) + bytes) as u64
}

#[test]
fn packed_files_have_the_bytes_that_the_format_says() {
    let (rope, heads, kv, hidden, inner, vocabulary) = (256 * 8 * 4, 64, 32, 64, 96, 128);
    for (precision, bits, block) in [(Precision::Int4, 4, 32), (Precision::Int8, 8, 16), (Precision::Int4, 4, 64)] {
        let packed = |rows: usize, width: usize| {
            let blocks = width.div_ceil(block);
            [rows * blocks * block * bits / 8, rows * blocks * 4]
        };
        let layer = || {
            [packed(heads + 2 * kv, hidden), packed(hidden, heads), packed(inner, hidden), packed(inner, hidden)]
                .into_iter()
                .chain([packed(hidden, inner)])
                .flatten()
        };
        let head = packed(vocabulary, hidden);
        let untied = [rope, rope, vocabulary * hidden * 4].into_iter().chain(layer()).chain(layer()).chain(head);
        let tied = [rope, rope].into_iter().chain(head).chain(layer()).chain(layer());
        let options = plainly(precision, bits, block);
        assert_eq!(exported_as(&fixture("qwen2"), &options).1.parameters, exported("qwen2").1.parameters);
        assert_eq!(exported_as(&fixture("qwen2"), &options).1.data_bytes, data_bytes(untied), "{precision:?} {block}");
        assert_eq!(
            exported_as(&fixture("qwen2-tied"), &options).1.data_bytes,
            data_bytes(tied),
            "{precision:?} {block}"
        );
    }
}

#[test]
fn the_head_can_keep_more_bits_than_the_layers() {
    for name in ["qwen2", "qwen3-tied"] {
        let reference = Reference::of(name);
        let (plain, _) = exported_as(&fixture(name), &ExportOptions::default());
        let wanted = all_logits(&plain, &reference, 7.0_f32);
        let of = |head_bits| {
            let options = ExportOptions { head_bits, accuracy_level: 1, ..plainly(Precision::Int4, 4, 32) };
            let (out, report) = exported_as(&fixture(name), &options);
            let found = all_logits(&out, &reference, 7.0_f32);
            let square: f32 = found.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum();
            ((square / wanted.len() as f32).sqrt(), report.data_bytes)
        };
        let [four, eight, floats, usual] = [Some(4), Some(8), Some(32), None].map(of);
        println!(
            "{name}: root mean square error {} with a head of 4 bits, {} of 8, {} in f32",
            four.0, eight.0, floats.0
        );
        assert!(floats.0 < four.0 && eight.0 < four.0 && floats.1 > eight.1 && eight.1 > four.1);
        assert_eq!(eight, usual);
    }
}

#[test]
fn sensitive_weights_keep_more_bits() {
    let numbers = with(Precision::Int4).numbers().unwrap();
    let bits = |name: &str| numbers.blocks_of(name, 30).map(|blocks| blocks.bits);
    for (name, wanted) in [
        ("model.layers.0.self_attn.qkv_proj.weight", 8),
        ("model.layers.14.self_attn.qkv_proj.weight", 8),
        ("model.layers.14.self_attn.o_proj.weight", 4),
        ("model.layers.0.mlp.up_proj.weight", 4),
        ("model.layers.3.mlp.down_proj.weight", 8),
        ("model.layers.4.mlp.down_proj.weight", 4),
        ("model.layers.25.mlp.down_proj.weight", 4),
        ("model.layers.26.mlp.down_proj.weight", 8),
    ] {
        assert_eq!(bits(name), Some(wanted), "{name}");
    }
}

#[test]
fn zero_points_follow_weights_that_do_not_lie_around_zero() {
    for name in ["qwen2", "qwen3-tied"] {
        // All of them far on one side.
        let shifted = rewritten(name, |mut weight, _| {
            weight.values.iter_mut().for_each(|value| *value = value.abs() + 0.01);
            weight
        });
        let reference = Reference::of(name);
        let (plain, _) = exported_as(shifted.path(), &ExportOptions::default());
        let wanted = all_logits(&plain, &reference, 7.0_f32);
        let of = |zero_points, accuracy_level| {
            let options =
                ExportOptions { zero_points, accuracy_level, head_bits: Some(32), ..plainly(Precision::Int4, 4, 32) };
            let found = all_logits(&exported_as(shifted.path(), &options).0, &reference, 7.0_f32);
            found.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        let (without, given, fast) = (of(false, 1), of(true, 1), of(true, 4));
        println!("{name}: squared error {without} without zero points, {given} with them, {fast} in 8 bits");
        assert!(given < 0.7 * without && fast < 0.7 * without, "{given} {fast} {without}");
    }
}

#[test]
fn calibrated_graphs_are_nearer_on_what_they_were_fitted_to() {
    for name in ["qwen2", "qwen2-tied", "qwen3-tied"] {
        let reference = Reference::of(name);
        let calibration: Vec<Vec<u32>> = (0..reference.rows())
            .map(|row| reference.tokens(row).iter().map(|&token| token as u32).collect())
            .collect();
        let (plain, _) = exported_as(&fixture(name), &ExportOptions::default());
        let wanted = all_logits(&plain, &reference, 7.0_f32);
        let of = |calibration: &[Vec<u32>]| {
            let calibration = calibration.to_vec();
            let options = ExportOptions {
                calibration,
                accuracy_level: 1,
                head_bits: Some(32),
                ..plainly(Precision::Int4, 4, 32)
            };
            let (out, report) = exported_as(&fixture(name), &options);
            let found = all_logits(&out, &reference, 7.0_f32);
            (found.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum::<f32>(), report.data_sha256)
        };
        let (by_itself, fitted) = (of(&[]), of(&calibration));
        println!("{name}: squared error {} by itself, {} fitted", by_itself.0, fitted.0);
        assert!(fitted.0 < 0.8 * by_itself.0);
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(alone.install(|| of(&calibration)).1, fitted.1, "the same bytes with one thread");
    }
}

#[test]
fn halves_run_on_the_cpu_within_their_rounding() {
    for name in ["qwen2", "qwen2-tied", "qwen3-tied"] {
        let reference = Reference::of(name);
        let (plain, _) = exported_as(&fixture(name), &ExportOptions::default());
        let (halves, report) = exported_as(&fixture(name), &with(Precision::F16));
        let wanted = all_logits(&plain, &reference, 7.0_f32);
        let error = largest_difference(&all_logits(&halves, &reference, f16::from_f32(7.0)), &wanted);
        println!("{name} f16: {error:e}, logits to {}", reference.scale());
        assert!(error < 2e-2 * reference.scale(), "{error}");
        assert!(report.data_bytes < std::fs::metadata(plain.path().join(DATA_FILE)).unwrap().len());
    }
}

/// Errors of the tree and standard graphs of a precision against the reference.
fn flavour_errors<T: PrimitiveTensorElementType + Copy + Debug + 'static>(
    name: &str,
    options: ExportOptions,
    number: fn(f32) -> T,
) -> [f32; 2] {
    let flavours = vec![Flavour::Tree, Flavour::Std];
    let (out, _) = exported_as(&fixture(name), &ExportOptions { flavours, ..options });
    let reference = Reference::of(name);
    let open = |file: &str| Runner::open(&out.path().join(file), reference.rows(), 40, number(7.0));
    let (mut tree, mut standard) = (open(GRAPH_FILE), open("graph.std.onnx"));
    let mut errors = [0.0_f32; 2];
    for pieces in prompt_then_answer(&reference) {
        let of = |found: Vec<f32>| error_of(&found, &reference, &pieces);
        errors[0] = errors[0].max(of(tree.shared(&reference, &pieces, Some(number))));
        errors[1] = errors[1].max(of(standard.standard(&reference, &pieces)));
    }
    errors
}

#[test]
fn the_other_flavours_run_in_halves_and_packed() {
    for name in ["qwen2", "qwen3-tied"] {
        let scale = Reference::of(name).scale();
        let halves = flavour_errors(name, with(Precision::F16), f16::from_f32);
        let packed = flavour_errors(name, ExportOptions { block: Some(16), ..with(Precision::Int8) }, |value| value);
        println!("{name}: tree and std {halves:?} in f16, {packed:?} in int8, logits to {scale}");
        assert!(halves.iter().all(|error| *error < 2e-2 * scale), "{halves:?}");
        assert!(packed.iter().all(|error| *error < 0.2 * scale), "{packed:?}");
    }
}

/// The blocks are the same; their scales are rounded, too.
#[test]
fn packed_graphs_run_with_activations_in_halves() {
    for name in ["qwen2", "qwen3-tied"] {
        let reference = Reference::of(name);
        let options = |activations| ExportOptions { accuracy_level: 1, activations, ..with(Precision::Int4) };
        let (plain, _) = exported_as(&fixture(name), &options(Element::F32));
        let (halves, report) = exported_as(&fixture(name), &options(Element::F16));
        let wanted = all_logits(&plain, &reference, 7.0_f32);
        let error = largest_difference(&all_logits(&halves, &reference, f16::from_f32(7.0)), &wanted);
        let eight = ExportOptions { precision: Precision::Int8, block: Some(16), ..options(Element::F16) };
        let [tree, standard] = flavour_errors(name, eight, f16::from_f32);
        println!("{name}: {error:e}, tree {tree:e}, std {standard:e}, logits to {}", reference.scale());
        assert!(
            error < 2e-2 * reference.scale() && tree.max(standard) < 0.2 * reference.scale(),
            "{error} {tree} {standard}"
        );
        assert!(report.data_bytes < std::fs::metadata(plain.path().join(DATA_FILE)).unwrap().len());
    }
}

#[test]
fn bfloat16_is_written_but_refused_by_the_cpu() {
    let (out, _) = exported_as(&fixture("qwen3-tied"), &with(Precision::Bf16));
    let bytes = std::fs::read(out.path().join(GRAPH_FILE)).unwrap();
    let model: onnx::ModelProto = prost::Message::decode(bytes.as_slice()).unwrap();
    for tensor in model.graph.unwrap().initializer {
        assert!([onnx::BFLOAT16, onnx::INT64].contains(&tensor.data_type), "{}", tensor.name);
    }
    let refused = try_open(&out.path().join(GRAPH_FILE)).err().unwrap().to_string();
    println!("bf16 on the CPU: {refused}");
    assert!(refused.contains("implementation"), "{refused}");
}

#[test]
fn graphs_say_their_precision_and_flavour_unless_usual() {
    let flavours = vec![Flavour::Gqa, Flavour::Std];
    let options = ExportOptions { flavours, ..with(Precision::Int4) };
    let (out, _) = exported_as(&fixture("qwen2"), &options);
    let noted = |folder: &TempDir, file: &str, key: &str| {
        let session = try_open(&folder.path().join(file)).unwrap();
        session.metadata().unwrap().custom(key)
    };
    assert_eq!(noted(&out, GRAPH_FILE, PRECISION).as_deref(), Some("int4"));
    assert_eq!(noted(&out, GRAPH_FILE, FLAVOUR), None);
    assert_eq!(noted(&out, GRAPH_FILE, ACCURACY_LEVEL).as_deref(), Some("4"));
    assert_eq!(noted(&out, "graph.std.onnx", FLAVOUR).as_deref(), Some("std"));
    let (plain, _) = exported("qwen2");
    assert_eq!(noted(&plain, GRAPH_FILE, PRECISION), None);
}

#[test]
fn a_weight_beyond_the_range_of_halves_is_named() {
    let mut graph = GraphWriter::create(tempfile::tempdir().unwrap().path()).unwrap();
    let weight = checkpoint::Weight { shape: vec![2], values: vec![1.0, -70000.0] };
    let refused = graph.weight("wide", &weight, options::Element::F16).unwrap_err().to_string();
    let part = ": tensor wide: holds -70000, which F16 cannot: choose another precision";
    assert!(refused.ends_with(part), "{refused}");
    graph.weight("wide", &weight, options::Element::Bf16).unwrap();
}

#[test]
fn number_settings_are_checked() {
    let out = tempfile::tempdir().unwrap();
    let refused =
        |name: &str, options: ExportOptions| export(&fixture(name), out.path(), &options).unwrap_err().to_string();
    for block in [0, 8, 48] {
        let message = refused("qwen2", ExportOptions { block: Some(block), ..with(Precision::Int4) });
        assert_eq!(message, format!("block {block}: choose a power of two from 16"));
    }
    let message = refused("qwen2", ExportOptions { head_bits: Some(6), ..with(Precision::Int4) });
    assert_eq!(message, "6 bits of the head: choose 4, 8 or 32");
    let message = refused("qwen2", ExportOptions { sensitive_bits: Some(32), ..with(Precision::Int4) });
    assert_eq!(message, "32 bits of sensitive weights: choose 4 or 8");
    let message = refused("qwen2", ExportOptions { zero_points: true, ..with(Precision::Int8) });
    assert_eq!(message, "zero points are chosen for int4 only");
    let message = refused("qwen2", ExportOptions { calibration: vec![vec![1, 2]], ..with(Precision::F32) });
    assert_eq!(message, "a text to calibrate on is chosen for int4 only");
    let message = refused("qwen2", ExportOptions { calibration: vec![vec![1, 999]], ..with(Precision::Int4) });
    assert_eq!(message, "token 999 to calibrate on is not in the vocabulary");
    let message = refused("qwen2", ExportOptions { head_bits: Some(8), ..with(Precision::F16) });
    assert_eq!(message, "bits of the head are chosen for int4 only");
    let message = refused("qwen2", ExportOptions { accuracy_level: 5, ..with(Precision::Int8) });
    assert_eq!(message, "accuracy level 5: choose 0 to 4");
    let message = refused("qwen2", ExportOptions { activations: Element::F16, ..with(Precision::Bf16) });
    assert_eq!(message, "activations are chosen for int4 and int8 only");
    assert_eq!(refused("bert", with(Precision::Int4)), "precision int4 of a BertModel: not built yet");
    assert!(!out.path().join(GRAPH_FILE).exists());
}
