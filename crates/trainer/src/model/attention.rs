//! Causal self-attention with bias, rotary positions ("rotate half") and grouped heads, fused, on unpadded sequences.
//!
//! In: one row per token, `[query heads | key heads | value heads] × head_dim`, before the bias. Out: `[tokens, heads·head_dim]`.
//! Called by `decoder`. Nothing of size length² is kept: forward stores one log-sum-exp per token and head, backward makes
//! the probabilities again, sixteen query rows at a time.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::maths::{column_sums, dot, exp_in_place, max};
use super::tape::{record, tensor, with_values};
use super::tile::{COLUMNS, Matrix, add_transposed, multiply};

/// Query rows handled at once; a multiple of the register tile's rows and columns.
const BLOCK: usize = COLUMNS;

/// Heads and rotary tables of one decoder.
#[derive(Debug)]
pub(super) struct AttentionShape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// `[positions, head_dim / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl AttentionShape {
    /// Tables: angle = position · theta^(-2i / head_dim).
    pub(super) fn new(heads: usize, kv_heads: usize, head_dim: usize, positions: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let angle = |index: usize| {
            let (position, pair) = (index / half, index % half);
            position as f64 * theta.powf(-2.0 * pair as f64 / head_dim as f64)
        };
        let cos = (0..positions * half).map(|index| angle(index).cos() as f32).collect();
        let sin = (0..positions * half).map(|index| angle(index).sin() as f32).collect();
        Self { heads, kv_heads, head_dim, cos, sin }
    }

    fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Rotates one head in place; `direction` 1 forward, -1 for gradients (the transpose).
    pub(super) fn rotate(&self, head: &mut [f32], position: usize, direction: f32) {
        let half = self.head_dim / 2;
        let cos = &self.cos[position * half..][..half];
        let sin = &self.sin[position * half..][..half];
        let (first, second) = head.split_at_mut(half);
        for index in 0..half {
            let (a, b, s) = (first[index], second[index], sin[index] * direction);
            first[index] = a * cos[index] - b * s;
            second[index] = b * cos[index] + a * s;
        }
    }
}

/// qkv `[tokens, qkv width]` without bias, bias `[qkv width]`, sequence offsets → `[tokens, heads·head_dim]`.
pub(super) fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    offsets: &Arc<Vec<usize>>,
    shape: &Arc<AttentionShape>,
) -> Result<Tensor> {
    let tokens = qkv.dim(0)?;
    let width = shape.heads * shape.head_dim;
    let mut out = vec![0.0f32; tokens * width];
    let mut log_sums = vec![0.0f32; tokens * shape.heads];
    with_values(qkv, |rows| with_values(bias, |b| forward(rows, b, offsets, shape, &mut out, &mut log_sums)))??;
    let (kept_qkv, kept_bias, offsets, shape) = (qkv.detach(), bias.detach(), offsets.clone(), shape.clone());
    record("attention", &[qkv, bias], out, (tokens, width), move |gradient| {
        let qkv_gradient = with_values(gradient, |g| {
            with_values(&kept_qkv, |rows| {
                with_values(&kept_bias, |b| backward(rows, b, g, &log_sums, &offsets, &shape))
            })
        })???;
        let bias_gradient = column_sums(&qkv_gradient, shape.qkv_width());
        let bias_gradient = tensor(bias_gradient, shape.qkv_width())?;
        Ok([Some(tensor(qkv_gradient, (tokens, shape.qkv_width()))?), Some(bias_gradient), None])
    })
}

fn forward(
    qkv: &[f32],
    bias: &[f32],
    offsets: &[usize],
    shape: &AttentionShape,
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    let tasks: Vec<_> = split_rows(out, offsets, shape.heads * shape.head_dim)
        .into_iter()
        .zip(split_rows(log_sums, offsets, shape.heads))
        .zip(rows_of(qkv, offsets, shape.qkv_width()))
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each(|((out_rows, log_sum_rows), rows)| {
        Sequence { rows, bias, shape }.forward(out_rows, log_sum_rows);
    });
}

fn backward(
    qkv: &[f32],
    bias: &[f32],
    gradient: &[f32],
    log_sums: &[f32],
    offsets: &[usize],
    shape: &AttentionShape,
) -> Vec<f32> {
    let mut out = vec![0.0f32; qkv.len()];
    let tasks: Vec<_> = split_rows(&mut out, offsets, shape.qkv_width())
        .into_iter()
        .zip(rows_of(qkv, offsets, shape.qkv_width()))
        .zip(rows_of(gradient, offsets, shape.heads * shape.head_dim))
        .zip(rows_of(log_sums, offsets, shape.heads))
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(((out_rows, rows), gradient_rows), log_sum_rows)| {
        Sequence { rows, bias, shape }.backward(gradient_rows, log_sum_rows, out_rows);
    });
    out
}

