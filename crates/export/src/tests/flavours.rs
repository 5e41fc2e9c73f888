//! TREE and STD graphs against the reference and against GQA, over one data file.

use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::run::{MASKED, Piece, Reference, Runner, error_of, prompt_then_answer, tensor};
use super::*;

fn three_flavours(name: &str) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    let flavours = vec![Flavour::Gqa, Flavour::Tree, Flavour::Std];
    let report = export(&fixture(name), out.path(), &ExportOptions { flavours, ..ExportOptions::default() }).unwrap();
    assert!(report.files.ends_with(&["graph.onnx".into(), "graph.tree.onnx".into(), "graph.std.onnx".into()]));
    out
}

fn graph(folder: &TempDir, file: &str) -> std::path::PathBuf {
    folder.path().join(file)
}

const DECODERS: [&str; 3] = ["qwen2", "qwen2-tied", "qwen3-tied"];

#[test]
fn further_flavours_change_neither_the_data_nor_the_first_graph() {
    for name in DECODERS {
        let (alone, _) = exported(name);
        let together = three_flavours(name);
        for file in [DATA_FILE, GRAPH_FILE] {
            let read = |folder: &TempDir| std::fs::read(graph(folder, file)).unwrap();
            assert_eq!(read(&alone), read(&together), "{name}: {file}");
        }
        let initializers = |file: &str| {
            let bytes = std::fs::read(graph(&together, file)).unwrap();
            let model: onnx::ModelProto = prost::Message::decode(bytes.as_slice()).unwrap();
            let named = model.graph.unwrap().initializer.into_iter().filter(|tensor| tensor.data_location == 1);
            named.map(|tensor| (tensor.name.clone(), tensor)).collect::<std::collections::BTreeMap<_, _>>()
        };
        assert_eq!(initializers(GRAPH_FILE), initializers("graph.tree.onnx"), "{name}");
        assert_eq!(initializers(GRAPH_FILE), initializers("graph.std.onnx"), "{name}");
    }
}

#[test]
fn a_tree_with_a_causal_bias_is_the_plain_graph() {
    for name in DECODERS {
        let (out, reference) = (three_flavours(name), Reference::of(name));
        let mut plain = Runner::open(&graph(&out, GRAPH_FILE), reference.rows(), 40, 7.0_f32);
        let mut tree = Runner::open(&graph(&out, "graph.tree.onnx"), reference.rows(), 40, 7.0_f32);
        let (mut from_plain, mut from_reference) = (0.0_f32, 0.0_f32);
        for pieces in prompt_then_answer(&reference) {
            let found = tree.shared(&reference, &pieces, Some(|bias| bias));
            from_plain = from_plain.max(largest_difference(&found, &plain.shared(&reference, &pieces, None)));
            from_reference = from_reference.max(error_of(&found, &reference, &pieces));
        }
        println!("{name}: tree differs by {from_plain:e} from gqa, {from_reference:e} from the reference");
        assert!(from_plain < 1e-4 && from_reference < TOLERANCE, "{from_plain} {from_reference}");
    }
}

/// Logits after each of `tokens`, computed from the start.
fn recomputed(graph: &Path, tokens: &[i64]) -> Vec<f32> {
    let mut runner = Runner::open(graph, 1, 40, 7.0_f32);
    runner.step(vec![
        ("input_ids", tensor([1, tokens.len()], tokens.to_vec())),
        ("seqlens_k", tensor([1], vec![tokens.len() as i32 - 1])),
        ("total_sequence_length", tensor([], vec![tokens.len() as i32])),
        ("logits_indices", tensor([1], vec![tokens.len() as i64 - 1])),
    ])
}

