//! Causal self-attention, with bias where there is one, rotary positions ("rotate half") and grouped heads, fused, on unpadded segments, of
//! which several may continue one prefix.
//!
//! In: one row per token, `[query heads | key heads | value heads] × head_dim`, before the bias. Out: `[tokens, heads·head_dim]`.
//! Called by `decoder`. Nothing of size length² is kept: forward stores one log-sum-exp per token and head, backward makes
//! the probabilities again, sixteen query rows at a time.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use taiji_export::Rope;

use super::dropout::AttentionDropout;
use super::maths::{add_in_place, column_sums, dot, exp_in_place, max};
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
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

impl AttentionShape {
    /// Tables: angle = position · frequency, in f32 as the exported graph and transformers have it.
    pub(super) fn new(heads: usize, kv_heads: usize, head_dim: usize, positions: usize, rope: &Rope) -> Self {
        let (frequencies, amplitude) = (rope.frequencies(head_dim), rope.amplitude());
        let table = |function: fn(f64) -> f64| {
            let angles = (0..positions).flat_map(|at| frequencies.iter().map(move |frequency| at as f32 * frequency));
            angles.map(|angle| (amplitude * function(f64::from(angle))) as f32).collect()
        };
        Self { heads, kv_heads, head_dim, cos: table(f64::cos), sin: table(f64::sin) }
    }

    pub(super) fn qkv_width(&self) -> usize {
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

/// A stretch of tokens, and the stretch that it continues (empty if none), which stands before it in the same matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) rows: Range<usize>,
    pub(super) prefix: Range<usize>,
}

/// qkv `[tokens, qkv width]` without bias, bias `[qkv width]` if there is one, the segments of all tokens in order → `[tokens, heads·head_dim]`.
pub(super) fn attention(
    qkv: &Tensor,
    bias: Option<&Tensor>,
    segments: &Arc<Vec<Segment>>,
    shape: &Arc<AttentionShape>,
    dropout: Option<AttentionDropout>,
) -> Result<Tensor> {
    let tokens = qkv.dim(0)?;
    let width = shape.heads * shape.head_dim;
    let mut out = vec![0.0f32; tokens * width];
    let mut log_sums = vec![0.0f32; tokens * shape.heads];
    let added = match bias {
        Some(bias) => with_values(bias, <[f32]>::to_vec)?,
        None => vec![0.0; shape.qkv_width()],
    };
    let common = |bias, shape| Common { bias, shape, dropout };
    with_values(qkv, |rows| forward(rows, common(&added, shape), segments, &mut out, &mut log_sums))?;
    let (kept_qkv, has_bias, segments, shape) = (qkv.detach(), bias.is_some(), segments.clone(), shape.clone());
    let inputs: Vec<&Tensor> = std::iter::once(qkv).chain(bias).collect();
    record("attention", &inputs, out, (tokens, width), move |gradient| {
        let qkv_gradient = with_values(gradient, |g| {
            let common = Common { bias: &added, shape: &shape, dropout };
            with_values(&kept_qkv, |rows| backward(rows, common, g, &log_sums, &segments))
        })??;
        let sums = has_bias.then(|| column_sums(&qkv_gradient, shape.qkv_width()));
        let bias_gradient = sums.map(|sums| tensor(sums, shape.qkv_width())).transpose()?;
        Ok([Some(tensor(qkv_gradient, (tokens, shape.qkv_width()))?), bias_gradient, None])
    })
}

/// What the sequences of a batch have in common.
#[derive(Clone, Copy)]
struct Common<'a> {
    bias: &'a [f32],
    shape: &'a AttentionShape,
    dropout: Option<AttentionDropout>,
}

fn forward(qkv: &[f32], common: Common<'_>, segments: &[Segment], out: &mut [f32], log_sums: &mut [f32]) {
    let shape = common.shape;
    let rows = || segments.iter().map(|segment| segment.rows.clone());
    let tasks: Vec<_> = split_rows(out, rows(), shape.heads * shape.head_dim)
        .into_iter()
        .zip(split_rows(log_sums, rows(), shape.heads))
        .zip(segments)
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each(|((out_rows, log_sum_rows), segment)| {
        Sequence::new(qkv, segment, common).forward(out_rows, log_sum_rows);
    });
}

