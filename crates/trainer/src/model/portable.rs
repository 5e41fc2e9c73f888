//! Every operation of the decoder once more, in candle's plain operations, which run and differentiate on any device.
//!
//! In: tensors of one device, in f32 or bf16. Called by `compute`, and by the tests: they are what the CPU kernels are judged by,
//! values and gradients. Norms, rotations, softmax and the output layer are computed in f32 whatever comes in.

use candle_core::{DType, Result, Tensor, bail};

use super::attention::{AttentionShape, Segment};
use super::dropout::{AttentionDropout, Dropout};
use super::loss::OutputRows;
use super::{ModelError, Objective};

/// As `embedding::embed`.
pub(super) fn embed(table: &Tensor, tokens: &[u32]) -> Result<Tensor> {
    let vocab = table.dim(0)?;
    // A GPU would read past the table.
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
        bail!("token {token} is outside the vocabulary of {vocab}");
    }
    table.index_select(&Tensor::new(tokens, table.device())?, 0)
}

/// As `norm::rms_norm`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let (wide, weight) = (x.to_dtype(DType::F32)?, weight.to_dtype(DType::F32)?);
    let mean_square = wide.sqr()?.mean_keepdim(1)?;
    let normed = wide.broadcast_div(&(mean_square + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(&weight)?;
    normed.to_dtype(x.dtype())
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

/// As `linear::swiglu`.
pub(super) fn swiglu(projected: &Tensor) -> Result<Tensor> {
    let ffn = projected.dim(1)? / 2;
    projected.narrow(1, 0, ffn)?.silu()?.mul(&projected.narrow(1, ffn, ffn)?)
}

/// As `linear::swiglu_mlp`.
#[cfg(test)]
pub(super) fn swiglu_mlp(x: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
    swiglu(&x.matmul(&gate_up.t()?)?)?.matmul(&down.t()?)
}

/// As `Dropout::apply`.
pub(super) fn dropout(x: &Tensor, dropout: Dropout, place: u64) -> Result<Tensor> {
    let mask = Tensor::from_vec(dropout.mask(x.dims2()?, place), x.dims2()?, x.device())?;
    x.mul(&mask.to_dtype(x.dtype())?)
}

/// As `attention::attention`, one segment at a time.
pub(super) fn attention(
    qkv: &Tensor,
    bias: Option<&Tensor>,
    segments: &[Segment],
    shape: &AttentionShape,
    dropout: Option<AttentionDropout>,
) -> Result<Tensor> {
    let biased = match bias {
        Some(bias) => qkv.broadcast_add(bias)?,
        None => qkv.clone(),
    };
    let longest = segments.iter().map(|segment| segment.prefix.len() + segment.rows.len()).max().unwrap_or(0);
    let tables = Tables::of(longest, shape, qkv)?;
    let outputs = segments.iter().map(|segment| {
        let own = biased.narrow(0, segment.rows.start, segment.rows.len())?;
        let all = match segment.prefix.len() {
            0 => own.clone(),
            before => Tensor::cat(&[&biased.narrow(0, segment.prefix.start, before)?, &own], 0)?,
        };
        let dropped = dropout.map(|dropout| attention_mask(dropout, segment, shape.heads));
        attention_of(&own, &all, shape, &tables, dropped)
    });
    Tensor::cat(&outputs.collect::<Result<Vec<Tensor>>>()?, 0)
}

/// What the segments of a batch have in common.
struct Tables {
    /// `[places, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// `[places, places]`: 0 at what a place may look at, else -∞.
    causal: Tensor,
}

impl Tables {
    fn of(places: usize, shape: &AttentionShape, like: &Tensor) -> Result<Self> {
        let (half, device) = (shape.head_dim / 2, like.device());
        let table = |values: &[f32]| Tensor::new(&values[..places * half], device)?.reshape((places, half));
        let hidden = |index: usize| index % places > index / places;
        let causal: Vec<f32> =
            (0..places * places).map(|index| if hidden(index) { f32::NEG_INFINITY } else { 0.0 }).collect();
        let causal = Tensor::from_vec(causal, (places, places), device)?;
        Ok(Self { cos: table(&shape.cos)?, sin: table(&shape.sin)?, causal })
    }

    /// Rotates heads `[heads, rows, head_dim]` whose rows stand at places from `first` on.
    fn rotate(&self, heads: &Tensor, first: usize) -> Result<Tensor> {
        let (_, rows, dim) = heads.dims3()?;
        let wide = heads.to_dtype(DType::F32)?;
        let (cos, sin) = (self.cos.narrow(0, first, rows)?, self.sin.narrow(0, first, rows)?);
        let (a, b) = (wide.narrow(2, 0, dim / 2)?, wide.narrow(2, dim / 2, dim / 2)?);
        let left = a.broadcast_mul(&cos)?.sub(&b.broadcast_mul(&sin)?)?;
        let right = b.broadcast_mul(&cos)?.add(&a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[&left, &right], 2)?.to_dtype(heads.dtype())
    }
}

/// What the probabilities of a segment `[heads, rows, places]` are multiplied by.
fn attention_mask(dropout: AttentionDropout, segment: &Segment, heads: usize) -> Vec<f32> {
    let (rows, before) = (segment.rows.len(), segment.prefix.len());
    let mut mask = vec![1.0; heads * rows * (before + rows)];
    for (number, values) in mask.chunks_exact_mut(before + rows).enumerate() {
        let (head, row) = (number / rows, number % rows);
        dropout.apply((segment.rows.start + row) * heads + head, &mut values[..=before + row]);
    }
    mask
}

/// `own` `[rows, qkv width]`: the queries; `all` `[places, qkv width]`: prefix, then the same rows again; `dropped`
/// `[heads, rows, places]`: what the probabilities are multiplied by.
fn attention_of(
    own: &Tensor,
    all: &Tensor,
    shape: &AttentionShape,
    tables: &Tables,
    dropped: Option<Vec<f32>>,
) -> Result<Tensor> {
    let AttentionShape { heads, kv_heads, head_dim: dim, .. } = *shape;
    let (rows, places) = (own.dim(0)?, all.dim(0)?);
    // `[count, rows, dim]`.
    let part = |from: &Tensor, first: usize, count: usize| {
        let columns = from.narrow(1, first * dim, count * dim)?.contiguous()?;
        columns.reshape((from.dim(0)?, count, dim))?.transpose(0, 1)?.contiguous()
    };
    // A key or value head serves several query heads in a row.
    let shared = |kv: Tensor| {
        let group = heads / kv_heads;
        kv.unsqueeze(1)?.broadcast_as((kv_heads, group, places, dim))?.contiguous()?.reshape((heads, places, dim))
    };
    let query = tables.rotate(&part(own, 0, heads)?, places - rows)?;
    let key = shared(tables.rotate(&part(all, heads, kv_heads)?, 0)?)?;
    let value = shared(part(all, heads + kv_heads, kv_heads)?)?;
    let scores = (query.matmul(&key.transpose(1, 2)?.contiguous()?)?.to_dtype(DType::F32)? / (dim as f64).sqrt())?;
    let scores = scores.broadcast_add(&tables.causal.narrow(0, places - rows, rows)?.narrow(1, 0, places)?)?;
    let exponentials = scores.broadcast_sub(&scores.max_keepdim(2)?.detach())?.exp()?;
    let mut probabilities = exponentials.broadcast_div(&exponentials.sum_keepdim(2)?)?;
    if let Some(mask) = dropped {
        probabilities = probabilities.mul(&Tensor::from_vec(mask, probabilities.shape(), probabilities.device())?)?;
    }
    probabilities.to_dtype(value.dtype())?.matmul(&value)?.transpose(0, 1)?.contiguous()?.reshape((rows, heads * dim))
}

/// Log-softmax of the learned rows, `[rows, vocab]`, in f32, on the tape.
fn log_softmax(rows: &OutputRows<'_>) -> Result<Tensor> {
    let (hidden, vocab) = (rows.hidden, rows.table.dim(0)?);
    if let Some(target) = rows.learned.targets.iter().find(|&&target| target as usize >= vocab) {
        bail!("target token {target} is outside the vocabulary of {vocab}");
    }
    let places: Vec<u32> = rows.learned.places.iter().map(|&place| place as u32).collect();
    let learned = hidden.index_select(&Tensor::new(places, hidden.device())?, 0)?.to_dtype(DType::F32)?;
    let logits = learned.matmul(&rows.table.t()?)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)
}

/// Log-likelihoods `[rows]` of the (smoothed) targets, on the tape: what `loss::OutputRows` makes in its first pass.
pub(super) fn log_likelihoods(rows: &OutputRows<'_>) -> Result<Tensor> {
    likelihoods(rows, &log_softmax(rows)?)
}

fn likelihoods(rows: &OutputRows<'_>, normal: &Tensor) -> Result<Tensor> {
    let targets = Tensor::new(rows.learned.targets.as_slice(), normal.device())?.unsqueeze(1)?;
    let wanted = normal.gather(&targets, 1)?.squeeze(1)?;
    (wanted * (1.0 - rows.smoothing))?.add(&(normal.mean(1)? * rows.smoothing)?)
}

/// As `OutputRows::scores`.
pub(super) fn scores(rows: &OutputRows<'_>) -> Result<Vec<(f64, u32)>> {
    let normal = log_softmax(rows)?;
    let best: Vec<u32> = normal.argmax(1)?.to_vec1()?;
    Ok(numbers(&likelihoods(rows, &normal)?)?.into_iter().zip(best).collect())
}

/// The values of a vector, off the tape and off the device.
pub(super) fn numbers(vector: &Tensor) -> Result<Vec<f64>> {
    Ok(vector.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// As `OutputRows::loss`: the objective's value, with its gradients by way of the log-likelihoods, which are on the tape.
pub(super) fn loss(rows: &OutputRows<'_>, objective: &dyn Objective) -> std::result::Result<Tensor, ModelError> {
    let likelihoods = log_likelihoods(rows)?;
    let evaluation = objective.evaluate(&numbers(&likelihoods)?)?;
    rows.same_rows(&evaluation.derivatives)?;
    let slopes: Vec<f32> = evaluation.derivatives.iter().map(|slope| *slope as f32).collect();
    let linear = likelihoods.mul(&Tensor::new(slopes, likelihoods.device())?)?.sum_all()?;
    let rest = evaluation.value - f64::from(linear.to_scalar::<f32>()?);
    Ok((linear + rest)?.to_device(&candle_core::Device::Cpu)?)
}