/// Two branches of two tokens over one prompt, level by level in one row.
#[test]
fn a_forest_is_the_recomputation_of_each_path() {
    for name in DECODERS {
        let (out, reference) = (three_flavours(name), Reference::of(name));
        let prompt = &reference.tokens(2)[..12];
        let branches = [[5_i64, 77], [90, 31]];
        let mut tree = Runner::open(&graph(&out, "graph.tree.onnx"), 1, 40, 7.0_f32);
        let length = prompt.len();
        let causal = (0..length * length).map(|cell| if cell % length <= cell / length { 0.0 } else { MASKED });
        tree.step(level(prompt.to_vec(), (0..length as i64).collect(), length, causal.collect()));
        let mut worst = 0.0_f32;
        for depth in 0..2 {
            let total = length + 2 * (depth + 1);
            // A token sees the prompt, itself and its own ancestors: every second slot behind the prompt.
            let seen = |branch: usize, slot: usize| slot < length || (slot - length) % 2 == branch;
            let bias = (0..2).flat_map(|branch| (0..total).map(move |slot| (branch, slot)));
            let bias = bias.map(|(branch, slot)| if seen(branch, slot) { 0.0 } else { MASKED }).collect();
            let ids = branches.iter().map(|branch| branch[depth]).collect();
            let found = tree.step(level(ids, vec![(length + depth) as i64; 2], total, bias));
            for (branch, logits) in branches.iter().zip(found.chunks(found.len() / 2)) {
                let path = [prompt, &branch[..=depth]].concat();
                worst = worst.max(largest_difference(logits, &recomputed(&graph(&out, GRAPH_FILE), &path)));
            }
        }
        println!("{name}: forest differs by {worst:e} from recomputation");
        assert!(worst < TOLERANCE, "{worst}");
    }
}

/// Inputs of one level of a forest in row 0.
fn level(
    ids: Vec<i64>,
    positions: Vec<i64>,
    total: usize,
    bias: Vec<f32>,
) -> Vec<(&'static str, ort::value::DynValue)> {
    let width = ids.len();
    vec![
        ("input_ids", tensor([1, width], ids)),
        ("seqlens_k", tensor([1], vec![total as i32 - 1])),
        ("total_sequence_length", tensor([], vec![total as i32])),
        ("position_ids", tensor([1, width], positions)),
        ("attention_bias", tensor([1, 1, width, total], bias)),
        ("logits_indices", tensor([width], (0..width as i64).collect())),
    ]
}

/// Feeds every row in pieces of the given lengths, ragged and at different positions; the largest error.
fn standard_error(out: &TempDir, reference: &Reference, lengths: impl Fn(usize, usize) -> usize) -> f32 {
    let rows = reference.rows();
    let mut standard = Runner::open(&graph(out, "graph.std.onnx"), rows, 40, 7.0_f32);
    let (mut done, mut worst) = (vec![0; rows], 0.0_f32);
    for call in 0.. {
        let pieces: Vec<Piece> = (0..rows)
            .map(|row| Piece { from: done[row], to: reference.tokens(row).len().min(done[row] + lengths(call, row)) })
            .collect();
        if pieces.iter().all(|piece| piece.from == piece.to) {
            break;
        }
        let found = standard.standard(reference, &pieces);
        worst = worst.max(error_of(&found, reference, &pieces));
        done = pieces.iter().map(|piece| piece.to).collect();
    }
    worst
}

#[test]
fn standard_operators_take_ragged_rows_at_any_position() {
    for name in DECODERS {
        let (out, reference) = (three_flavours(name), Reference::of(name));
        let worst = standard_error(&out, &reference, |call, row| [4, 1, 6, 3, 2][(call + row) % 5]);
        println!("{name}: std differs by {worst:e} from the reference");
        assert!(worst < TOLERANCE, "{worst}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_schedule_of_pieces_gives_the_same(lengths in prop::collection::vec(1_usize..9, 5..40)) {
        let (out, reference) = (three_flavours("qwen3-tied"), Reference::of("qwen3-tied"));
        let worst = standard_error(&out, &reference, |call, row| lengths[(call * reference.rows() + row) % lengths.len()]);
        prop_assert!(worst < TOLERANCE, "{}", worst);
    }
}

#[test]
fn a_list_of_flavours_is_checked() {
    let out = tempfile::tempdir().unwrap();
    let refused = |flavours: Vec<Flavour>, precision: Precision| {
        let options = ExportOptions { flavours, precision, ..ExportOptions::default() };
        export(&fixture("qwen2"), out.path(), &options).unwrap_err().to_string()
    };
    assert!(refused(vec![], Precision::F32).contains("at least one"));
    assert!(refused(vec![Flavour::Tree, Flavour::Tree], Precision::F32).contains("tree is named twice"));
    let paged = refused(vec![Flavour::Gqa, Flavour::Paged], Precision::Int4);
    assert_eq!(paged, "flavour paged in int4: its kernel takes f16 and bf16 only");
    let options = ExportOptions { flavours: vec![Flavour::Tree], ..ExportOptions::default() };
    assert!(export(&fixture("bert"), out.path(), &options).unwrap_err().to_string().contains("one graph"));
}

#[test]
fn an_export_leaves_no_graph_of_the_one_before() {
    let out = three_flavours("qwen2");
    let report = export(&fixture("qwen2"), out.path(), &ExportOptions::default()).unwrap();
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), report.files.len());
}
