//! Output layer and objective in one, in two passes over the learned rows: log-likelihoods first, then, with the objective's
//! derivatives, gradients. The logits of a chunk of rows live only until its gradients are made.
//!
//! Called by `decoder`. Logits would be the largest tensor of a step: [`LOGIT_BYTES`] bounds a chunk whatever the vocabulary.
//! The last chunk is kept from pass to pass, so that rows that fit into one chunk pay for their logits once; derivatives that
//! are known beforehand save the first pass.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::batch::LearnedRows;
use super::maths::{exp_in_place, max};
use super::tape::{record, tensor, with_values};
use super::{ModelError, Objective};

/// Most bytes of one chunk's logits; at most two chunks exist at once.
pub(super) const LOGIT_BYTES: usize = 128 << 20;

/// The output layer over a batch's learned rows.
pub(super) struct OutputRows<'a> {
    /// Hidden states of all tokens, `[tokens, d]`.
    pub(super) hidden: &'a Tensor,
    /// `[vocab, d]`.
    pub(super) table: &'a Tensor,
    /// Rows of `hidden` that are learned, and their targets.
    pub(super) learned: &'a LearnedRows,
    /// ε of label smoothing.
    pub(super) smoothing: f64,
    /// Most bytes of one chunk's logits: [`LOGIT_BYTES`].
    pub(super) logit_bytes: usize,
}

