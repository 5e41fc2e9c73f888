//! Greedy generation with the trainer's own decoder: to look at a model during training without exporting it.
//!
//! Called by evaluation and tests. Serving and roll-outs go through the ONNX engine; this path has one plain loop: all rows
//! advance by one token a step, prompts included, over a key/value cache.

use candle_core::Tensor;
use rayon::prelude::*;

use super::ModelError;
use super::decoder::{Decoder, Layer};
use super::linear::gated;
use super::maths::{dot, exp_in_place, max};
use super::norm::forward as normalise;
use super::tape::{tensor, with_values};

/// Continues each prompt greedily until `stop` (included) or `max_new` tokens; ties go to the lowest token id.
pub fn greedy(decoder: &Decoder, prompts: &[Vec<u32>], max_new: usize, stop: u32) -> Result<Vec<Vec<u32>>, ModelError> {
    let limit = decoder.config().max_position_embeddings;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    if prompts.iter().any(Vec::is_empty) || longest + max_new > limit {
        let message = format!("prompts need 1 to {} tokens, the longest has {longest}", limit.saturating_sub(max_new));
        return Err(ModelError::Batch(message));
    }
    let mut rows: Vec<Row> = prompts.iter().map(|prompt| Row::new(prompt, decoder)).collect();
    for position in 0..(longest + max_new).saturating_sub(1) {
        if rows.iter().all(|row| row.done) {
            break;
        }
        let logits = step(decoder, &mut rows, position)?;
        let vocab = decoder.config().vocab_size;
        let chosen: Vec<u32> = with_values(&logits, |values| values.chunks_exact(vocab).map(best).collect())?;
        for (row, token) in rows.iter_mut().zip(chosen) {
            row.take(token, position, max_new, stop);
        }
    }
    Ok(rows.into_iter().map(|row| row.tokens[row.prompt_len..].to_vec()).collect())
}

/// One sequence: its tokens so far and, per layer, the keys and values of its positions.
struct Row {
    tokens: Vec<u32>,
    prompt_len: usize,
    done: bool,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Row {
    fn new(prompt: &[u32], decoder: &Decoder) -> Self {
        let empty = vec![Vec::new(); decoder.config().num_hidden_layers];
        Self { tokens: prompt.to_vec(), prompt_len: prompt.len(), done: false, keys: empty.clone(), values: empty }
    }

    /// Appends what follows `position`, unless the prompt already says it.
    fn take(&mut self, token: u32, position: usize, max_new: usize, stop: u32) {
        if self.done || position + 1 < self.tokens.len() {
            return;
        }
        if max_new > 0 {
            self.tokens.push(token);
        }
        self.done = token == stop || self.tokens.len() >= self.prompt_len + max_new;
    }
}

fn best(logits: &[f32]) -> u32 {
    let top = max(logits);
    logits.iter().position(|&value| value == top).unwrap_or(0) as u32
}

/// Logits `[rows, vocab]` after the token at `position` of each row; rows already finished repeat their last token.
fn step(decoder: &Decoder, rows: &mut [Row], position: usize) -> Result<Tensor, ModelError> {
    let config = decoder.config();
    let (width, epsilon) = (config.hidden_size, config.rms_norm_eps as f32);
    let tokens: Vec<usize> = rows.iter().map(|row| row.tokens[position.min(row.tokens.len() - 1)] as usize).collect();
    if let Some(token) = tokens.iter().find(|&&token| token >= config.vocab_size) {
        return Err(ModelError::Batch(format!("token {token} is outside the vocabulary of {}", config.vocab_size)));
    }
    let mut x: Vec<f32> = with_values(&decoder.embedding, |table| {
        tokens.iter().flat_map(|token| table[token * width..][..width].iter().copied()).collect()
    })?;
    for (index, layer) in decoder.layers.iter().enumerate() {
        let normed = with_values(&layer.input_norm, |w| normalise(&x, w, epsilon))?;
        let mixed = attend(decoder, layer, index, rows, position, normed)?;
        add(&mut x, &mixed.matmul(&layer.output.as_detached_tensor().t()?)?)?;
        let normed = with_values(&layer.post_norm, |w| normalise(&x, w, epsilon))?;
        let projected = tensor(normed, (rows.len(), width))?.matmul(&layer.gate_up.as_detached_tensor().t()?)?;
        let product = with_values(&projected, |values| gated(values, config.intermediate_size))?;
        let product = tensor(product, (rows.len(), config.intermediate_size))?;
        add(&mut x, &product.matmul(&layer.down.as_detached_tensor().t()?)?)?;
    }
    let normed = with_values(&decoder.final_norm, |w| normalise(&x, w, epsilon))?;
    let table = decoder.output_table().as_detached_tensor();
    Ok(tensor(normed, (rows.len(), width))?.matmul(&table.t()?)?)
}

fn add(x: &mut [f32], update: &Tensor) -> Result<(), ModelError> {
    Ok(with_values(update, |values| super::maths::add_in_place(x, values))?)
}

/// Appends this position's keys and values, then mixes the values: `[rows, heads·head_dim]`.
fn attend(
    decoder: &Decoder,
    layer: &Layer,
    index: usize,
    rows: &mut [Row],
    position: usize,
    normed: Vec<f32>,
) -> Result<Tensor, ModelError> {
    let (count, width) = (rows.len(), decoder.config().hidden_size);
    let qkv = tensor(normed, (count, width))?.matmul(&layer.qkv.as_detached_tensor().t()?)?;
    let bias = layer.qkv_bias.to_vec1::<f32>()?;
    let shape = &decoder.shape;
    let (dim, qkv_width) = (shape.head_dim, bias.len());
    let (query_width, key_width) = (shape.heads * dim, shape.kv_heads * dim);
    let mixed: Vec<Vec<f32>> = with_values(&qkv, |all| {
        rows.par_iter_mut()
            .zip(all.par_chunks_exact(qkv_width))
            .map(|(row, values)| {
                let mut biased: Vec<f32> = values.iter().zip(&bias).map(|(value, b)| value + b).collect();
                for head in biased[..query_width + key_width].chunks_exact_mut(dim) {
                    shape.rotate(head, position, 1.0);
                }
                row.keys[index].extend_from_slice(&biased[query_width..query_width + key_width]);
                row.values[index].extend_from_slice(&biased[query_width + key_width..]);
                let cache = (row.keys[index].as_slice(), row.values[index].as_slice());
                mix(&biased[..query_width], cache, dim, shape.heads / shape.kv_heads, key_width)
            })
            .collect()
    })?;
    Ok(tensor(mixed.concat(), (count, query_width))?)
}

fn mix(query: &[f32], (keys, values): (&[f32], &[f32]), dim: usize, group: usize, stride: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; query.len()];
    for (head, (q, target)) in query.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
        let start = head / group * dim;
        let scale = 1.0 / (dim as f32).sqrt();
        let mut scores: Vec<f32> = keys.chunks_exact(stride).map(|k| dot(q, &k[start..start + dim]) * scale).collect();
        let shift = max(&scores);
        let sum = exp_in_place(&mut scores, shift);
        for (score, value) in scores.iter().zip(values.chunks_exact(stride)) {
            for (t, v) in target.iter_mut().zip(&value[start..start + dim]) {
                *t += score / sum * v;
            }
        }
    }
    out
}
