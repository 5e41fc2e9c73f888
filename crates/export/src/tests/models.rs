//! Checkpoints in the shapes that others publish: Llama 3.1, Qwen3-Embedding, DeepSeek-R1-Distill-Qwen, shards.

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::run::{Reference, Runner, error_of, prompt_then_answer};
use super::*;

/// A copy of a fixture without its reference.
pub fn copy_of(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"] {
        std::fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

pub fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(config.as_object_mut().unwrap());
    std::fs::write(&path, config.to_string()).unwrap();
}

/// Exports and compares prompts and answers with the reference of a fixture.
pub fn matches(checkpoint: &Path, reference: &str) -> (TempDir, ExportReport) {
    let out = tempfile::tempdir().unwrap();
    let report = export(checkpoint, out.path(), &ExportOptions::default()).unwrap();
    let reference = Reference::of(reference);
    let mut runner = Runner::open(&out.path().join(GRAPH_FILE), reference.rows(), 40, 7.0_f32);
    let mut worst = 0.0_f32;
    for pieces in prompt_then_answer(&reference) {
        worst = worst.max(error_of(&runner.shared(&reference, &pieces, None), &reference, &pieces));
    }
    println!("{}: {worst:e} from the reference", report.architecture);
    assert!(worst < TOLERANCE, "{worst}");
    (out, report)
}

#[test]
fn llama_with_stretched_rope_and_biases_matches_the_reference() {
    matches(&fixture("llama"), "llama");
}

#[test]
fn llama_in_the_older_layout_is_the_same() {
    let folder = copy_of("llama");
    edit_config(folder.path(), |config| {
        let mut rope = config.remove("rope_parameters").unwrap();
        let theta = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
        config.insert("rope_theta".to_owned(), theta);
        config.insert("rope_scaling".to_owned(), rope);
    });
    let ((older, report), (newer, _)) = (matches(folder.path(), "llama"), exported("llama"));
    for file in [DATA_FILE, GRAPH_FILE] {
        let read = |folder: &TempDir| std::fs::read(folder.path().join(file)).unwrap();
        assert_eq!(read(&older), read(&newer), "{file}");
    }
    assert_eq!(report.architecture, "LlamaForCausalLM");
}

#[test]
fn rope_settings_that_lack_something_are_named() {
    let folder = copy_of("llama");
    edit_config(folder.path(), |config| {
        config["rope_parameters"].as_object_mut().unwrap().remove("low_freq_factor");
    });
    let out = tempfile::tempdir().unwrap();
    let message = export(folder.path(), out.path(), &ExportOptions::default()).unwrap_err().to_string();
    assert!(message.contains("low_freq_factor"), "{message}");
}

#[test]
fn the_role_can_be_chosen() {
    let out = tempfile::tempdir().unwrap();
    let decoder = ExportOptions { role: Some(Role::Decoder), ..ExportOptions::default() };
    export(&fixture("qwen3-embedding"), out.path(), &decoder).unwrap();
    assert!(open(out.path()).outputs().iter().any(|output| output.name() == names::LOGITS));
    let message = export(&fixture("bert"), out.path(), &decoder).unwrap_err().to_string();
    assert_eq!(message, "a BertModel cannot be exported as a decoder");
}

