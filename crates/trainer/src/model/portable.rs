//! Every operation of the decoder once more, in candle's plain operations, which run and differentiate on any device.
//!
//! Called by the tests: they are what the CPU kernels are judged by, values and gradients.

use candle_core::{Result, Tensor};

use super::attention::{AttentionShape, Segment};
use super::batch::LearnedRows;

/// As `embedding::embed`.
pub(super) fn embed(table: &Tensor, tokens: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::new(tokens, table.device())?, 0)
}

/// As `norm::rms_norm`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(1)?;
    x.broadcast_div(&(mean_square + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(weight)
}

/// As `norm::head_norm`.
pub(super) fn head_norm(
    qkv: &Tensor,
    query_weight: &Tensor,
    key_weight: &Tensor,
    shape: &AttentionShape,
    epsilon: f32,
) -> Result<Tensor> {
    let (tokens, dim) = (qkv.dim(0)?, shape.head_dim);
    let normed = |first: usize, heads: usize, weight: &Tensor| {
        let rows = qkv.narrow(1, first * dim, heads * dim)?.reshape((tokens * heads, dim))?;
        rms_norm(&rows, weight, epsilon)?.reshape((tokens, heads * dim))
    };
    let values = qkv.narrow(1, (shape.heads + shape.kv_heads) * dim, shape.kv_heads * dim)?;
    Tensor::cat(
        &[&normed(0, shape.heads, query_weight)?, &normed(shape.heads, shape.kv_heads, key_weight)?, &values],
        1,
    )
}

/// As `linear::swiglu_mlp`.
pub(super) fn swiglu_mlp(x: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let projected = x.matmul(&gate_up.t()?)?;
    let ffn = projected.dim(1)? / 2;
    let (gate, up) = (projected.narrow(1, 0, ffn)?, projected.narrow(1, ffn, ffn)?);
    gate.silu()?.mul(&up)?.matmul(&down.t()?)
}

/// As `attention::attention`, one segment and one query head at a time.
pub(super) fn attention(
    qkv: &Tensor,
    bias: Option<&Tensor>,
    segments: &[Segment],
    shape: &AttentionShape,
) -> Result<Tensor> {
    let biased = match bias {
        Some(bias) => qkv.broadcast_add(bias)?,
        None => qkv.clone(),
    };
    let outputs = segments.iter().map(|segment| {
        let own = biased.narrow(0, segment.rows.start, segment.rows.len())?;
        let all = match segment.prefix.len() {
            0 => own.clone(),
            before => Tensor::cat(&[&biased.narrow(0, segment.prefix.start, before)?, &own], 0)?,
        };
        let heads: Vec<Tensor> =
            (0..shape.heads).map(|head| attention_head(&own, &all, head, shape)).collect::<Result<_>>()?;
        Tensor::cat(&heads, 1)
    });
    Tensor::cat(&outputs.collect::<Result<Vec<Tensor>>>()?, 0)
}

/// `own` `[rows, qkv width]`: the queries; `all` `[places, qkv width]`: prefix, then the same rows again.
fn attention_head(own: &Tensor, all: &Tensor, head: usize, shape: &AttentionShape) -> Result<Tensor> {
    let dim = shape.head_dim;
    let kv_head = shape.heads + head / (shape.heads / shape.kv_heads);
    let part = |rows: &Tensor, slot: usize| rows.narrow(1, slot * dim, dim)?.contiguous();
    let (rows, places) = (own.dim(0)?, all.dim(0)?);
    let query = rotate(&part(own, head)?, places - rows, shape)?;
    let key = rotate(&part(all, kv_head)?, 0, shape)?;
    let scores = (query.matmul(&key.t()?)? / (dim as f64).sqrt())?;
    let hidden = |index: usize| index % places > places - rows + index / places;
    let mask: Vec<f32> = (0..rows * places).map(|index| if hidden(index) { f32::NEG_INFINITY } else { 0.0 }).collect();
    let scores = scores.add(&Tensor::from_vec(mask, (rows, places), own.device())?)?;
    let exponentials = scores.broadcast_sub(&scores.max_keepdim(1)?.detach())?.exp()?;
    let probabilities = exponentials.broadcast_div(&exponentials.sum_keepdim(1)?)?;
    probabilities.matmul(&part(all, kv_head + shape.kv_heads)?)
}

/// Rotates rows `[rows, head_dim]` that stand at places from `first` on.
fn rotate(rows: &Tensor, first: usize, shape: &AttentionShape) -> Result<Tensor> {
    let (count, half) = (rows.dim(0)?, shape.head_dim / 2);
    let table =
        |values: &[f32]| Tensor::new(&values[first * half..][..count * half], rows.device())?.reshape((count, half));
    let (cos, sin) = (table(&shape.cos)?, table(&shape.sin)?);
    let (a, b) = (rows.narrow(1, 0, half)?, rows.narrow(1, half, half)?);
    Tensor::cat(&[a.mul(&cos)?.sub(&b.mul(&sin)?)?, b.mul(&cos)?.add(&a.mul(&sin)?)?], 1)
}

/// Log-likelihoods `[rows]` of the (smoothed) targets, on the tape: what `loss::OutputRows` makes in its first pass.
pub(super) fn log_likelihoods(
    hidden: &Tensor,
    table: &Tensor,
    learned: &LearnedRows,
    smoothing: f64,
) -> Result<Tensor> {
    let places: Vec<u32> = learned.places.iter().map(|&place| place as u32).collect();
    let rows = hidden.index_select(&Tensor::new(places, hidden.device())?, 0)?;
    let logits = rows.matmul(&table.t()?)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let normal = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
    let targets = Tensor::new(learned.targets.as_slice(), hidden.device())?.unsqueeze(1)?;
    let wanted = normal.gather(&targets, 1)?.squeeze(1)?;
    (wanted * (1.0 - smoothing))?.add(&(normal.mean(1)? * smoothing)?)
}
