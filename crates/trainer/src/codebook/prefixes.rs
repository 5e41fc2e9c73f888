//! The rival of product codes: residual k-means, whose codes go from coarse to fine, and the prefixes of such a code as sparse IDs.
//!
//! In: rows of f32 vectors, [`PrefixSettings`]. Out: a [`PrefixCodebook`]. Called by `stages` and `lift`; nothing serves it. Level l
//! quantises what levels before it left over (residual quantisation: Chen, Guan and Wang 2010), and an ID of level l stands for the first l
//! codes together: it says a part of space, which the l-th code by itself does not.

use super::kmeans::{KMeans, fit};
use super::{CodebookError, QuantizeError};
use crate::nn::{FileError, TensorFile};
use serde::{Deserialize, Serialize};
use std::path::Path;
use taiji::quantize::{check_vector, columns_of, nearest};

const FILE: &str = "prefixes.safetensors";
/// Most IDs of the last level: each has a vector of its own in a ranker.
const MOST_IDS: usize = 1 << 16;

/// Settings of a stage of kind `prefix-codebook`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrefixSettings {
    /// Codes of a vector.
    pub levels: usize,
    /// Centroids of a level.
    pub k: usize,
    /// Most rounds of k-means a level.
    pub iterations: usize,
    /// Seed of the first centroids.
    pub seed: u64,
}

impl Default for PrefixSettings {
    fn default() -> Self {
        Self { levels: 3, k: 16, iterations: 25, seed: 7 }
    }
}

impl PrefixSettings {
    /// Refuses what has no IDs or too many, naming the setting.
    pub fn check(&self) -> Result<(), String> {
        if self.levels == 0 {
            return Err("levels: must be positive".into());
        }
        if self.k < 2 {
            return Err("k: must be at least 2".into());
        }
        let ids = (0..self.levels).try_fold(1usize, |ids, _| ids.checked_mul(self.k).filter(|ids| *ids <= MOST_IDS));
        match ids {
            Some(_) => Ok(()),
            None => Err(format!("levels: {} of {} make more than {MOST_IDS} IDs", self.levels, self.k)),
        }
    }
}

/// Centroids of all levels.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixCodebook {
    dim: usize,
    k: usize,
    /// [k, dim] a level.
    centroids: Vec<Vec<f32>>,
    /// The same, as the search reads it.
    columns: Vec<Vec<f32>>,
}

impl PrefixCodebook {
    fn new(dim: usize, k: usize, centroids: Vec<Vec<f32>>) -> Self {
        let columns = centroids.iter().map(|level| columns_of(level, k)).collect();
        Self { dim, k, centroids, columns }
    }

    /// Trains level after level. Same input, same bits.
    pub fn train(vectors: &[Vec<f32>], settings: &PrefixSettings) -> Result<Self, CodebookError> {
        let Some(first) = vectors.first().filter(|_| vectors.len() >= settings.k) else {
            return Err(CodebookError::TooFew { found: vectors.len(), k: settings.k });
        };
        let dim = first.len();
        for (row, vector) in vectors.iter().enumerate() {
            check_vector(vector, dim).map_err(|source| CodebookError::Vector { row, source })?;
        }
        let mut left: Vec<f32> = vectors.concat();
        let (mut centroids, mut distances) = (Vec::new(), vec![0.0; settings.k]);
        for level in 0..settings.levels {
            let seed = settings.seed.wrapping_mul(1_000_003).wrapping_add(level as u64);
            let found = fit(&left, dim, &KMeans { k: settings.k, iterations: settings.iterations, seed });
            let columns = columns_of(&found, settings.k);
            for row in left.chunks_exact_mut(dim) {
                subtract(row, &found, nearest(row, &columns, &mut distances));
            }
            centroids.push(found);
        }
        Ok(Self::new(dim, settings.k, centroids))
    }

    /// An ID a level: the number that the codes up to it make.
    pub fn encode(&self, vector: &[f32]) -> Result<Vec<u32>, QuantizeError> {
        check_vector(vector, self.dim)?;
        let (mut left, mut distances) = (vector.to_vec(), vec![0.0; self.k]);
        let mut id = 0;
        let levels = self.centroids.iter().zip(&self.columns);
        let ids = levels.map(|(centroids, columns)| {
            let code = nearest(&left, columns, &mut distances);
            subtract(&mut left, centroids, code);
            id = id * self.k as u32 + code as u32;
            id
        });
        Ok(ids.collect())
    }

    /// Writes its file into a folder.
    pub fn write(&self, folder: &Path) -> Result<(), FileError> {
        let level =
            |(level, values): (usize, &Vec<f32>)| (format!("{level:02}"), vec![self.k, self.dim], values.clone());
        let tensors = self.centroids.iter().enumerate().map(level).collect();
        TensorFile { tensors, ..TensorFile::default() }.write(&folder.join(FILE))
    }

    /// Reads a folder.
    pub fn read(folder: &Path) -> Result<Self, FileError> {
        let path = folder.join(FILE);
        let mut tensors = TensorFile::read(&path)?.tensors;
        tensors.sort_by(|left, right| left.0.cmp(&right.0));
        let shape = tensors.first().map(|(_, shape, _)| shape.clone()).unwrap_or_default();
        match shape[..] {
            [k, dim] if tensors.iter().all(|(_, other, _)| *other == shape) => {
                Ok(Self::new(dim, k, tensors.into_iter().map(|(.., values)| values).collect()))
            }
            _ => Err(FileError::content(&path, "does not hold levels of one shape: make the stage anew")),
        }
    }
}

fn subtract(row: &mut [f32], centroids: &[f32], code: usize) {
    let centroid = &centroids[code * row.len()..][..row.len()];
    row.iter_mut().zip(centroid).for_each(|(value, taken)| *value -= taken);
}
