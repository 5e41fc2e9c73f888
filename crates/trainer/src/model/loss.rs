//! Output layer and softmax cross-entropy in one: the logits of a chunk of tokens live only until their gradients are made.
//!
//! Called by `decoder`. With a vocabulary of 2,048 the logits would be the largest tensor of a step; here they are one chunk.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::maths::{exp_in_place, max};
use super::tape::{record, tensor, with_values};

/// Tokens whose logits exist at once.
const CHUNK: usize = 2048;

/// Σ weightᵢ·nllᵢ / `normaliser` with a gradient. hidden `[tokens, d]`, table `[vocab, d]` → scalar. Weights may have any
/// sign: a policy gradient is this loss with weight = -advantage.
pub(super) fn cross_entropy(
    hidden: &Tensor,
    table: &Tensor,
    targets: &[u32],
    weights: &[f32],
    normaliser: f64,
) -> Result<Tensor> {
    let (tokens, width) = hidden.dims2()?;
    let (flat_hidden, flat_table) = (hidden.detach(), table.detach());
    let mut hidden_gradient = Vec::with_capacity(tokens * width);
    let mut table_gradient = table.zeros_like()?;
    let mut total = 0.0f64;
    for start in (0..tokens).step_by(CHUNK) {
        let rows = CHUNK.min(tokens - start);
        let part = flat_hidden.narrow(0, start, rows)?;
        let logits = part.matmul(&flat_table.t()?)?;
        let scaled: Vec<f32> =
            weights[start..start + rows].iter().map(|w| (f64::from(*w) / normaliser) as f32).collect();
        let nll = rewrite(&logits, &targets[start..start + rows], Some(&scaled))?;
        total += nll.iter().zip(&scaled).map(|(n, w)| f64::from(*n) * f64::from(*w)).sum::<f64>();
        with_values(&logits.matmul(&flat_table)?, |values| hidden_gradient.extend_from_slice(values))?;
        table_gradient = table_gradient.add(&logits.t()?.matmul(&part)?)?;
    }
    let hidden_gradient = tensor(hidden_gradient, (tokens, width))?;
    record("cross_entropy", &[hidden, table], vec![total as f32], (), move |gradient| {
        let factor = f64::from(gradient.to_scalar::<f32>()?);
        // The usual case: the loss is the end of the graph.
        if factor == 1.0 {
            return Ok([Some(hidden_gradient.clone()), Some(table_gradient.clone()), None]);
        }
        Ok([Some(hidden_gradient.affine(factor, 0.0)?), Some(table_gradient.affine(factor, 0.0)?), None])
    })
}

/// Negative log-likelihood (nats) of each target, no gradient.
pub(super) fn negative_log_likelihoods(hidden: &Tensor, table: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let (hidden, table) = (hidden.detach(), table.detach());
    let mut out = Vec::with_capacity(targets.len());
    for start in (0..targets.len()).step_by(CHUNK) {
        let rows = CHUNK.min(targets.len() - start);
        let logits = hidden.narrow(0, start, rows)?.matmul(&table.t()?)?;
        out.extend(rewrite(&logits, &targets[start..start + rows], None)?);
    }
    Ok(out)
}

/// Returns each row's nll; with weights the logits become their own gradients, weight·(softmax - one-hot).
fn rewrite(logits: &Tensor, targets: &[u32], weights: Option<&[f32]>) -> Result<Vec<f32>> {
    let operation = Rewrite { targets, weights, nll: Mutex::new(Vec::new()), vocab: logits.dim(1)? };
    logits.inplace_op1(&operation)?;
    Ok(operation.nll.into_inner().unwrap_or_else(PoisonError::into_inner))
}

struct Rewrite<'a> {
    targets: &'a [u32],
    weights: Option<&'a [f32]>,
    nll: Mutex<Vec<f32>>,
    vocab: usize,
}

impl InplaceOp1 for Rewrite<'_> {
    fn name(&self) -> &'static str {
        "softmax_gradient"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { bail!("logits must be f32") };
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("logits must be contiguous") };
        if let Some(target) = self.targets.iter().find(|&&target| target as usize >= self.vocab) {
            bail!("target token {target} is outside the vocabulary of {}", self.vocab);
        }
        let nll = values[start..end]
            .par_chunks_mut(self.vocab)
            .enumerate()
            .with_min_len(16)
            .map(|(row, logits)| {
                let target = self.targets[row] as usize;
                let wanted = logits[target];
                let shift = max(logits);
                let sum = exp_in_place(logits, shift);
                if let Some(weights) = self.weights {
                    let factor = weights[row] / sum;
                    logits.iter_mut().for_each(|value| *value *= factor);
                    logits[target] -= weights[row];
                }
                shift + sum.ln() - wanted
            })
            .collect();
        *self.nll.lock().unwrap_or_else(PoisonError::into_inner) = nll;
        Ok(())
    }
}
