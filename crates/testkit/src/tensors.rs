//! Reference tensors, as the fixtures keep them.

use safetensors::SafeTensors;

/// A tensor of 64-bit integers.
pub fn integers(tensors: &SafeTensors, name: &str) -> Vec<i64> {
    tensors.tensor(name).unwrap().data().as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
}

/// A tensor of 32-bit floats.
pub fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    tensors.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// The largest distance of two values in one place.
pub fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
