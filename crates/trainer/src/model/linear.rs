//! Linear layers, with adapters where there are any, and the SwiGLU block, on 2-D matrices so that each is one matrix product.
//! Called by `decoder`.
//!
//! Weights are kept as Hugging Face stores them, `[out, in]`; transposing is a matter of strides, nothing is copied.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::compute::Compute;
use super::maths::sigmoid;
use super::portable;
use super::tape::{product, record, tensor, with_values};
use super::tile::{Matrix, ROWS, add};
use crate::nn::Weight;

/// Gives a parameter, on or off the tape, where and as it is computed with.
pub(super) type WeightSource<'a> = dyn Fn(&Weight) -> Result<Tensor> + 'a;

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

    /// The matrix's values with what its adapters add.
    pub(super) fn merged(&self) -> Result<Vec<f32>> {
        let mut values = with_values(self.weight.var(), <[f32]>::to_vec)?;
        let width = self.weight.dim(1)?;
        for adapter in &self.adapters {
            let added = (adapter.b.detach().matmul(&adapter.a.detach())? * adapter.scale)?;
            with_values(&added, |added| {
                let rows = &mut values[adapter.rows.start * width..adapter.rows.end * width];
                rows.iter_mut().zip(added).for_each(|(value, more)| *value += more);
            })?;
        }
        Ok(values)
    }

    /// x `[tokens, in]` → `[tokens, out]`; `weight` gives a parameter on or off the tape.
    pub(super) fn forward(&self, x: &Tensor, compute: &Compute, weight: &WeightSource<'_>) -> Result<Tensor> {
        let base = weight(&self.weight)?;
        if let Compute::Plain { .. } = compute {
            return self.plain(x, &base, weight);
        }
        if self.adapters.is_empty() {
            return linear(x, &base);
        }
        let bands = LowRank::of(&self.adapters, self.weight.dim(0)?)?;
        let joint = |part: fn(&Adapter) -> &Weight| -> Result<Tensor> {
            let all: Vec<Tensor> =
                self.adapters.iter().map(|adapter| weight(part(adapter))?.flatten_all()).collect::<Result<_>>()?;
            Tensor::cat(&all, 0)
        };
        let a = joint(|adapter| &adapter.a)?.reshape(((), x.dim(1)?))?;
        let b = joint(|adapter| &adapter.b)?;
        match base.track_op() {
            false => low_rank(x, Some(&base), &a, &b, bands),
            true => linear(x, &base)?.add(&low_rank(x, None, &a, &b, bands)?),
        }
    }

    /// The same by candle's own operations: each adapter's part is put between columns of zeros.
    fn plain(&self, x: &Tensor, base: &Tensor, weight: &WeightSource<'_>) -> Result<Tensor> {
        let mut out = x.matmul(&base.t()?)?;
        let width = out.dim(1)?;
        for Adapter { rows, a, b, scale, .. } in &self.adapters {
            let added = (x.matmul(&weight(a)?.t()?)?.matmul(&weight(b)?.t()?)? * *scale)?;
            out = out.add(&added.pad_with_zeros(1, rows.start, width - rows.end)?)?;
        }
        Ok(out)
    }
}

/// The feed-forward block: down( silu(gate(x)) · up(x) ), `[tokens, d]` → `[tokens, d]`.
pub(super) fn feed_forward(
    x: &Tensor,
    gate_up: &Linear,
    down: &Linear,
    compute: &Compute,
    weight: &WeightSource<'_>,
) -> Result<Tensor> {
    if let Compute::Plain { .. } = compute {
        return down.forward(&portable::swiglu(&gate_up.forward(x, compute, weight)?)?, compute, weight);
    }
    if gate_up.adapters.is_empty() && down.adapters.is_empty() {
        return swiglu_mlp(x, &weight(&gate_up.weight)?, &weight(&down.weight)?);
    }
    down.forward(&swiglu(&gate_up.forward(x, compute, weight)?)?, compute, weight)
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
    let out = product(x, &weight.t()?)?;
    record("frozen_linear", &[x], out, (x.dim(0)?, weight.dim(0)?), move |gradient| {
        Ok([Some(gradient.matmul(&kept_weight)?), None, None])
    })
}

/// Places of the adapters beside one matrix: A's are joined one below the other, B's end to end.
struct LowRank {
    bands: Vec<Band>,
    out: usize,
}

struct Band {
    /// Columns of the result.
    rows: Range<usize>,
    /// Rows of the joint A.
    ranks: Range<usize>,
    /// Values of the joint B, `[rows, rank]`.
    b: Range<usize>,
    scale: f32,
}

impl LowRank {
    fn of(adapters: &[Adapter], out: usize) -> Result<Self> {
        let (mut rank, mut value) = (0, 0);
        let band = |adapter: &Adapter| {
            let (ranks, values) = (adapter.a.dim(0)?, adapter.b.elem_count());
            (rank, value) = (rank + ranks, value + values);
            let (ranks, b) = (rank - ranks..rank, value - values..value);
            Ok(Band { rows: adapter.rows.clone(), ranks, b, scale: adapter.scale as f32 })
        };
        Ok(Self { bands: adapters.iter().map(band).collect::<Result<_>>()?, out })
    }
}