impl OutputRows<'_> {
    /// Log-likelihood (nats) of each learned row's target, no gradient.
    pub(super) fn log_likelihoods(&self) -> Result<Vec<f64>> {
        Ok(self.first_pass(&self.gather()?)?.0)
    }

    /// Log-likelihood (nats) of each learned row's target, and the most likely token there; no gradient.
    pub(super) fn scores(&self) -> Result<Vec<(f64, u32)>> {
        let rows = self.gather()?;
        let mut scores = Vec::with_capacity(self.learned.places.len());
        for (start, count) in self.chunks()? {
            let chunk = self.chunk(&rows, start, count, None)?;
            let vocab = chunk.logits.dim(1)?;
            let best: Vec<u32> =
                with_values(&chunk.logits, |logits| logits.par_chunks(vocab).map(place_of_largest).collect())?;
            scores.extend(chunk.log_likelihoods.into_iter().zip(best));
        }
        Ok(scores)
    }

    /// The objective's value as a scalar whose gradient flows to hidden states and table.
    pub(super) fn loss(&self, objective: &dyn Objective) -> std::result::Result<Tensor, ModelError> {
        let rows = self.gather()?;
        let (value, gradients) = match objective.fixed_derivatives() {
            Some(derivatives) => {
                self.same_rows(derivatives)?;
                let gradients = self.second_pass(&rows, None, derivatives)?;
                (objective.evaluate(&gradients.log_likelihoods)?.value, gradients)
            }
            None => {
                let (log_likelihoods, last) = self.first_pass(&rows)?;
                let evaluation = objective.evaluate(&log_likelihoods)?;
                self.same_rows(&evaluation.derivatives)?;
                (evaluation.value, self.second_pass(&rows, last, &evaluation.derivatives)?)
            }
        };
        let loss = record("objective", &[self.hidden, self.table], vec![value as f32], (), move |gradient| {
            let factor = f64::from(gradient.to_scalar::<f32>()?);
            // The usual case: the loss is the end of the graph.
            let scaled = |tensor: &Tensor| if factor == 1.0 { Ok(tensor.clone()) } else { tensor.affine(factor, 0.0) };
            Ok([Some(scaled(&gradients.hidden)?), gradients.table.as_ref().map(scaled).transpose()?, None])
        })?;
        Ok(loss)
    }

    pub(super) fn same_rows(&self, derivatives: &[f64]) -> std::result::Result<(), ModelError> {
        let (found, rows) = (derivatives.len(), self.learned.places.len());
        if found == rows {
            return Ok(());
        }
        let message = format!("the objective has derivatives for {found} rows, the batch has {rows} with a weight");
        Err(ModelError::Batch(format!("{message}: make it from the same batch")))
    }

    /// Hidden states of the learned rows, `[rows, d]`, off the tape.
    fn gather(&self) -> Result<Tensor> {
        let (tokens, width) = self.hidden.dims2()?;
        let places = &self.learned.places;
        if places.len() == tokens {
            return Ok(self.hidden.detach());
        }
        let values = with_values(self.hidden, |all| {
            places.iter().flat_map(|place| &all[place * width..][..width]).copied().collect()
        })?;
        tensor(values, (places.len(), width))
    }

    /// Bounds of the chunks.
    fn chunks(&self) -> Result<impl Iterator<Item = (usize, usize)>> {
        let (rows, row_bytes) = (self.learned.places.len(), self.table.dim(0)? * size_of::<f32>());
        let most = (self.logit_bytes / row_bytes).max(1);
        Ok((0..rows).step_by(most).map(move |start| (start, most.min(rows - start))))
    }

    /// Log-likelihoods of all rows, and the last chunk for the second pass.
    fn first_pass(&self, rows: &Tensor) -> Result<(Vec<f64>, Option<Chunk>)> {
        let mut out = Vec::with_capacity(self.learned.places.len());
        let mut last = None;
        for (start, count) in self.chunks()? {
            // Freed before the next one is made.
            drop(last.take());
            let chunk = self.chunk(rows, start, count, None)?;
            out.extend_from_slice(&chunk.log_likelihoods);
            last = Some(chunk);
        }
        Ok((out, last))
    }

    /// Gradients, by way of `last` where it is given, else of logits made again.
    fn second_pass(&self, rows: &Tensor, mut last: Option<Chunk>, derivatives: &[f64]) -> Result<Gradients> {
        let (tokens, width) = self.hidden.dims2()?;
        let table = self.table.detach();
        let mut hidden_gradient = vec![0.0f32; tokens * width];
        let mut table_gradient: Option<Tensor> = None;
        let mut log_likelihoods = Vec::with_capacity(derivatives.len());
        for (start, count) in self.chunks()? {
            let slopes = &derivatives[start..start + count];
            let chunk = match last.take_if(|chunk| chunk.start == start) {
                Some(chunk) => chunk.differentiate(slopes)?,
                None => self.chunk(rows, start, count, Some(slopes))?,
            };
            log_likelihoods.extend_from_slice(&chunk.log_likelihoods);
            let places = &self.learned.places[start..start + count];
            with_values(&chunk.logits.matmul(&table)?, |values| {
                for (place, row) in places.iter().zip(values.chunks_exact(width)) {
                    hidden_gradient[place * width..][..width].copy_from_slice(row);
                }
            })?;
            if self.table.track_op() {
                let part = chunk.logits.t()?.matmul(&rows.narrow(0, start, count)?)?;
                table_gradient = Some(match table_gradient {
                    Some(sum) => sum.add(&part)?,
                    None => part,
                });
            }
        }
        Ok(Gradients { hidden: tensor(hidden_gradient, (tokens, width))?, table: table_gradient, log_likelihoods })
    }

    /// Logits of some rows, brought to e^(logit - row maximum), or to their gradients where the derivatives are known.
    fn chunk(&self, rows: &Tensor, start: usize, count: usize, derivatives: Option<&[f64]>) -> Result<Chunk> {
        let logits = rows.narrow(0, start, count)?.matmul(&self.table.detach().t()?)?;
        let targets = self.learned.targets[start..start + count].to_vec();
        let smoothing = self.smoothing;
        let operation = Exponentiate { targets: &targets, smoothing, derivatives, rows: Mutex::new(Vec::new()) };
        logits.inplace_op1(&operation)?;
        let rows = operation.rows.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (log_likelihoods, sums) = rows.into_iter().unzip();
        Ok(Chunk { start, logits, targets, smoothing, log_likelihoods, sums })
    }
}

/// The first of the largest.
fn place_of_largest(values: &[f32]) -> u32 {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best as u32
}