fn rows_of<'a>(data: &'a [f32], offsets: &'a [usize], width: usize) -> impl Iterator<Item = &'a [f32]> {
    offsets.windows(2).map(move |pair| &data[pair[0] * width..pair[1] * width])
}

fn split_rows<'a>(data: &'a mut [f32], offsets: &[usize], width: usize) -> Vec<&'a mut [f32]> {
    let mut rest = data;
    let mut parts = Vec::with_capacity(offsets.len());
    for pair in offsets.windows(2) {
        let (part, tail) = rest.split_at_mut((pair[1] - pair[0]) * width);
        parts.push(part);
        rest = tail;
    }
    parts
}

/// One sequence: its rows of the input, the bias, the shape.
struct Sequence<'a> {
    rows: &'a [f32],
    bias: &'a [f32],
    shape: &'a AttentionShape,
}

impl Sequence<'_> {
    fn len(&self) -> usize {
        self.rows.len() / self.shape.qkv_width()
    }

    /// Length rounded up to whole blocks; the padding rows are zero.
    fn padded(&self) -> usize {
        self.len().next_multiple_of(BLOCK)
    }

    /// Rows `first..first+count` of one head, bias added, rotated if `rotated`; `slot` counts heads across query, key, value.
    fn head_rows(&self, slot: usize, first: usize, count: usize, rotated: bool) -> Vec<f32> {
        let (dim, width) = (self.shape.head_dim, self.shape.qkv_width());
        let mut out = vec![0.0f32; count * dim];
        let bias = &self.bias[slot * dim..][..dim];
        for (index, target) in out.chunks_exact_mut(dim).enumerate().take(self.len().saturating_sub(first)) {
            let source = &self.rows[(first + index) * width + slot * dim..][..dim];
            for ((t, s), b) in target.iter_mut().zip(source).zip(bias) {
                *t = s + b;
            }
            if rotated {
                self.shape.rotate(target, first + index, 1.0);
            }
        }
        out
    }

    /// Query rows of a block, rotated and scaled.
    fn query_block(&self, head: usize, first: usize) -> Vec<f32> {
        let mut query = self.head_rows(head, first, BLOCK, true);
        let scale = self.shape.scale();
        query.iter_mut().for_each(|value| *value *= scale);
        query
    }

    fn forward(&self, out: &mut [f32], log_sums: &mut [f32]) {
        let shape = self.shape;
        let (dim, padded) = (shape.head_dim, self.padded());
        let mut scores = vec![0.0f32; BLOCK * padded];
        let mut mixed = vec![0.0f32; BLOCK * dim];
        for kv_head in 0..shape.kv_heads {
            let keys = transposed(&self.head_rows(shape.heads + kv_head, 0, padded, true), dim);
            let values = self.head_rows(shape.heads + shape.kv_heads + kv_head, 0, padded, false);
            for head in group(shape, kv_head) {
                for first in (0..self.len()).step_by(BLOCK) {
                    let seen = first + BLOCK;
                    let query = self.query_block(head, first);
                    multiply(&mut scores, padded, rows(&query, dim), rows(&keys, padded), (BLOCK, seen, dim));
                    let sums = softmax_rows(&mut scores, padded, first, seen);
                    multiply(&mut mixed, dim, rows(&scores, padded), rows(&values, dim), (BLOCK, dim, seen));
                    for row in 0..BLOCK.min(self.len() - first) {
                        let (shift, sum) = sums[row];
                        log_sums[(first + row) * shape.heads + head] = shift + sum.ln();
                        let target = &mut out[((first + row) * shape.heads + head) * dim..][..dim];
                        for (t, value) in target.iter_mut().zip(&mixed[row * dim..][..dim]) {
                            *t = value / sum;
                        }
                    }
                }
            }
        }
    }

    fn backward(&self, gradient: &[f32], log_sums: &[f32], out: &mut [f32]) {
        let shape = self.shape;
        let (dim, padded) = (shape.head_dim, self.padded());
        for kv_head in 0..shape.kv_heads {
            let (key_slot, value_slot) = (shape.heads + kv_head, shape.heads + shape.kv_heads + kv_head);
            let keys = self.head_rows(key_slot, 0, padded, true);
            let mut pass = BackwardPass {
                keys_transposed: transposed(&keys, dim),
                values_transposed: transposed(&self.head_rows(value_slot, 0, padded, false), dim),
                keys,
                key_gradient: vec![0.0; padded * dim],
                value_gradient: vec![0.0; padded * dim],
                probabilities: vec![0.0; BLOCK * padded],
                score_gradient: vec![0.0; BLOCK * padded],
                query_gradient: vec![0.0; BLOCK * dim],
                padded,
                dim,
            };
            for head in group(shape, kv_head) {
                for first in (0..self.len()).step_by(BLOCK) {
                    let live = BLOCK.min(self.len() - first);
                    let mut out_gradient = vec![0.0f32; BLOCK * dim];
                    let mut row_log_sums = [0.0f32; BLOCK];
                    for row in 0..live {
                        let place = (first + row) * shape.heads + head;
                        out_gradient[row * dim..][..dim].copy_from_slice(&gradient[place * dim..][..dim]);
                        row_log_sums[row] = log_sums[place];
                    }
                    pass.block(&self.query_block(head, first), &out_gradient, &row_log_sums, first);
                    pass.query_gradient.iter_mut().for_each(|value| *value *= shape.scale());
                    self.store(out, head, first, &mut pass.query_gradient[..live * dim], true);
                }
            }
            let live = self.len() * dim;
            self.store(out, key_slot, 0, &mut pass.key_gradient[..live], true);
            self.store(out, value_slot, 0, &mut pass.value_gradient[..live], false);
        }
    }

    /// Writes a head's gradient rows to their places, rotated back where the head was rotated.
    fn store(&self, out: &mut [f32], slot: usize, first: usize, gradient: &mut [f32], rotated: bool) {
        let (dim, width) = (self.shape.head_dim, self.shape.qkv_width());
        for (index, row) in gradient.chunks_exact_mut(dim).enumerate() {
            if rotated {
                self.shape.rotate(row, first + index, -1.0);
            }
            out[(first + index) * width + slot * dim..][..dim].copy_from_slice(row);
        }
    }
}

