//! k-means with k-means++ start and repair of empty clusters. Deterministic: sums run over fixed pieces, in order.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use taiji::quantize::{columns_of, nearest};

/// Points per task; fixed, because it decides the order of summation.
const PIECE: usize = 2048;

/// What to fit.
pub(super) struct KMeans {
    pub(super) k: usize,
    pub(super) iterations: usize,
    pub(super) seed: u64,
}

/// Centroids `[k, width]` of points `[n, width]`, n ≥ k.
pub(super) fn fit(points: &[f32], width: usize, settings: &KMeans) -> Vec<f32> {
    let mut centroids = plus_plus(points, width, settings);
    let mut before = Vec::new();
    for _ in 0..settings.iterations {
        let found = assign(points, width, &centroids, settings.k);
        let moved = found.iter().map(|(code, _)| *code).ne(before.iter().copied());
        before = found.iter().map(|(code, _)| *code).collect();
        let (sums, counts) = cluster_sums(points, width, &before, settings.k);
        if !moved && counts.iter().all(|&count| count > 0) {
            break;
        }
        for (cluster, centroid) in centroids.chunks_exact_mut(width).enumerate().filter(|(c, _)| counts[*c] > 0) {
            let total = &sums[cluster * width..][..width];
            centroid.iter_mut().zip(total).for_each(|(value, sum)| *value = (sum / counts[cluster] as f64) as f32);
        }
        repair(points, width, &found, counts, &mut centroids);
    }
    centroids
}

/// The first centroid at random, each next with probability proportional to the squared distance to the nearest so far.
fn plus_plus(points: &[f32], width: usize, settings: &KMeans) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    let count = points.len() / width;
    let point = |index: usize| &points[index * width..][..width];
    let mut centroids = point(random.random_range(0..count)).to_vec();
    let mut distances = vec![f32::INFINITY; count];
    while centroids.len() < settings.k * width {
        let newest = &centroids[centroids.len() - width..];
        distances
            .par_iter_mut()
            .zip(points.par_chunks_exact(width))
            .with_min_len(PIECE)
            .for_each(|(distance, row)| *distance = distance.min(squared_distance(row, newest)));
        let total: f64 = distances.iter().map(|distance| f64::from(*distance)).sum();
        let chosen =
            if total > 0.0 { draw(&distances, random.random::<f64>() * total) } else { random.random_range(0..count) };
        centroids.extend_from_slice(point(chosen));
    }
    centroids
}

/// Index at which the running sum passes `target`.
fn draw(weights: &[f32], target: f64) -> usize {
    let mut sum = 0.0;
    let passed = weights.iter().position(|weight| {
        sum += f64::from(*weight);
        sum > target
    });
    passed.unwrap_or(weights.len() - 1)
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// Nearest centroid of each point, and the squared distance.
fn assign(points: &[f32], width: usize, centroids: &[f32], k: usize) -> Vec<(u32, f32)> {
    let columns = columns_of(centroids, k);
    points
        .par_chunks(PIECE * width)
        .flat_map_iter(|piece| {
            let mut distances = vec![0.0f32; k];
            let columns = &columns;
            piece.chunks_exact(width).map(move |row| {
                let code = nearest(row, columns, &mut distances);
                (code as u32, distances[code])
            })
        })
        .collect()
}

fn cluster_sums(points: &[f32], width: usize, codes: &[u32], k: usize) -> (Vec<f64>, Vec<usize>) {
    let (mut sums, mut counts) = (vec![0.0f64; k * width], vec![0usize; k]);
    for (row, &code) in points.chunks_exact(width).zip(codes) {
        counts[code as usize] += 1;
        let total = &mut sums[code as usize * width..][..width];
        total.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    (sums, counts)
}

/// Moves every empty centroid onto the farthest point of the cluster that is largest now, which halves that cluster.
fn repair(points: &[f32], width: usize, found: &[(u32, f32)], mut counts: Vec<usize>, centroids: &mut [f32]) {
    let mut taken = vec![false; found.len()];
    for empty in 0..counts.len() {
        if counts[empty] > 0 {
            continue;
        }
        let largest = (0..counts.len()).rev().max_by_key(|&cluster| counts[cluster]).unwrap_or(0);
        let members = found.iter().enumerate().filter(|(index, (code, _))| *code as usize == largest && !taken[*index]);
        let Some((farthest, _)) = members.rev().max_by(|a, b| a.1.1.total_cmp(&b.1.1)) else { return };
        taken[farthest] = true;
        centroids[empty * width..][..width].copy_from_slice(&points[farthest * width..][..width]);
        counts[empty] = counts[largest] / 2;
        counts[largest] -= counts[empty];
    }
}
