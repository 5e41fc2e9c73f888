//! Names and shapes of a decoder checkpoint's tensors, as Hugging Face has them.
//!
//! In: settings. Out: the list. Called by `export` and the trainer, which check a checkpoint against it first.

use super::ExportError;
use super::checkpoint::Checkpoint;
use super::config::Config;
use super::decoder::{EMBEDDING, HEAD, Shape};

/// Name of the last norm's weight.
pub const LAST_NORM: &str = "model.norm.weight";

/// Name and shape of every tensor, in the order of use; the head only if it is asked for and not the embedding table.
pub fn decoder_tensors(config: &Config, with_head: bool) -> Result<Vec<(String, Vec<usize>)>, ExportError> {
    let shape = Shape::of(config)?;
    let (d, ffn, head) = (shape.hidden, shape.inner, shape.head);
    let (query, kv) = (shape.query_width(), shape.kv_width());
    let mut all = vec![(EMBEDDING.to_owned(), vec![shape.vocabulary, d])];
    for layer in 0..shape.layers {
        let mut add = |part: &str, dims: &[usize]| all.push((format!("model.layers.{layer}.{part}"), dims.to_vec()));
        add("input_layernorm.weight", &[d]);
        for (part, dims, biased) in [
            ("self_attn.q_proj", [query, d], shape.qkv_bias),
            ("self_attn.k_proj", [kv, d], shape.qkv_bias),
            ("self_attn.v_proj", [kv, d], shape.qkv_bias),
            ("self_attn.o_proj", [d, query], shape.output_bias),
            ("mlp.gate_proj", [ffn, d], shape.inner_bias),
            ("mlp.up_proj", [ffn, d], shape.inner_bias),
            ("mlp.down_proj", [d, ffn], shape.inner_bias),
        ] {
            add(&format!("{part}.weight"), &dims);
            if biased {
                add(&format!("{part}.bias"), &dims[..1]);
            }
        }
        if shape.head_norms {
            add("self_attn.q_norm.weight", &[head]);
            add("self_attn.k_norm.weight", &[head]);
        }
        add("post_attention_layernorm.weight", &[d]);
    }
    all.push((LAST_NORM.to_owned(), vec![d]));
    if with_head && !config.tie_word_embeddings {
        all.push((HEAD.to_owned(), vec![shape.vocabulary, d]));
    }
    Ok(all)
}

impl Checkpoint {
    /// Whether it holds a decoder whose every tensor is there, in the right shape and type.
    pub fn check_decoder(&self, with_head: bool) -> Result<(), ExportError> {
        for (name, dims) in decoder_tensors(&self.config, with_head)? {
            self.check(&name, &dims)?;
        }
        Ok(())
    }
}
