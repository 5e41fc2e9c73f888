//! RMSNorm: y = x / sqrt(mean(x²) + ε) · weight, rows of `[tokens, d]`, or each query and key head of a row. Called by `decoder`.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::attention::AttentionShape;
use super::maths::{ROWS_PER_TASK, dot, sum_in_order};
use super::tape::{record, tensor, with_values};

/// x `[tokens, d]`, weight `[d]` → `[tokens, d]`. Backward recomputes the row scales: cheaper than keeping them.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let shape = x.dims2()?;
    let values = with_values(x, |rows| with_values(weight, |w| forward(rows, w, epsilon)))??;
    let (kept_x, kept_weight) = (x.detach(), weight.detach());
    record("rms_norm", &[x, weight], values, shape, move |gradient| {
        let (x_gradient, weight_gradient) = with_values(gradient, |g| {
            with_values(&kept_x, |rows| with_values(&kept_weight, |w| backward(rows, w, g, epsilon)))
        })???;
        Ok([Some(tensor(x_gradient, shape)?), Some(tensor(weight_gradient, shape.1)?), None])
    })
}

/// Normalises the query heads of qkv `[tokens, qkv width]` with one weight, `[head_dim]`, and the key heads with another; value
/// heads go through.
pub(super) fn head_norm(
    qkv: &Tensor,
    query_weight: &Tensor,
    key_weight: &Tensor,
    shape: &AttentionShape,
    epsilon: f32,
) -> Result<Tensor> {
    let (tokens, width) = qkv.dims2()?;
    let dim = shape.head_dim;
    // Where the key and the value heads begin.
    let (keys, values) = (shape.heads * dim, (shape.heads + shape.kv_heads) * dim);
    let weights = [with_values(query_weight, <[f32]>::to_vec)?, with_values(key_weight, <[f32]>::to_vec)?];
    let normed = with_values(qkv, |all| {
        let mut out = all.to_vec();
        out.par_chunks_mut(width).with_min_len(16).for_each(|row| {
            for (range, weight) in [(0..keys, &weights[0]), (keys..values, &weights[1])] {
                for head in row[range].chunks_exact_mut(dim) {
                    let scale = inverse_rms(head, epsilon);
                    head.iter_mut().zip(weight).for_each(|(value, w)| *value *= scale * w);
                }
            }
        });
        out
    })?;
    let kept = qkv.detach();
    record("head_norm", &[qkv, query_weight, key_weight], normed, (tokens, width), move |gradient| {
        let (out, sums) = with_values(gradient, |g| {
            with_values(&kept, |all| head_norm_backward(all, g, &weights, (keys, values, width), epsilon))
        })??;
        let [query, key] = sums.map(|sum| tensor(sum, dim));
        Ok([Some(tensor(out, (tokens, width))?), Some(query?), Some(key?)])
    })
}

/// Gradients of the rows and of both weights; `keys` and `values` are the columns where those heads begin.
fn head_norm_backward(
    qkv: &[f32],
    gradient: &[f32],
    weights: &[Vec<f32>; 2],
    (keys, values, width): (usize, usize, usize),
    epsilon: f32,
) -> (Vec<f32>, [Vec<f32>; 2]) {
    let dim = weights[0].len();
    let task = ROWS_PER_TASK * width;
    let mut out = gradient.to_vec();
    let partial: Vec<[Vec<f32>; 2]> = out
        .par_chunks_mut(task)
        .zip(qkv.par_chunks(task).zip(gradient.par_chunks(task)))
        .map(|(out_rows, (rows, gradient_rows))| {
            let mut sums = [vec![0.0f32; dim], vec![0.0f32; dim]];
            let rows = rows.chunks_exact(width).zip(gradient_rows.chunks_exact(width));
            for (out_row, (row, gradient_row)) in out_rows.chunks_exact_mut(width).zip(rows) {
                for start in (0..values).step_by(dim) {
                    let (head, which) = (start..start + dim, usize::from(start >= keys));
                    let (x, g) = (&row[head.clone()], &gradient_row[head.clone()]);
                    backward_row(&mut out_row[head], &mut sums[which], x, g, &weights[which], epsilon);
                }
            }
            sums
        })
        .collect();
    let (query, key): (Vec<_>, Vec<_>) = partial.into_iter().map(|[query, key]| (query, key)).unzip();
    (out, [sum_in_order(&query, dim), sum_in_order(&key, dim)])
}

/// Normalises rows of `weight.len()` values.
pub(super) fn forward(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = vec![0.0f32; x.len()];
    let task = ROWS_PER_TASK * width;
    out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out_rows, rows)| {
        for (out_row, row) in out_rows.chunks_exact_mut(width).zip(rows.chunks_exact(width)) {
            let scale = inverse_rms(row, epsilon);
            for ((o, value), w) in out_row.iter_mut().zip(row).zip(weight) {
                *o = value * scale * w;
            }
        }
    });
    out
}

fn inverse_rms(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt()
}

fn backward(x: &[f32], weight: &[f32], gradient: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let task = ROWS_PER_TASK * width;
    let mut x_gradient = vec![0.0f32; x.len()];
    let partial: Vec<Vec<f32>> = x_gradient
        .par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .zip(gradient.par_chunks(task))
        .map(|((out_rows, rows), gradient_rows)| {
            let mut weight_gradient = vec![0.0f32; width];
            let rows = rows.chunks_exact(width).zip(gradient_rows.chunks_exact(width));
            for (out_row, (row, gradient_row)) in out_rows.chunks_exact_mut(width).zip(rows) {
                backward_row(out_row, &mut weight_gradient, row, gradient_row, weight, epsilon);
            }
            weight_gradient
        })
        .collect();
    (x_gradient, sum_in_order(&partial, width))
}

fn backward_row(
    out: &mut [f32],
    weight_gradient: &mut [f32],
    row: &[f32],
    gradient: &[f32],
    weight: &[f32],
    epsilon: f32,
) {
    let scale = inverse_rms(row, epsilon);
    for (((o, g), w), (dw, value)) in out.iter_mut().zip(gradient).zip(weight).zip(weight_gradient.iter_mut().zip(row))
    {
        *o = g * w;
        *dw = (g * scale).mul_add(*value, *dw);
    }
    // d/dx of scale(x)·x: the part along x is taken out.
    let along = dot(out, row) * scale * scale / row.len() as f32;
    for (o, value) in out.iter_mut().zip(row) {
        *o = scale * (*o - along * value);
    }
}
