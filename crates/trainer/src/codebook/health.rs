//! How well a codebook uses its codes. Goes into the bundle's report; drift is watched with the same figures.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::training::RowFault;
use taiji::quantize::PqCodebook;

/// Use of the codes over a set of vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodebookHealth {
    /// Vectors measured.
    pub vectors: usize,
    /// Entropy of each slot's codes, bits; the most possible is log2(k).
    pub entropy_bits: Vec<f64>,
    /// Codes of each slot that no vector has.
    pub dead_codes: Vec<usize>,
    /// Squared error of the decoded vectors over their variance around the mean; 1 = the codes say nothing.
    pub relative_mse: f64,
    /// Part of the vectors whose codes nobody else has.
    pub unique: f64,
}

impl CodebookHealth {
    /// The worst slot's entropy, bits.
    pub fn least_entropy_bits(&self) -> f64 {
        self.entropy_bits.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Measures a codebook on vectors; a vector it cannot take is returned with its row.
pub fn measure_health(codebook: &PqCodebook, vectors: &[Vec<f32>]) -> Result<CodebookHealth, RowFault> {
    let coded: Vec<(Vec<u16>, f64)> = vectors
        .par_iter()
        .enumerate()
        .map(|(row, vector)| {
            let fault = |source| (row, source);
            let codes = codebook.encode(vector).map_err(fault)?;
            // A rotation keeps distances, so the error can be taken where the centroids are.
            let rotated = codebook.rotated(vector).map_err(fault)?;
            let width = codebook.dim() / codebook.m();
            let quantised = codes.iter().enumerate().flat_map(|(slot, &code)| {
                let start = (slot * codebook.k() + code as usize) * width;
                codebook.centroids()[start..start + width].iter().map(|value| f64::from(*value))
            });
            let error = squared_error(&rotated, quantised);
            Ok((codes, error))
        })
        .collect::<Result<_, RowFault>>()?;
    let mut counts = vec![vec![0usize; codebook.k()]; codebook.m()];
    let mut together = std::collections::BTreeMap::<&[u16], usize>::new();
    for (codes, _) in &coded {
        *together.entry(codes).or_default() += 1;
        codes.iter().zip(&mut counts).for_each(|(&code, slot)| slot[code as usize] += 1);
    }
    let error: f64 = coded.iter().map(|(_, error)| error).sum();
    let spread = variance(vectors, codebook.dim());
    Ok(CodebookHealth {
        vectors: vectors.len(),
        entropy_bits: counts.iter().map(|slot| entropy_bits(slot)).collect(),
        dead_codes: counts.iter().map(|slot| slot.iter().filter(|&&count| count == 0).count()).collect(),
        relative_mse: if spread > 0.0 { error / spread } else { 0.0 },
        unique: together.values().filter(|&&count| count == 1).count() as f64 / vectors.len().max(1) as f64,
    })
}

fn squared_error(vector: &[f32], other: impl Iterator<Item = f64>) -> f64 {
    vector.iter().zip(other).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum()
}

/// Σ over vectors of the squared distance to their mean.
fn variance(vectors: &[Vec<f32>], dim: usize) -> f64 {
    let mut mean = vec![0.0f64; dim];
    for vector in vectors {
        mean.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    mean.iter_mut().for_each(|sum| *sum /= vectors.len().max(1) as f64);
    vectors.iter().map(|vector| squared_error(vector, mean.iter().copied())).sum()
}

fn entropy_bits(counts: &[usize]) -> f64 {
    let total: usize = counts.iter().sum();
    let part = |&count: &usize| {
        let share = count as f64 / total as f64;
        -share * share.log2()
    };
    counts.iter().filter(|&&count| count > 0).map(part).sum()
}
