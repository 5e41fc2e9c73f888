//! Small parts that the rankers' nets are built of.
//!
//! In: tensors. Out: tensors. Called by `model` and its bodies.

use crate::nn::{Weight, tensor};
use candle_core::{D, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Embeddings begin between minus and plus this.
const SPREAD: f32 = 0.05;
/// Added to the mean square before a norm divides by its root.
pub(super) const EPSILON: f32 = 1e-6;

/// Draws weights; the same seed gives the same.
pub(super) struct Maker(ChaCha8Rng);

impl Maker {
    pub fn seeded(seed: u64) -> Self {
        Maker(ChaCha8Rng::seed_from_u64(seed))
    }

    fn uniform(&mut self, rows: usize, columns: usize, most: f32) -> Result<Weight> {
        let values = (0..rows * columns).map(|_| self.0.random_range(-most..most)).collect();
        Weight::new(&tensor(values, (rows, columns))?)
    }

    /// As a layer with so many inputs begins (He et al. 2015).
    pub fn matrix(&mut self, inputs: usize, outputs: usize, fan: usize) -> Result<Weight> {
        self.uniform(inputs, outputs, (6.0 / fan as f32).sqrt())
    }

    pub fn table(&mut self, rows: usize, width: usize) -> Result<Weight> {
        self.uniform(rows, width, SPREAD)
    }

    pub fn zeros(&mut self, count: usize) -> Result<Weight> {
        Weight::new(&tensor(vec![0.0; count], count)?)
    }

    /// What a norm multiplies by, at first 1.
    pub fn ones(&mut self, count: usize) -> Result<Weight> {
        Weight::new(&tensor(vec![1.0; count], count)?)
    }

    pub fn linear(&mut self, inputs: usize, outputs: usize) -> Result<Linear> {
        Ok(Linear { weight: self.matrix(inputs, outputs, inputs)?, bias: self.zeros(outputs)? })
    }
}

/// A matrix and what is added.
pub(super) struct Linear {
    weight: Weight,
    bias: Weight,
}

impl Linear {
    /// [rows, outputs] of [rows, inputs].
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }

    /// With names; matrices decay.
    pub fn named(&self, name: &str) -> [(String, &Weight, bool); 2] {
        [(format!("{name}.weight"), &self.weight, true), (format!("{name}.bias"), &self.bias, false)]
    }
}

/// Divided by the root of its mean square, row by row.
pub(super) fn rms(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPSILON))?.sqrt()?)
}

pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let most = x.detach().max_keepdim(D::Minus1)?;
    let powers = x.broadcast_sub(&most)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

/// log(1 + e^x), without overflow.
pub(super) fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}
