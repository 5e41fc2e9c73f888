//! Gradients of a set of parameters: taken from candle's store, added up over batches or losses, measured.
//!
//! Called by whatever computes a loss. Several losses over one forward are several calls of `backward`, each collected into
//! its own [`Gradients`] and then combined by [`Gradients::mean`].

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use rayon::prelude::*;

use super::FitError;
use super::groups::ParameterSet;
use crate::nn::with_values;

/// Values summed by one task.
pub(super) const PIECE: usize = 16 * 1024;

/// One gradient for each trainable parameter of a set, in its order; contiguous.
#[derive(Debug, Clone)]
pub struct Gradients(pub(super) Vec<Tensor>);

impl Gradients {
    /// Takes the gradients of the set's trainable parameters; one that is missing is an error that names it.
    pub fn collect(set: &ParameterSet, store: &GradStore) -> Result<Self, FitError> {
        let take = |parameter: &crate::nn::Parameter| match store.get(&parameter.var) {
            Some(gradient) => Ok(gradient.contiguous()?),
            None => Err(FitError::MissingGradient(parameter.name.clone())),
        };
        Ok(Self(set.trainable().map(take).collect::<Result<_, FitError>>()?))
    }

    /// All values, one tensor after the other, in f64.
    pub fn values(&self) -> Result<Vec<f64>, FitError> {
        let mut all = Vec::new();
        for gradient in &self.0 {
            with_values(gradient, |values| all.extend(values.iter().map(|value| f64::from(*value))))?;
        }
        Ok(all)
    }

    /// Σ weight·gradient / Σ weight. One part alone is handed through, bit for bit.
    pub fn mean(parts: Vec<(f64, Self)>) -> Result<Option<Self>, FitError> {
        let total: f64 = parts.iter().map(|(weight, _)| weight).sum();
        if parts.len() < 2 {
            return Ok(parts.into_iter().next().map(|(_, gradients)| gradients));
        }
        let mut sum: Option<Vec<Tensor>> = None;
        for (weight, Self(tensors)) in parts {
            let scaled = tensors.iter().map(|tensor| tensor.affine(weight / total, 0.0));
            let scaled = scaled.collect::<Result<Vec<Tensor>, _>>()?;
            sum = Some(match sum {
                None => scaled,
                Some(before) => before.iter().zip(&scaled).map(|(a, b)| a.add(b)).collect::<Result<_, _>>()?,
            });
        }
        Ok(sum.map(Self))
    }

    /// Length over all tensors (L2); adds up in a fixed order.
    pub fn norm(&self) -> Result<f64, FitError> {
        let mut total = 0.0f64;
        for gradient in &self.0 {
            let pieces: Vec<f64> = with_values(gradient, |values| {
                values.par_chunks(PIECE).map(|piece| piece.iter().map(|v| f64::from(*v).powi(2)).sum()).collect()
            })?;
            total += pieces.iter().sum::<f64>();
        }
        Ok(total.sqrt())
    }
}
