//! Properties of codes, IDs, file and hash.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

fn codebook(m: usize, k: usize, width: usize, seed: u64, rotate: bool) -> PqCodebook {
    let dim = m * width;
    let noise = random_rotation((k * dim).isqrt() + 1, seed);
    let rotation = rotate.then(|| random_rotation(dim, seed + 1));
    PqCodebook::new(m, k, dim, noise[..k * dim].to_vec(), rotation).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn codes_are_the_nearest_centroids(m in 1usize..5, k in 1usize..40, width in 1usize..7, seed in 0u64..1000, rotate: bool) {
        let book = codebook(m, k, width, seed, rotate);
        let vector: Vec<f32> = random_rotation(m * width, seed + 7)[..m * width].to_vec();
        let codes = book.encode(&vector).unwrap();
        let rotated = book.rotated(&vector).unwrap();
        for (slot, &code) in codes.iter().enumerate() {
            let distance = |centroid: usize| -> f32 {
                let values = &book.centroids()[(slot * k + centroid) * width..][..width];
                values.iter().zip(&rotated[slot * width..]).map(|(c, v)| (v - c) * (v - c)).sum()
            };
            for other in 0..k {
                prop_assert!(distance(code as usize) <= distance(other) + 1e-6);
            }
        }
        let ids = book.sparse_ids(&codes).unwrap();
        for (slot, id) in ids.iter().enumerate() {
            prop_assert!((slot * k + 1..=(slot + 1) * k).contains(&(*id as usize)));
        }
        prop_assert!(ids.iter().all(|id| *id <= book.sparse_id_count()));
    }

    #[test]
    fn a_decoded_centroid_encodes_to_itself(k in 1usize..30, seed in 0u64..500, rotate: bool, pick in 0usize..30) {
        let book = codebook(3, k, 4, seed, rotate);
        let codes = vec![(pick % k) as u16; 3];
        prop_assert_eq!(book.encode(&book.decode(&codes).unwrap()).unwrap(), codes);
    }

    #[test]
    fn file_and_hash_survive_a_round_trip(seed in 0u64..500, rotate: bool) {
        let book = codebook(2, 5, 3, seed, rotate);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codebook.safetensors");
        book.save(&path).unwrap();
        let loaded = PqCodebook::load(&path).unwrap();
        prop_assert_eq!(&loaded, &book);
        prop_assert_eq!(loaded.content_hash(), book.content_hash());
        let other = codebook(2, 5, 3, seed + 1, rotate);
        prop_assert_ne!(other.content_hash(), book.content_hash());
    }
}

#[test]
fn hash_is_fixed_and_ties_go_to_the_lowest_code() {
    let book = PqCodebook::new(2, 3, 2, vec![1.0, 1.0, 0.0, 5.0, 5.0, 5.0], None).unwrap();
    assert_eq!(book.encode(&[1.0, 5.0]).unwrap(), [0, 0]);
    assert_eq!(book.encode(&[0.5, 9.0]).unwrap(), [0, 0]);
    assert_eq!(book.sparse_ids(&[2, 0]).unwrap(), [3, 4]);
    // A change of this value changes every space in use.
    assert_eq!(book.content_hash(), "7f898c95471602b8602055ee4b28ad544a0a93badf2a9960114ef400ca62257c");
}

#[test]
fn wrong_input_is_refused_by_name() {
    let book = codebook(2, 3, 2, 1, false);
    assert!(matches!(book.encode(&[0.0; 3]), Err(QuantizeError::Dimension { expected: 4, found: 3 })));
    assert!(matches!(book.encode(&[0.0, f32::NAN, 0.0, 0.0]), Err(QuantizeError::NotFinite { index: 1, .. })));
    assert!(matches!(book.sparse_ids(&[0, 3]), Err(QuantizeError::Code { slot: 1, code: 3, k: 3 })));
    assert!(matches!(book.sparse_ids(&[0]), Err(QuantizeError::CodeCount { .. })));
    assert!(PqCodebook::new(3, 2, 4, vec![0.0; 8], None).is_err());
    assert!(PqCodebook::new(2, 2, 4, vec![f32::NAN; 8], None).is_err());
    let absent = PqCodebook::load(std::path::Path::new("absent.safetensors")).unwrap_err().to_string();
    assert!(absent.contains("absent.safetensors"), "{absent}");
}

#[test]
fn rotation_is_orthonormal() {
    let rotation = random_rotation(33, 4);
    for a in rotation.chunks_exact(33).enumerate() {
        for b in rotation.chunks_exact(33).enumerate() {
            let dot: f32 = a.1.iter().zip(b.1).map(|(x, y)| x * y).sum();
            assert!((dot - if a.0 == b.0 { 1.0 } else { 0.0 }).abs() < 1e-5);
        }
    }
}
