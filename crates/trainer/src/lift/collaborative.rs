//! Vectors of items from what people do after one another, without any text: the usual rival of vectors out of a language model.
//!
//! In: a dataset whose users no ranker sees, or a log up to the ranker's first day. Out: a vector an item: the rows of the co-occurrence matrix, projected on its strongest
//! directions (truncated SVD by subspace iteration: Halko, Martinsson and Tropp 2011, algorithm 4.4; the directions are found up to a
//! rotation, which no cosine sees). Called by `stages`.

use crate::data::Dataset;
use crate::nn::{FileError, TensorFile};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::path::Path;

/// Items further apart in a history do not count as seen together.
const WINDOW: usize = 10;
/// What an item before another counts, beside one behind it.
const BACKWARD: f64 = 0.6;
/// Rounds of the iteration.
const ROUNDS: usize = 12;
/// Newest items that make the vector of a user.
const NEWEST: usize = 20;
const FILE: &str = "item_vectors.safetensors";

/// Rows of a sparse matrix.
type Rows = Vec<Vec<(usize, f64)>>;

/// A vector an item of a catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemVectors {
    /// Values of a vector.
    pub dim: usize,
    /// [items, dim]; zeros for an item that nobody was seen with.
    values: Vec<f32>,
}

impl ItemVectors {
    /// Mean of the newest items, norm 1; `None` where nothing is known of them. `items` oldest first.
    pub fn user(&self, items: &[usize]) -> Option<Vec<f32>> {
        let mut sum = vec![0.0; self.dim];
        for &item in items.iter().rev().take(NEWEST) {
            let of = &self.values[item * self.dim..][..self.dim];
            sum.iter_mut().zip(of).for_each(|(sum, value)| *sum += value);
        }
        let norm = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
        (norm > 0.0).then(|| sum.into_iter().map(|value| value / norm).collect())
    }

    /// Writes a folder.
    pub fn write(&self, folder: &Path) -> Result<(), FileError> {
        let shape = vec![self.values.len() / self.dim, self.dim];
        let tensors = vec![("vectors".to_string(), shape, self.values.clone())];
        TensorFile { tensors, ..TensorFile::default() }.write(&folder.join(FILE))
    }

    /// Reads a folder, for a catalogue of so many items.
    pub fn read(folder: &Path, items: usize) -> Result<Self, FileError> {
        let path = folder.join(FILE);
        match TensorFile::read(&path)?.tensors.into_iter().next() {
            Some((_, shape, values)) if shape.len() == 2 && shape[0] == items => Ok(Self { dim: shape[1], values }),
            _ => Err(FileError::content(&path, format!("does not hold a vector for each of {items} items"))),
        }
    }
}

/// Of all histories of a dataset.
pub fn item_vectors(dataset: &Dataset, dim: usize, seed: u64) -> ItemVectors {
    let rows = cooccurrences(dataset);
    let count = rows.len();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut basis: Vec<Vec<f64>> =
        (0..dim).map(|_| (0..count).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
    orthonormalise(&mut basis);
    for _ in 0..ROUNDS {
        basis.iter_mut().for_each(|column| *column = transposed_times(&rows, &times(&rows, column)));
        orthonormalise(&mut basis);
    }
    let mut values = vec![0.0; count * dim];
    for (place, column) in basis.iter().enumerate() {
        for (item, value) in times(&rows, column).into_iter().enumerate() {
            values[item * dim + place] = value as f32;
        }
    }
    ItemVectors { dim, values }
}

/// Of a before b at distance d: 1/√d for (a, b), a share of it for (b, a); each divided by the roots of how often both occur.
fn cooccurrences(dataset: &Dataset) -> Rows {
    let mut often = vec![0usize; dataset.items.len()];
    let mut all: Vec<HashMap<usize, f64>> = vec![HashMap::new(); dataset.items.len()];
    for user in &dataset.users {
        let items: Vec<usize> = user.engagements.iter().filter_map(|behaviour| behaviour.item).collect();
        items.iter().for_each(|&item| often[item] += 1);
        for (place, &before) in items.iter().enumerate() {
            for (distance, &behind) in items[place + 1..].iter().take(WINDOW).enumerate() {
                let weight = 1.0 / ((distance + 1) as f64).sqrt();
                *all[before].entry(behind).or_default() += weight;
                *all[behind].entry(before).or_default() += BACKWARD * weight;
            }
        }
    }
    let scaled = |(item, row): (usize, HashMap<usize, f64>)| {
        let mut row: Vec<(usize, f64)> =
            row.into_iter().map(|(other, sum)| (other, sum / ((often[item] * often[other]) as f64).sqrt())).collect();
        // The order of additions decides the last digits.
        row.sort_by_key(|(other, _)| *other);
        row
    };
    all.into_iter().enumerate().map(scaled).collect()
}

fn times(rows: &Rows, column: &[f64]) -> Vec<f64> {
    rows.iter().map(|row| row.iter().map(|(place, value)| value * column[*place]).sum()).collect()
}

fn transposed_times(rows: &Rows, column: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; column.len()];
    for (row, factor) in rows.iter().zip(column) {
        row.iter().for_each(|(place, value)| out[*place] += value * factor);
    }
    out
}

/// Gram and Schmidt, each column twice; a column that the others span becomes zero.
fn orthonormalise(basis: &mut [Vec<f64>]) {
    for place in 0..basis.len() {
        let (done, rest) = basis.split_at_mut(place);
        let column = &mut rest[0];
        let length = |column: &[f64]| column.iter().map(|value| value * value).sum::<f64>().sqrt();
        let before = length(column);
        for other in done.iter().chain(done.iter()) {
            let share: f64 = other.iter().zip(column.iter()).map(|(one, value)| one * value).sum();
            column.iter_mut().zip(other).for_each(|(value, one)| *value -= share * one);
        }
        let after = length(column);
        let scale = if after > 1e-10 * before { 1.0 / after } else { 0.0 };
        column.iter_mut().for_each(|value| *value *= scale);
    }
}
