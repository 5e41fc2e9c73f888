//! Linear layers and the SwiGLU block, on 2-D matrices so that each is one matrix product. Called by `decoder`.
//!
//! Weights are kept as Hugging Face stores them, `[out, in]`; transposing is a matter of strides, nothing is copied.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::maths::sigmoid;
use super::tape::{record, tensor, with_values};

/// x `[tokens, in]` · weightᵀ, weight `[out, in]` → `[tokens, out]`. candle's own product: its backward reads transposed
/// strides and copies nothing.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// The tensor's values; one copy, a thousandth of the block's time.
fn take_values(tensor: Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}

/// down( silu(gate(x)) · up(x) ): x `[tokens, d]`, gate_up `[2·ffn, d]` (gate rows first), down `[d, ffn]` → `[tokens, d]`.
/// Keeps gate_up(x) and the product for backward.
pub(super) fn swiglu_mlp(x: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let (kept_x, kept_gate_up, kept_down) = (x.detach(), gate_up.detach(), down.detach());
    let ffn = kept_down.dim(1)?;
    let projected = kept_x.matmul(&kept_gate_up.t()?)?;
    let product = tensor(with_values(&projected, |rows| gated(rows, ffn))?, (x.dim(0)?, ffn))?;
    let out = product.matmul(&kept_down.t()?)?;
    let shape = out.dims2()?;
    record("swiglu_mlp", &[x, gate_up, down], take_values(out)?, shape, move |gradient| {
        let product_gradient = gradient.matmul(&kept_down)?;
        let down_gradient = gradient.t()?.matmul(&product)?;
        let values = with_values(&projected, |rows| with_values(&product_gradient, |g| gated_backward(rows, g, ffn)))??;
        let projected_gradient = tensor(values, projected.dims2()?)?;
        let x_gradient = projected_gradient.matmul(&kept_gate_up)?;
        let gate_up_gradient = projected_gradient.t()?.matmul(&kept_x)?;
        Ok([Some(x_gradient), Some(gate_up_gradient), Some(down_gradient)])
    })
}

/// silu(gate)·up of rows `[gate | up]`.
pub(super) fn gated(projected: &[f32], ffn: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; projected.len() / 2];
    out.par_chunks_mut(ffn).zip(projected.par_chunks(2 * ffn)).with_min_len(16).for_each(|(out_row, row)| {
        let (gate, up) = row.split_at(ffn);
        for ((o, g), u) in out_row.iter_mut().zip(gate).zip(up) {
            *o = g * sigmoid(*g) * u;
        }
    });
    out
}

fn gated_backward(projected: &[f32], gradient: &[f32], ffn: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; projected.len()];
    let rows = projected.par_chunks(2 * ffn).zip(gradient.par_chunks(ffn));
    out.par_chunks_mut(2 * ffn).zip(rows).with_min_len(16).for_each(|(out_row, (row, gradient_row))| {
        let (gate, up) = row.split_at(ffn);
        let (gate_out, up_out) = out_row.split_at_mut(ffn);
        for index in 0..ffn {
            let (g, u, dy) = (gate[index], up[index], gradient_row[index]);
            let s = sigmoid(g);
            let silu = g * s;
            up_out[index] = dy * silu;
            gate_out[index] = dy * u * (s + silu * (1.0 - s));
        }
    });
    out
}
