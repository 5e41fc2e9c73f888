//! Checkpoints that are damaged or made for other maths: an error that names file and tensor or key, and nothing half-written.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::models::{copy_of, edit_config, sharded};
use super::*;

/// The message of an export that must fail without leaving a file behind.
fn refused(checkpoint: &Path) -> String {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("graphs");
    let message = export(checkpoint, &target, &ExportOptions::default()).unwrap_err().to_string();
    let left = target.read_dir().map_or(0, Iterator::count);
    assert_eq!(left, 0, "{message}: files were left behind");
    message
}

fn with_setting(name: &str, key: &str, value: Value) -> TempDir {
    let folder = copy_of(name);
    edit_config(folder.path(), |config| {
        config.insert(key.to_owned(), value);
    });
    folder
}

#[test]
fn a_setting_that_changes_the_maths_is_named_with_its_file() {
    let rope = |value: Value| ("rope_scaling", value);
    for ((key, value), part) in [
        (("attn_logit_softcapping", json!(50.0)), "attn_logit_softcapping: is a setting that is not known"),
        (("quantization_config", json!({"bits": 4})), "quantization_config: is a setting"),
        (("use_mrope", json!(true)), "use_mrope: is true; only false"),
        (("rope_interleaved", json!(true)), "rope_interleaved: is true; only false"),
        (("use_sliding_window", json!(true)), "use_sliding_window: is true"),
        (("layer_types", json!(["full_attention", "sliding_attention"])), "layer_types: holds 'sliding_attention'"),
        (("hidden_act", json!("gelu")), "hidden_act: is Some(\"gelu\")"),
        (("head_dim", json!(24)), "head_dim: is 24"),
        (("num_key_value_heads", json!(3)), "num_key_value_heads: is 3"),
        (("hidden_size", json!(usize::MAX)), "hidden_size: is 18446744073709551615"),
        (rope(json!({"type": "dynamic", "factor": 2.0})), "rope_scaling: of type 'dynamic'"),
        (rope(json!({"rope_type": "longrope"})), "rope_scaling: of type 'longrope'"),
        (rope(json!({"type": "linear"})), "rope_scaling: of type linear lacks factor"),
        (rope(json!({"type": "linear", "factor": 0.5})), "rope_scaling.factor: must be"),
        (rope(json!({"type": "yarn", "factor": 4.0, "mscale": 0.7})), "rope_scaling.mscale: is 0.7"),
        (rope(json!({"type": "yarn"})), "rope_scaling: missing field `factor`"),
        (rope(json!({"type": "default", "partial_rotary_factor": 0.5})), "rope_scaling.partial_rotary_factor: is 0.5"),
        (rope(json!(7)), "rope_scaling: is not an object"),
    ] {
        let folder = with_setting("qwen2", key, value);
        let message = refused(folder.path());
        assert!(message.contains("config.json: ") && message.contains(part), "{message}");
    }
}

#[test]
fn harmless_settings_and_nulls_pass() {
    let folder = with_setting("qwen2", "attn_logit_softcapping", Value::Null);
    edit_config(folder.path(), |config| {
        config.insert("temperature".to_owned(), json!(0.7));
        config.insert("transformers.js_config".to_owned(), json!({"dtype": "q4"}));
        config.insert("rope_interleaved".to_owned(), json!(false));
    });
    let out = tempfile::tempdir().unwrap();
    export(folder.path(), out.path(), &ExportOptions::default()).unwrap();
}

#[test]
fn another_family_is_named_before_its_settings() {
    let folder = with_setting("qwen2", "final_logit_softcapping", json!(30.0));
    edit_config(folder.path(), |config| config["architectures"] = json!(["Gemma2ForCausalLM"]));
    assert!(refused(folder.path()).contains("'Gemma2ForCausalLM'"));
}

#[test]
fn tensors_that_do_not_fit_are_named_with_their_file() {
    let wrong_size = with_setting("qwen2", "intermediate_size", json!(97));
    let message = refused(wrong_size.path());
    let (file, tensor) = ("model.safetensors: tensor ", "model.layers.0.mlp.gate_proj.weight: has shape [96, 64]");
    assert!(message.contains(file) && message.contains(tensor), "{message}");

    let more_layers = with_setting("qwen2", "num_hidden_layers", json!(3));
    let message = refused(more_layers.path());
    assert!(message.contains("tensor model.layers.2.input_layernorm.weight: missing"), "{message}");

    let integers = copy_of("qwen2");
    let norm: Vec<u8> = (0..256).map(|_| 0).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I32, vec![64], &norm).unwrap();
    replace(integers.path(), "model.norm.weight", view);
    let message = refused(integers.path());
    assert!(message.contains("model.safetensors: tensor model.norm.weight: has type I32"), "{message}");
}

/// Puts another tensor in the place of one.
fn replace(folder: &Path, name: &str, view: safetensors::tensor::TensorView) {
    let path = folder.join(WEIGHTS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.retain(|(found, _)| found != name);
    tensors.push((name.to_owned(), view));
    let changed = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(path, changed).unwrap();
}

#[test]
fn a_cut_shard_is_named_with_the_tensor_it_cuts() {
    let folder = sharded("qwen2");
    let path = folder.path().join("model-00002-of-00002.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let message = refused(folder.path());
    let named = message.contains("model-00002-of-00002.safetensors: tensor ");
    assert!(named && message.contains("ends behind the end of the file"), "{message}");
}

#[test]
fn weights_that_cannot_be_packed_leave_nothing_behind() {
    let folder = copy_of("qwen2");
    let infinite: Vec<u8> = std::iter::repeat_n(f32::INFINITY.to_le_bytes(), 64 * 96).flatten().collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![64, 96], &infinite).unwrap();
    replace(folder.path(), "model.layers.1.mlp.down_proj.weight", view);
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { precision: Precision::Int4, block: Some(16), ..ExportOptions::default() };
    let message = export(folder.path(), out.path(), &options).unwrap_err().to_string();
    assert!(message.contains("tensor model.layers.1.mlp.down_proj.weight: holds inf"), "{message}");
    assert_eq!(out.path().read_dir().unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any cut, and any change of a byte in the header, is an error or an export, never a panic or a half-written folder.
    #[test]
    fn damage_never_panics(cut in 0_usize..3000, place in 0_usize..3000, byte in any::<u8>()) {
        let folder = copy_of("qwen2");
        let path = folder.path().join(WEIGHTS_FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        if cut % 2 == 0 {
            bytes.truncate(cut);
        } else {
            bytes[place] = byte;
        }
        std::fs::write(&path, bytes).unwrap();
        let out = tempfile::tempdir().unwrap();
        if export(folder.path(), out.path(), &ExportOptions::default()).is_err() {
            let graphs = out.path().join(GRAPH_FILE).exists();
            let left = out.path().read_dir().unwrap().count();
            prop_assert!(!graphs && left == 0, "{left} files left");
        }
    }
}
