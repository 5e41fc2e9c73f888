//! Sample → rotate → k-means in each slot → codebook.

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::kmeans::{KMeans, fit};
use super::{CodebookError, CodebookHealth, CodebookSettings, measure_health};
use taiji::quantize::{PqCodebook, QuantizeError, random_rotation};

/// Trains a codebook on `vectors` (all of one length) and measures its health on all of them. Same input, same bits.
pub fn train_codebook(
    vectors: &[Vec<f32>],
    settings: &CodebookSettings,
) -> Result<(PqCodebook, CodebookHealth), CodebookError> {
    let Some(first) = vectors.first().filter(|_| vectors.len() >= settings.k) else {
        return Err(CodebookError::TooFew { found: vectors.len(), k: settings.k });
    };
    let dim = first.len();
    let rotation = settings.rotate.then(|| random_rotation(dim, settings.seed));
    // A codebook of zeros, to check the shape and every vector by the rules of serving, and to rotate.
    let blank = PqCodebook::new(settings.m, settings.k, dim, vec![0.0; settings.k * dim], rotation.clone())?;
    let chosen = sample(vectors.len(), settings);
    let rows: Vec<Vec<f32>> = chosen
        .par_iter()
        .map(|&row| blank.rotated(&vectors[row]).map_err(|source| CodebookError::Vector { row, source }))
        .collect::<Result<_, _>>()?;
    let width = dim / settings.m;
    let mut centroids = Vec::with_capacity(settings.k * dim);
    for slot in 0..settings.m {
        let points: Vec<f32> = rows.iter().flat_map(|row| &row[slot * width..][..width]).copied().collect();
        let seed = settings.seed.wrapping_mul(1_000_003).wrapping_add(slot as u64);
        centroids.extend(fit(&points, width, &KMeans { k: settings.k, iterations: settings.iterations, seed }));
    }
    let codebook = PqCodebook::new(settings.m, settings.k, dim, centroids, rotation)?;
    let health = measure_health(&codebook, vectors).map_err(|(row, source)| CodebookError::Vector { row, source })?;
    Ok((codebook, health))
}

/// Row numbers to train on, rising.
fn sample(rows: usize, settings: &CodebookSettings) -> Vec<usize> {
    let wanted = settings.sample.max(settings.k);
    if settings.sample == 0 || wanted >= rows {
        return (0..rows).collect();
    }
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut chosen = index::sample(&mut random, rows, wanted).into_vec();
    chosen.sort_unstable();
    chosen
}

/// A vector's fault, with its row.
pub(super) type RowFault = (usize, QuantizeError);
