//! Which keys of a checkpoint's `config.json` are known: a setting nobody here knows may change the maths, so it is refused.
//!
//! In: the file's JSON object. Out: nothing, or the key at fault. Called by `config`.

use serde_json::{Map, Value, json};

/// Keys that [`super::config::Config`] has fields for.
const READ: &str = "architectures hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads \
    head_dim vocab_size max_position_embeddings rms_norm_eps layer_norm_eps hidden_act tie_word_embeddings \
    use_sliding_window type_vocab_size position_embedding_type rope_theta rope_scaling rope_parameters \
    attention_bias mlp_bias layer_types";

/// Keys that do not change what a forward pass computes: names, tokens, how the model was or is to be trained, how text was or
/// is to be sampled, what else is returned.
const HARMLESS: &str = "_attn_implementation _name_or_path attention_dropout attention_probs_dropout_prob bad_words_ids \
    begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout cls_token_id \
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size \
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id \
    gradient_checkpointing hidden_dropout_prob id2label initializer_range is_llama_config label2id \
    length_penalty max_length max_window_layers min_length model_type no_repeat_ngram_size num_beam_groups \
    num_beams num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix \
    pretraining_tp problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate \
    sep_token_id sliding_window suppress_tokens task_specific_params temperature tf_legacy_loss \
    tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p \
    unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache";

/// Keys that change the maths unless they have this value, which is what the graphs and the trainer compute.
fn fixed_values() -> [(&'static str, Value); 9] {
    [
        ("add_cross_attention", json!(false)),
        ("cross_attention_hidden_size", Value::Null),
        ("is_causal", json!(true)),
        ("is_decoder", json!(false)),
        ("is_encoder_decoder", json!(false)),
        ("pruned_heads", json!({})),
        ("rope_interleaved", json!(false)),
        ("tie_encoder_decoder", json!(false)),
        ("use_mrope", json!(false)),
    ]
}

/// The first key at fault, and what is wrong with it. A key that is null sets nothing.
pub fn fault(settings: &Map<String, Value>) -> Option<(String, String)> {
    let fixed = fixed_values();
    for (key, value) in settings.iter().filter(|(_, value)| !value.is_null()) {
        if [READ, HARMLESS].iter().any(|keys| keys.split_whitespace().any(|known| known == key)) {
            continue;
        }
        let message = match fixed.iter().find(|(name, _)| name == key) {
            Some((_, only)) if only == value => continue,
            Some((_, only)) => format!("is {value}; only {only} can be computed"),
            None => "is a setting that is not known here and may change the maths: remove it if it does not".to_owned(),
        };
        return Some((key.clone(), message));
    }
    None
}
