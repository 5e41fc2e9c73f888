//! Linear layers, with adapters where there are any, and the SwiGLU block, on 2-D matrices so that each is one matrix product.
//! Called by `decoder`.
//!
//! Weights are kept as Hugging Face stores them, `[out, in]`; transposing is a matter of strides, nothing is copied.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::maths::sigmoid;
use super::tape::{record, tensor, with_values};
use crate::nn::Weight;

/// A linear layer: one matrix, which may be several of Hugging Face's one below the other, and what adapters add to it.
#[derive(Debug)]
pub(super) struct Linear {
    /// `[out, in]`.
    pub(super) weight: Weight,
    /// Hugging Face's layers in it, in the order of their rows.
    pub(super) parts: Vec<LinearPart>,
    /// In the order of their rows; those of one layer add up.
    pub(super) adapters: Vec<Adapter>,
}

/// Rows of a joint matrix that are a layer of their own elsewhere.
#[derive(Debug, Clone)]
pub(super) struct LinearPart {
    /// As Hugging Face has it, without `.weight`.
    pub(super) name: String,
    pub(super) rows: Range<usize>,
}

/// scale · B·A beside some rows of a matrix (LoRA).
#[derive(Debug)]
pub(super) struct Adapter {
    /// The layer's name, without `.weight`.
    pub(super) name: String,
    pub(super) rows: Range<usize>,
    /// `[rank, in]`.
    pub(super) a: Weight,
    /// `[rows, rank]`.
    pub(super) b: Weight,
    pub(super) scale: f64,
}

impl Linear {
    /// Puts an adapter with these values of A and B beside a part.
    pub(super) fn adapt(
        &mut self,
        part: &LinearPart,
        (a, b): (Vec<f32>, Vec<f32>),
        rank: usize,
        scale: f64,
    ) -> Result<()> {
        let a = Weight::new(&tensor(a, (rank, self.weight.dim(1)?))?)?;
        let b = Weight::new(&tensor(b, (part.rows.len(), rank))?)?;
        self.adapters.push(Adapter { name: part.name.clone(), rows: part.rows.clone(), a, b, scale });
        Ok(())
    }

    /// x `[tokens, in]` → `[tokens, out]`; `weight` gives a parameter on or off the tape.
    pub(super) fn forward(&self, x: &Tensor, weight: &impl Fn(&Weight) -> Tensor) -> Result<Tensor> {
        let base = linear(x, &weight(&self.weight))?;
        if self.adapters.is_empty() {
            return Ok(base);
        }
        let (tokens, width) = base.dims2()?;
        let nothing = |columns: usize| Tensor::zeros((tokens, columns), DType::F32, base.device());
        let (mut added, mut done) = (Vec::new(), 0);
        for adapter in &self.adapters {
            if adapter.rows.start > done {
                added.push(nothing(adapter.rows.start - done)?);
            }
            added.push((linear(&linear(x, &weight(&adapter.a))?, &weight(&adapter.b))? * adapter.scale)?);
            done = adapter.rows.end;
        }
        if done < width {
            added.push(nothing(width - done)?);
        }
        base.add(&Tensor::cat(&added, 1)?)
    }
}

/// The feed-forward block: down( silu(gate(x)) · up(x) ), `[tokens, d]` → `[tokens, d]`.
pub(super) fn feed_forward(
    x: &Tensor,
    gate_up: &Linear,
    down: &Linear,
    weight: &impl Fn(&Weight) -> Tensor,
) -> Result<Tensor> {
    if gate_up.adapters.is_empty() && down.adapters.is_empty() {
        return swiglu_mlp(x, &weight(&gate_up.weight), &weight(&down.weight));
    }
    down.forward(&swiglu(&gate_up.forward(x, weight)?)?, weight)
}

/// silu(gate)·up of rows `[gate | up]`: `[tokens, 2·ffn]` → `[tokens, ffn]`.
pub(super) fn swiglu(projected: &Tensor) -> Result<Tensor> {
    let (tokens, width) = projected.dims2()?;
    let kept = projected.detach();
    let values = with_values(projected, |rows| gated(rows, width / 2))?;
    record("swiglu", &[projected], values, (tokens, width / 2), move |gradient| {
        let gradient = gradient.contiguous()?;
        let values = with_values(&kept, |rows| with_values(&gradient, |g| gated_backward(rows, g, width / 2)))??;
        Ok([Some(tensor(values, (tokens, width))?), None, None])
    })
}

/// x `[tokens, in]` · weightᵀ, weight `[out, in]` → `[tokens, out]`. candle's own product: its backward reads transposed
/// strides and copies nothing. It would make a gradient for a frozen weight, too: a third of the layer's work, for nothing.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if weight.track_op() || !x.track_op() {
        return x.matmul(&weight.t()?);
    }
    let kept_weight = weight.detach();
    let out = x.detach().matmul(&weight.t()?)?;
    let shape = out.dims2()?;
    record("frozen_linear", &[x], take_values(out)?, shape, move |gradient| {
        Ok([Some(gradient.matmul(&kept_weight)?), None, None])
    })
}

/// The tensor's values; one copy, a thousandth of the block's time.
fn take_values(tensor: Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}

/// down( silu(gate(x)) · up(x) ): x `[tokens, d]`, gate_up `[2·ffn, d]` (gate rows first), down `[d, ffn]` → `[tokens, d]`.
/// Keeps gate_up(x) and the product for backward.
pub(super) fn swiglu_mlp(x: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let (kept_x, kept_gate_up, kept_down) = (x.detach(), gate_up.detach(), down.detach());
    let wanted = [x.track_op(), gate_up.track_op(), down.track_op()];
    let ffn = kept_down.dim(1)?;
    let projected = kept_x.matmul(&kept_gate_up.t()?)?;
    let product = tensor(with_values(&projected, |rows| gated(rows, ffn))?, (x.dim(0)?, ffn))?;
    let out = product.matmul(&kept_down.t()?)?;
    let shape = out.dims2()?;
    record("swiglu_mlp", &[x, gate_up, down], take_values(out)?, shape, move |gradient| {
        let product_gradient = gradient.matmul(&kept_down)?;
        let down_gradient = wanted[2].then(|| gradient.t()?.matmul(&product)).transpose()?;
        let values = with_values(&projected, |rows| with_values(&product_gradient, |g| gated_backward(rows, g, ffn)))??;
        let projected_gradient = tensor(values, projected.dims2()?)?;
        let x_gradient = wanted[0].then(|| projected_gradient.matmul(&kept_gate_up)).transpose()?;
        let gate_up_gradient = wanted[1].then(|| projected_gradient.t()?.matmul(&kept_x)).transpose()?;
        Ok([x_gradient, gate_up_gradient, down_gradient])
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