/// What the second pass makes.
struct Gradients {
    /// `[tokens, d]`.
    hidden: Tensor,
    /// `[vocab, d]`; none if the table is not trained.
    table: Option<Tensor>,
    /// Of all learned rows.
    log_likelihoods: Vec<f64>,
}

/// Some rows between the passes.
struct Chunk {
    start: usize,
    /// e^(logit - row maximum), then the gradients of the logits, `[rows, vocab]`.
    logits: Tensor,
    targets: Vec<u32>,
    smoothing: f64,
    log_likelihoods: Vec<f64>,
    /// Sum of each row's exponentials.
    sums: Vec<f32>,
}

impl Chunk {
    /// Turns the exponentials into the gradients of the logits.
    fn differentiate(self, derivatives: &[f64]) -> Result<Self> {
        self.logits.inplace_op1(&Differentiate { chunk: &self, derivatives })?;
        Ok(self)
    }
}

/// One row of exponentials becomes derivative·(wanted distribution - softmax).
fn differentiate_row(exponentials: &mut [f32], sum: f32, target: u32, derivative: f64, smoothing: f64) {
    let factor = -derivative as f32 / sum;
    exponentials.iter_mut().for_each(|value| *value *= factor);
    exponentials[target as usize] += (derivative * (1.0 - smoothing)) as f32;
    if smoothing > 0.0 {
        let share = (derivative * smoothing / exponentials.len() as f64) as f32;
        exponentials.iter_mut().for_each(|value| *value += share);
    }
}

/// The rows of contiguous f32 logits, and the length of one.
fn rows_of<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<(&'a mut [f32], usize)> {
    let CpuStorage::F32(values) = storage else { bail!("logits must be f32") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("logits must be contiguous") };
    Ok((&mut values[start..end], layout.shape().dims2()?.1))
}

/// Logits become e^(logit - row maximum), or gradients where the derivatives are known; `rows` receives each row's
/// log-likelihood and sum.
struct Exponentiate<'a> {
    targets: &'a [u32],
    smoothing: f64,
    derivatives: Option<&'a [f64]>,
    rows: Mutex<Vec<(f64, f32)>>,
}

impl InplaceOp1 for Exponentiate<'_> {
    fn name(&self) -> &'static str {
        "exponentiate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (values, vocab) = rows_of(storage, layout)?;
        if let Some(target) = self.targets.iter().find(|&&target| target as usize >= vocab) {
            bail!("target token {target} is outside the vocabulary of {vocab}");
        }
        let rows = values.par_chunks_mut(vocab).zip(self.targets).enumerate().with_min_len(16);
        let rows = rows.map(|(row, (logits, &target))| {
            let mut wanted = f64::from(logits[target as usize]);
            if self.smoothing > 0.0 {
                let mean = logits.iter().map(|&logit| f64::from(logit)).sum::<f64>() / vocab as f64;
                wanted += self.smoothing * (mean - wanted);
            }
            let shift = max(logits);
            let sum = exp_in_place(logits, shift);
            if let Some(derivatives) = self.derivatives {
                differentiate_row(logits, sum, target, derivatives[row], self.smoothing);
            }
            (wanted - f64::from(shift) - f64::from(sum).ln(), sum)
        });
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = rows.collect();
        Ok(())
    }
}

struct Differentiate<'a> {
    chunk: &'a Chunk,
    derivatives: &'a [f64],
}

impl InplaceOp1 for Differentiate<'_> {
    fn name(&self) -> &'static str {
        "differentiate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (values, vocab) = rows_of(storage, layout)?;
        let Chunk { targets, sums, smoothing, .. } = self.chunk;
        let rows = values.par_chunks_mut(vocab).zip(targets).zip(sums).zip(self.derivatives).with_min_len(16);
        rows.for_each(|(((logits, &target), sum), &derivative)| {
            differentiate_row(logits, *sum, target, derivative, *smoothing);
        });
        Ok(())
    }
}
