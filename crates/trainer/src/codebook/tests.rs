//! k-means, codebook and health on made-up vectors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::kmeans::{KMeans, fit};
use super::*;

/// Unit vectors like a sentence encoder's: clusters, and most variance in the first dimensions.
fn vectors(count: usize, dim: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let centres: Vec<Vec<f32>> = (0..120).map(|_| (0..dim).map(|_| random.random::<f32>() - 0.5).collect()).collect();
    (0..count)
        .map(|_| {
            let centre = &centres[random.random_range(0..centres.len())];
            let value =
                |(place, c): (usize, &f32)| (c + 0.5 * (random.random::<f32>() - 0.5)) / (1.0 + place as f32 * 0.3);
            let raw: Vec<f32> = centre.iter().enumerate().map(value).collect();
            let length = raw.iter().map(|v| v * v).sum::<f32>().sqrt();
            raw.into_iter().map(|v| v / length).collect()
        })
        .collect()
}

#[test]
fn codebook_is_healthy_and_reproducible_whatever_the_threads() {
    let data = vectors(3000, 64, 1);
    let settings = CodebookSettings { iterations: 12, ..CodebookSettings::default() };
    let (codebook, health) = train_codebook(&data, &settings).unwrap();
    let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let (again, same) = single.install(|| train_codebook(&data, &settings)).unwrap();
    assert_eq!(codebook.content_hash(), again.content_hash());
    assert_eq!(health, same);
    assert!(health.least_entropy_bits() > 6.0, "{:?}", health.entropy_bits);
    assert_eq!(health.dead_codes, [0; 8]);
    assert!(health.relative_mse < 0.35, "{}", health.relative_mse);
    assert_eq!((codebook.m(), codebook.k(), codebook.dim()), (8, 256, 64));
}

#[test]
fn centroids_find_separate_groups_and_none_stays_empty() {
    let points: Vec<f32> =
        (0..400).flat_map(|i| [(i % 4) as f32 * 10.0 + (i / 4) as f32 * 1e-3, (i % 4) as f32]).collect();
    let centroids = fit(&points, 2, &KMeans { k: 4, iterations: 20, seed: 3 });
    let mut rounded: Vec<i32> = centroids.chunks(2).map(|c| c[1].round() as i32).collect();
    rounded.sort_unstable();
    assert_eq!(rounded, [0, 1, 2, 3]);
    // More centroids than distinct points: the surplus has nowhere to go, and nothing breaks.
    let few = fit(&[1.0, 1.0, 1.0, 2.0, 2.0], 1, &KMeans { k: 4, iterations: 5, seed: 1 });
    assert!(few.iter().all(|value| (1.0..=2.0).contains(value)));
}

#[test]
fn bad_input_is_refused_by_row() {
    let mut data = vectors(40, 16, 2);
    let settings = CodebookSettings { k: 32, ..CodebookSettings::default() };
    assert!(matches!(train_codebook(&data[..10], &settings), Err(CodebookError::TooFew { found: 10, k: 32 })));
    data[7][3] = f32::NAN;
    assert!(matches!(train_codebook(&data, &settings), Err(CodebookError::Vector { row: 7, .. })));
    data[7] = vec![0.0; 5];
    assert!(matches!(train_codebook(&data, &settings), Err(CodebookError::Vector { row: 7, .. })));
    let odd = CodebookSettings { m: 7, ..settings };
    assert!(train_codebook(&vectors(40, 16, 2), &odd).unwrap_err().to_string().contains("slots"));
}

#[test]
fn a_prefix_says_a_part_of_space_that_the_next_level_divides() {
    let data = vectors(2000, 16, 4);
    let settings = PrefixSettings { levels: 3, k: 8, iterations: 10, seed: 3 };
    let codebook = PrefixCodebook::train(&data, &settings).unwrap();
    let ids: Vec<Vec<u32>> = data.iter().map(|vector| codebook.encode(vector).unwrap()).collect();
    assert!(ids.iter().all(|ids| ids[0] < 8 && ids[1] / 8 == ids[0] && ids[2] / 8 == ids[1]));
    // Within an ID vectors lie closer together the longer the prefix is.
    let spread = |level: usize| {
        let mut groups: std::collections::BTreeMap<u32, Vec<usize>> = Default::default();
        ids.iter().enumerate().for_each(|(row, ids)| groups.entry(ids[level]).or_default().push(row));
        let of = |rows: &Vec<usize>| {
            let mean = |place: usize| rows.iter().map(|row| data[*row][place]).sum::<f32>() / rows.len() as f32;
            let centre: Vec<f32> = (0..16).map(mean).collect();
            let apart =
                |row: &usize| data[*row].iter().zip(&centre).map(|(one, mean)| (one - mean).powi(2)).sum::<f32>();
            rows.iter().map(apart).sum::<f32>()
        };
        groups.values().map(of).sum::<f32>()
    };
    assert!(spread(1) < 0.9 * spread(0) && spread(2) < 0.9 * spread(1), "{} {} {}", spread(0), spread(1), spread(2));

    let folder = tempfile::tempdir().unwrap();
    codebook.write(folder.path()).unwrap();
    assert_eq!(PrefixCodebook::read(folder.path()).unwrap(), codebook);
    assert_eq!(PrefixCodebook::train(&data, &settings).unwrap(), codebook);
    assert!(matches!(codebook.encode(&[0.0; 5]), Err(QuantizeError::Dimension { expected: 16, found: 5 })));
    assert!(matches!(PrefixCodebook::train(&data[..5], &settings), Err(CodebookError::TooFew { .. })));
    for (levels, k, part) in [(0, 8, "levels"), (2, 1, "k"), (3, 256, "more than")] {
        let refused = PrefixSettings { levels, k, ..settings.clone() }.check().unwrap_err();
        assert!(refused.contains(part), "{refused}");
    }
}