/// DeepSeek-R1-Distill-Qwen's config.json: older layout, a window that is set but not used, untied.
#[test]
fn a_deepseek_distillation_exports_whole() {
    let folder = copy_of("qwen2");
    let mut config = json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "initializer_range": 0.02, "max_window_layers": 28,
        "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.44.0", "use_cache": true,
        "use_mrope": false, "use_sliding_window": false, "max_position_embeddings": 131072
    });
    let sizes: Value = serde_json::from_slice(&std::fs::read(fixture("qwen2").join("config.json")).unwrap()).unwrap();
    for size in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    ] {
        config[size] = sizes[size].clone();
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let template = json!({
        "bos_token": {"__type": "AddedToken", "content": "<|endoftext|>"}, "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    });
    std::fs::write(folder.path().join("tokenizer_config.json"), template.to_string()).unwrap();
    std::fs::write(folder.path().join("generation_config.json"), r#"{"temperature": 0.6, "top_p": 0.95}"#).unwrap();

    let (out, report) = matches(folder.path(), "qwen2");
    assert_eq!(report.max_positions, DEFAULT_MAX_POSITIONS);
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert!(report.files.contains(&file.to_owned()), "{file}");
        let read = |folder: &TempDir| std::fs::read(folder.path().join(file)).unwrap();
        assert_eq!(read(&out), read(&folder), "{file}");
    }
}

/// Spreads a fixture's weights over two files with an index, as large checkpoints come.
pub fn sharded(name: &str) -> TempDir {
    let folder = copy_of(name);
    let whole = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut placed = serde_json::Map::new();
    for shard in 0..2 {
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let part: Vec<(String, TensorView)> = tensors
            .tensors()
            .into_iter()
            .enumerate()
            .filter(|(index, _)| index % 2 == shard)
            .map(|(_, named)| named)
            .collect();
        placed.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
        std::fs::write(folder.path().join(file), safetensors::serialize(part, None).unwrap()).unwrap();
    }
    let index = json!({"metadata": {"total_size": bytes.len()}, "weight_map": placed});
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(whole).unwrap();
    folder
}

#[test]
fn shards_give_the_same_bytes_as_one_file() {
    let folder = sharded("qwen2");
    let (in_parts, whole) = (tempfile::tempdir().unwrap(), exported("qwen2").0);
    export(folder.path(), in_parts.path(), &ExportOptions::default()).unwrap();
    for file in [DATA_FILE, GRAPH_FILE] {
        let read = |folder: &TempDir| std::fs::read(folder.path().join(file)).unwrap();
        assert_eq!(read(&in_parts), read(&whole), "{file}");
    }
}

#[test]
fn a_missing_shard_or_weight_is_named() {
    let out = tempfile::tempdir().unwrap();
    let refused =
        |folder: &TempDir| export(folder.path(), out.path(), &ExportOptions::default()).unwrap_err().to_string();
    let gone = sharded("qwen2");
    std::fs::remove_file(gone.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(refused(&gone).contains("model-00002-of-00002.safetensors"), "{}", refused(&gone));

    let swapped = sharded("qwen2");
    let second = swapped.path().join("model-00002-of-00002.safetensors");
    std::fs::copy(swapped.path().join("model-00001-of-00002.safetensors"), second).unwrap();
    let message = refused(&swapped);
    assert!(message.contains("model-00002-of-00002.safetensors: tensor") && message.contains("missing"), "{message}");

    let outside = sharded("qwen2");
    let index = r#"{"weight_map": {"lm_head.weight": "../model.safetensors"}}"#;
    std::fs::write(outside.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(refused(&outside).contains("'../model.safetensors' is not a file name"), "{}", refused(&outside));
}

/// Weights behind 3 GiB of nothing: offsets that 32 bits do not hold. The hole takes no disk.
#[test]
fn weights_beyond_two_gigabytes_are_found() {
    let out = tempfile::tempdir().unwrap();
    let mut source = Checkpoint::open(&fixture("qwen2")).unwrap();
    let mut graph = GraphWriter::create(out.path()).unwrap();
    graph.leave_hole(3 << 30).unwrap();
    let form = Form::Text(Flavour::Gqa);
    graph.begin(GRAPH_FILE, "far", form.versions());
    let numbers = ExportOptions::default().numbers().unwrap();
    decoder::write(&mut source, &mut graph, 64, (numbers, &std::collections::HashMap::new()), form).unwrap();
    let written = graph.finish().unwrap();
    assert!(written.data_bytes > 3 << 30);

    let reference = Reference::of("qwen2");
    let mut runner = Runner::open(&out.path().join(GRAPH_FILE), reference.rows(), 40, 7.0_f32);
    let pieces = &prompt_then_answer(&reference)[0];
    assert!(error_of(&runner.shared(&reference, pieces, None), &reference, pieces) < TOLERANCE);
}