/// Buffers of one key/value head's backward pass; the gradients of keys and values add up over blocks and query heads.
struct BackwardPass {
    keys: Vec<f32>,
    keys_transposed: Vec<f32>,
    values_transposed: Vec<f32>,
    key_gradient: Vec<f32>,
    value_gradient: Vec<f32>,
    probabilities: Vec<f32>,
    score_gradient: Vec<f32>,
    query_gradient: Vec<f32>,
    padded: usize,
    dim: usize,
}

impl BackwardPass {
    /// One block of query rows: fills `query_gradient`, adds to the key and value gradients.
    fn block(&mut self, query: &[f32], out_gradient: &[f32], log_sums: &[f32; BLOCK], first: usize) {
        let (dim, padded, seen) = (self.dim, self.padded, first + BLOCK);
        let (query_rows, out_rows) = (rows(query, dim), rows(out_gradient, dim));
        multiply(&mut self.probabilities, padded, query_rows, rows(&self.keys_transposed, padded), (BLOCK, seen, dim));
        multiply(&mut self.score_gradient, padded, out_rows, rows(&self.values_transposed, padded), (BLOCK, seen, dim));
        let blocks = self.probabilities.chunks_exact_mut(padded).zip(self.score_gradient.chunks_exact_mut(padded));
        for (row, (probability, gradient)) in blocks.enumerate() {
            let allowed = first + row + 1;
            exp_in_place(&mut probability[..allowed], log_sums[row]);
            probability[allowed..seen].fill(0.0);
            let mean = dot(&probability[..seen], &gradient[..seen]);
            for (g, p) in gradient[..seen].iter_mut().zip(&probability[..seen]) {
                *g = p * (*g - mean);
            }
        }
        let (p, ds) = (rows(&self.probabilities, padded), rows(&self.score_gradient, padded));
        multiply(&mut self.query_gradient, dim, ds, rows(&self.keys, dim), (BLOCK, dim, seen));
        add_transposed(&mut self.key_gradient, dim, ds, query_rows, (seen, dim, BLOCK));
        add_transposed(&mut self.value_gradient, dim, p, out_rows, (seen, dim, BLOCK));
    }
}

/// Query heads that share a key/value head.
fn group(shape: &AttentionShape, kv_head: usize) -> std::ops::Range<usize> {
    let size = shape.heads / shape.kv_heads;
    kv_head * size..(kv_head + 1) * size
}

fn rows(data: &[f32], stride: usize) -> Matrix<'_> {
    Matrix { data, stride }
}

/// `[rows, width]` → `[width, rows]`.
fn transposed(data: &[f32], width: usize) -> Vec<f32> {
    let height = data.len() / width;
    let mut out = vec![0.0f32; data.len()];
    for (row, values) in data.chunks_exact(width).enumerate() {
        for (column, value) in values.iter().enumerate() {
            out[column * height + row] = *value;
        }
    }
    out
}

/// e^(score - row maximum) of what a row may see, 0 beyond; returns each row's maximum and sum.
fn softmax_rows(scores: &mut [f32], stride: usize, first: usize, seen: usize) -> [(f32, f32); BLOCK] {
    let mut sums = [(0.0, 1.0); BLOCK];
    for (row, score) in scores.chunks_exact_mut(stride).enumerate() {
        let allowed = first + row + 1;
        let shift = max(&score[..allowed]);
        sums[row] = (shift, exp_in_place(&mut score[..allowed], shift));
        score[allowed..seen].fill(0.0);
    }
    sums
}