fn backward(qkv: &[f32], common: Common<'_>, gradient: &[f32], log_sums: &[f32], segments: &[Segment]) -> Vec<f32> {
    let shape = common.shape;
    let mut out = vec![0.0f32; qkv.len()];
    // A prefix and what continues it are one task: the prefix's gradients then add up in a fixed order.
    let families: Vec<&[Segment]> = segments.chunk_by(|_, next| !next.prefix.is_empty()).collect();
    let rows = families.iter().map(|family| family[0].rows.start..family[family.len() - 1].rows.end);
    let tasks: Vec<_> = split_rows(&mut out, rows, shape.qkv_width()).into_iter().zip(families).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(family_rows, family)| {
        let base = family[0].rows.start;
        for segment in family {
            let part = |data, width| rows_of(data, &segment.rows, width);
            let (prefix_rows, rest) = family_rows.split_at_mut((segment.rows.start - base) * shape.qkv_width());
            let mut target = GradientRows {
                prefix: &mut prefix_rows[..segment.prefix.len() * shape.qkv_width()],
                rows: &mut rest[..segment.rows.len() * shape.qkv_width()],
            };
            let (gradient_rows, log_sum_rows) =
                (part(gradient, shape.heads * shape.head_dim), part(log_sums, shape.heads));
            Sequence::new(qkv, segment, common).backward(gradient_rows, log_sum_rows, &mut target);
        }
    });
    out
}

fn rows_of<'a>(data: &'a [f32], rows: &Range<usize>, width: usize) -> &'a [f32] {
    &data[rows.start * width..rows.end * width]
}

/// Cuts a matrix into the given runs of rows, which cover it in order.
fn split_rows(data: &mut [f32], runs: impl Iterator<Item = Range<usize>>, width: usize) -> Vec<&mut [f32]> {
    let mut rest = data;
    let mut parts = Vec::new();
    for run in runs {
        let (part, tail) = rest.split_at_mut(run.len() * width);
        parts.push(part);
        rest = tail;
    }
    parts
}

/// One sequence: the rows of its prefix and its own, and what it shares with the others. Places count from the prefix's first row.
struct Sequence<'a> {
    prefix: &'a [f32],
    rows: &'a [f32],
    bias: &'a [f32],
    shape: &'a AttentionShape,
    dropout: Option<AttentionDropout>,
    /// Its first own row in the batch.
    start: usize,
}

/// Where a sequence's input gradients go.
struct GradientRows<'a> {
    prefix: &'a mut [f32],
    rows: &'a mut [f32],
}

impl<'a> Sequence<'a> {
    fn new(qkv: &'a [f32], segment: &Segment, Common { bias, shape, dropout }: Common<'a>) -> Self {
        let width = shape.qkv_width();
        let (prefix, rows) = (rows_of(qkv, &segment.prefix, width), rows_of(qkv, &segment.rows, width));
        Self { prefix, rows, bias, shape, dropout, start: segment.rows.start }
    }

    /// Drops some of a head's probabilities (or of their gradients) in a block of query rows, `[BLOCK, padded]`.
    fn drop_some(&self, head: usize, first: usize, block: &mut [f32]) {
        let Some(dropout) = self.dropout else { return };
        for (row, values) in block.chunks_exact_mut(self.padded()).take(self.len() - first).enumerate() {
            let query = (self.start + first - self.before() + row) * self.shape.heads + head;
            dropout.apply(query, &mut values[..=first + row]);
        }
    }

    /// Rows of the prefix.
    fn before(&self) -> usize {
        self.prefix.len() / self.shape.qkv_width()
    }

    /// Rows of prefix and sequence.
    fn len(&self) -> usize {
        self.before() + self.rows.len() / self.shape.qkv_width()
    }

    /// Length rounded up to whole blocks; the padding rows are zero.
    fn padded(&self) -> usize {
        self.len().next_multiple_of(BLOCK)
    }

    /// First places of the blocks of query rows.
    fn blocks(&self) -> impl Iterator<Item = usize> {
        (self.before()..self.len()).step_by(BLOCK)
    }

    /// Places that a block of query rows may look at, rounded up to whole blocks.
    fn seen(&self, first: usize) -> usize {
        (first + BLOCK).next_multiple_of(BLOCK).min(self.padded())
    }

    /// Input row of a place.
    fn row(&self, place: usize) -> &[f32] {
        let (width, before) = (self.shape.qkv_width(), self.before());
        match place.checked_sub(before) {
            None => &self.prefix[place * width..][..width],
            Some(own) => &self.rows[own * width..][..width],
        }
    }