/// x·baseᵀ + Σ scale · (x·Aᵀ)·Bᵀ, each band at its columns; nothing of base's where it is absent. x `[tokens, in]`, base
/// `[out, in]` off the tape, joint A `[ranks, in]`, joint B of one dimension → `[tokens, out]`.
fn low_rank(x: &Tensor, base: Option<&Tensor>, a: &Tensor, b: &Tensor, layout: LowRank) -> Result<Tensor> {
    let (tokens, ranks) = (x.dim(0)?, a.dim(0)?);
    let inner = tensor(product(x, &a.t()?)?, (tokens, ranks))?;
    let mut out = match base {
        Some(base) => product(x, &base.t()?)?,
        None => vec![0.0; tokens * layout.out],
    };
    for band in &layout.bands {
        let table = band_of(b, band)?.t()?.contiguous()?;
        let scaled = (inner.narrow(1, band.ranks.start, band.ranks.len())?.contiguous()? * f64::from(band.scale))?;
        let rank = band.ranks.len();
        with_values(&scaled, |u| with_values(&table, |t| add_products(&mut out, layout.out, &band.rows, u, rank, t)))??;
    }
    let wants_x = x.track_op();
    let [kept_x, kept_a, kept_b] = [x, a, b].map(Tensor::detach);
    let (kept_base, shape) = (base.map(Tensor::detach), (tokens, layout.out));
    record("low_rank", &[x, a, b], out, shape, move |gradient| {
        let (mut outers, mut b_gradients) = (Vec::new(), Vec::new());
        for band in &layout.bands {
            let part = gradient.narrow(1, band.rows.start, band.rows.len())?;
            let scale = f64::from(band.scale);
            outers.push((part.matmul(&band_of(&kept_b, band)?)? * scale)?);
            let read = inner.narrow(1, band.ranks.start, band.ranks.len())?;
            b_gradients.push((part.t()?.matmul(&read)? * scale)?.flatten_all()?);
        }
        let outer = Tensor::cat(&outers, 1)?.contiguous()?;
        let a_gradient = outer.t()?.matmul(&kept_x)?;
        let x_gradient = wants_x.then(|| input_gradient(gradient, kept_base.as_ref(), &outer, &kept_a)).transpose()?;
        Ok([x_gradient, Some(a_gradient), Some(Tensor::cat(&b_gradients, 0)?)])
    })
}

/// gradient·base + outer·A.
fn input_gradient(gradient: &Tensor, base: Option<&Tensor>, outer: &Tensor, a: &Tensor) -> Result<Tensor> {
    let (ranks, width) = a.dims2()?;
    let mut out = match base {
        Some(base) => product(gradient, base)?,
        None => vec![0.0; gradient.dim(0)? * width],
    };
    with_values(outer, |u| with_values(a, |t| add_products(&mut out, width, &(0..width), u, ranks, t)))??;
    tensor(out, (outer.dim(0)?, width))
}

/// B of a band, `[rows, rank]`.
fn band_of(b: &Tensor, band: &Band) -> Result<Tensor> {
    b.narrow(0, band.b.start, band.b.len())?.reshape((band.rows.len(), band.ranks.len()))
}

/// out\[t, columns\] += u\[t\] · table, for every row t; out has `width` columns, u `rank`, and the table is `[rank, columns]`.
fn add_products(out: &mut [f32], width: usize, columns: &Range<usize>, u: &[f32], rank: usize, table: &[f32]) {
    let b = Matrix { data: table, stride: columns.len() };
    let rows = out.par_chunks_mut(ROWS * width).zip(u.par_chunks(ROWS * rank)).with_min_len(16);
    rows.for_each(|(out_rows, u_rows)| {
        let shape = (out_rows.len() / width, columns.len(), rank);
        let a = Matrix { data: u_rows, stride: rank };
        add(&mut out_rows[columns.start..], width, a, b, shape);
    });
}

/// down( silu(gate(x)) · up(x) ): x `[tokens, d]`, gate_up `[2·ffn, d]` (gate rows first), down `[d, ffn]` → `[tokens, d]`.
/// Keeps gate_up(x) and the product for backward.
pub(super) fn swiglu_mlp(x: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let (kept_x, kept_gate_up, kept_down) = (x.detach(), gate_up.detach(), down.detach());
    let wanted = [x.track_op(), gate_up.track_op(), down.track_op()];
    let ffn = kept_down.dim(1)?;
    let projected = kept_x.matmul(&kept_gate_up.t()?)?;
    let gated_rows = tensor(with_values(&projected, |rows| gated(rows, ffn))?, (x.dim(0)?, ffn))?;
    let out = product(&gated_rows, &kept_down.t()?)?;
    let shape = (x.dim(0)?, down.dim(0)?);
    record("swiglu_mlp", &[x, gate_up, down], out, shape, move |gradient| {
        let gated_gradient = gradient.matmul(&kept_down)?;
        let down_gradient = wanted[2].then(|| gradient.t()?.matmul(&gated_rows)).transpose()?;
        let values = with_values(&projected, |rows| with_values(&gated_gradient, |g| gated_backward(rows, g, ffn)))??;
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