    /// Rows `first..first+count` of one head, bias added, rotated if `rotated`; `slot` counts heads across query, key, value.
    fn head_rows(&self, slot: usize, first: usize, count: usize, rotated: bool) -> Vec<f32> {
        let dim = self.shape.head_dim;
        let mut out = vec![0.0f32; count * dim];
        let bias = &self.bias[slot * dim..][..dim];
        for (target, place) in out.chunks_exact_mut(dim).zip(first..self.len()) {
            let source = &self.row(place)[slot * dim..][..dim];
            for ((t, s), b) in target.iter_mut().zip(source).zip(bias) {
                *t = s + b;
            }
            if rotated {
                self.shape.rotate(target, place, 1.0);
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
        let (dim, padded, before) = (shape.head_dim, self.padded(), self.before());
        let mut scores = vec![0.0f32; BLOCK * padded];
        let mut mixed = vec![0.0f32; BLOCK * dim];
        for kv_head in 0..shape.kv_heads {
            let keys = transposed(&self.head_rows(shape.heads + kv_head, 0, padded, true), dim);
            let values = self.head_rows(shape.heads + shape.kv_heads + kv_head, 0, padded, false);
            for head in group(shape, kv_head) {
                for first in self.blocks() {
                    let seen = self.seen(first);
                    let query = self.query_block(head, first);
                    multiply(&mut scores, padded, rows(&query, dim), rows(&keys, padded), (BLOCK, seen, dim));
                    let sums = softmax_rows(&mut scores, padded, first, seen);
                    self.drop_some(head, first, &mut scores);
                    multiply(&mut mixed, dim, rows(&scores, padded), rows(&values, dim), (BLOCK, dim, seen));
                    for row in 0..BLOCK.min(self.len() - first) {
                        let (shift, sum) = sums[row];
                        let place = (first - before + row) * shape.heads + head;
                        log_sums[place] = shift + sum.ln();
                        let target = &mut out[place * dim..][..dim];
                        for (t, value) in target.iter_mut().zip(&mixed[row * dim..][..dim]) {
                            *t = value / sum;
                        }
                    }
                }
            }
        }
    }

    fn backward(&self, gradient: &[f32], log_sums: &[f32], out: &mut GradientRows<'_>) {
        let shape = self.shape;
        let (dim, padded, before) = (shape.head_dim, self.padded(), self.before());
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
                for first in self.blocks() {
                    let live = BLOCK.min(self.len() - first);
                    let mut out_gradient = vec![0.0f32; BLOCK * dim];
                    let mut row_log_sums = [0.0f32; BLOCK];
                    for row in 0..live {
                        let place = (first - before + row) * shape.heads + head;
                        out_gradient[row * dim..][..dim].copy_from_slice(&gradient[place * dim..][..dim]);
                        row_log_sums[row] = log_sums[place];
                    }
                    let drop_some = |block: &mut [f32]| self.drop_some(head, first, block);
                    let range = (first, self.seen(first));
                    pass.block(&self.query_block(head, first), &out_gradient, &row_log_sums, range, drop_some);
                    pass.query_gradient.iter_mut().for_each(|value| *value *= shape.scale());
                    self.store(out, head, first, &mut pass.query_gradient[..live * dim], true);
                }
            }
            let live = self.len() * dim;
            self.store(out, key_slot, 0, &mut pass.key_gradient[..live], true);
            self.store(out, value_slot, 0, &mut pass.value_gradient[..live], false);
        }
    }

    /// Writes a head's gradient rows to their places, rotated back where the head was rotated; adds to those of the prefix,
    /// which other sequences share.
    fn store(&self, out: &mut GradientRows<'_>, slot: usize, first: usize, gradient: &mut [f32], rotated: bool) {
        let (dim, width, before) = (self.shape.head_dim, self.shape.qkv_width(), self.before());
        for (index, row) in gradient.chunks_exact_mut(dim).enumerate() {
            let place = first + index;
            if rotated {
                self.shape.rotate(row, place, -1.0);
            }
            if place < before {
                add_in_place(&mut out.prefix[place * width + slot * dim..][..dim], row);
            } else {
                out.rows[(place - before) * width + slot * dim..][..dim].copy_from_slice(row);
            }
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
    /// One block of query rows: fills `query_gradient`, adds to the key and value gradients. What forward dropped is dropped
    /// of the gradients of the probabilities, and of the probabilities where the values' gradients need them.
    fn block(
        &mut self,
        query: &[f32],
        out_gradient: &[f32],
        log_sums: &[f32; BLOCK],
        (first, seen): (usize, usize),
        drop_some: impl Fn(&mut [f32]),
    ) {
        let (dim, padded) = (self.dim, self.padded);
        let (query_rows, out_rows) = (rows(query, dim), rows(out_gradient, dim));
        multiply(&mut self.probabilities, padded, query_rows, rows(&self.keys_transposed, padded), (BLOCK, seen, dim));
        multiply(&mut self.score_gradient, padded, out_rows, rows(&self.values_transposed, padded), (BLOCK, seen, dim));
        drop_some(&mut self.score_gradient);
        let blocks = self.probabilities.chunks_exact_mut(padded).zip(self.score_gradient.chunks_exact_mut(padded));
        for (row, (probability, gradient)) in blocks.enumerate() {
            let allowed = (first + row + 1).min(seen);
            exp_in_place(&mut probability[..allowed], log_sums[row]);
            probability[allowed..seen].fill(0.0);
            let mean = dot(&probability[..seen], &gradient[..seen]);
            for (g, p) in gradient[..seen].iter_mut().zip(&probability[..seen]) {
                *g = p * (*g - mean);
            }
        }
        drop_some(&mut self.probabilities);
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
        let allowed = (first + row + 1).min(seen);
        let shift = max(&score[..allowed]);
        sums[row] = (shift, exp_in_place(&mut score[..allowed], shift));
        score[allowed..seen].fill(0.0);
    }
    sums
}
