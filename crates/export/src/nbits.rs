//! Weights of 4 or 8 bits in blocks, as `MatMulNBits` and `GatherBlockQuantized` read them.
//!
//! In: a weight [out, in]. Out: for each row its blocks, filled up with zeros at the end, and one scale a block. A number
//! is (q - 2^(bits-1)) * scale; two 4-bit numbers share a byte, the first in the low half. Called by `linear`.

use rayon::prelude::*;

use super::checkpoint::Weight;
use super::options::Blocks;

/// Shares of the largest value that the range is made to reach; what lies beyond is cut off.
const SHARES: [f32; 8] = [0.6, 0.68, 0.76, 0.84, 0.9, 0.95, 1.0, 1.06];

/// 1.5 * 2^23: adding it leaves no room for fractions, so that the sum is rounded; far faster than `round`.
const ROUNDER: f32 = 12_582_912.0;

/// A quantised weight.
pub struct PackedWeight {
    /// [out, blocks, bytes of a block].
    pub bytes: Vec<u8>,
    /// [out, blocks].
    pub scales: Weight,
    /// Numbers before padding, scales not counted.
    pub parameters: u64,
}

impl Blocks {
    /// Blocks of a row.
    pub fn of_row(&self, width: usize) -> usize {
        width.div_ceil(self.block)
    }

    /// Bytes of a block.
    pub fn bytes(&self) -> usize {
        self.block * self.bits / 8
    }

    /// What stands for zero.
    pub fn zero(&self) -> f32 {
        (1 << (self.bits - 1)) as f32
    }

    /// Scale and bytes of one block.
    fn pack(&self, values: &[f32], bytes: &mut [u8]) -> f32 {
        let scale = self.best_scale(values);
        let inverse = reciprocal(scale);
        let number =
            |index: usize| (self.number(values.get(index).copied().unwrap_or(0.0), inverse) + self.zero()) as u8;
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = match self.bits {
                4 => number(2 * index) | (number(2 * index + 1) << 4),
                _ => number(index),
            };
        }
        scale
    }

    /// The number nearest to a value, counted from zero.
    fn number(&self, value: f32, inverse: f32) -> f32 {
        ((value * inverse).clamp(-self.zero(), self.zero() - 1.0) + ROUNDER) - ROUNDER
    }

    /// The scale with the smallest squared error among some that cut off more or less of the largest value. The range is
    /// one longer on the negative side, so both signs are tried: either end may be the one that is cut off.
    fn best_scale(&self, values: &[f32]) -> f32 {
        let largest = values.iter().copied().fold(0.0_f32, |best, value| best.max(value.abs()));
        let mut best = (f32::INFINITY, 0.0);
        for share in SHARES {
            for end in [largest, -largest] {
                let scale = self.fitted(values, share * end / self.zero());
                let inverse = reciprocal(scale);
                let error = |value: &f32| (self.number(*value, inverse) * scale - value).powi(2);
                let error: f32 = values.iter().map(error).sum();
                if error < best.0 {
                    best = (error, scale);
                }
            }
        }
        best.1
    }

    /// The scale that fits best when every value keeps the number that `scale` gives it (least squares).
    fn fitted(&self, values: &[f32], scale: f32) -> f32 {
        let inverse = reciprocal(scale);
        let (mut product, mut square) = (0.0_f32, 0.0_f32);
        for &value in values {
            let number = self.number(value, inverse);
            product += number * value;
            square += number * number;
        }
        if square == 0.0 { scale } else { product / square }
    }
}

/// 1 / scale; 0 for a block of zeros.
fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

impl PackedWeight {
    /// Quantises a matrix.
    pub fn of(weight: &Weight, blocks: Blocks) -> Self {
        let width = weight.shape.last().copied().unwrap_or(1).max(1);
        let rows = weight.values.len() / width;
        let row_blocks = blocks.of_row(width);
        let mut bytes = vec![0_u8; rows * row_blocks * blocks.bytes()];
        let mut scales = vec![0.0_f32; rows * row_blocks];
        bytes
            .par_chunks_mut(row_blocks * blocks.bytes())
            .zip(scales.par_chunks_mut(row_blocks))
            .zip(weight.values.par_chunks(width))
            .for_each(|((row_bytes, row_scales), values)| {
                let packed = row_bytes.chunks_mut(blocks.bytes()).zip(values.chunks(blocks.block));
                for (scale, (block_bytes, block)) in row_scales.iter_mut().zip(packed) {
                    *scale = blocks.pack(block, block_bytes);
                }
            });
        let scales = Weight { shape: vec![rows, row_blocks], values: scales };
        Self { bytes, scales, parameters: weight.values.len() as u64 }
    }

    /// The numbers that the bytes stand for, [out, width].
    pub fn dequantised(&self, blocks: Blocks, width: usize) -> Weight {
        let row_blocks = blocks.of_row(width);
        let numbers: Vec<u8> = match blocks.bits {
            4 => self.bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
            _ => self.bytes.clone(),
        };
        let rows = self.scales.values.len() / row_blocks;
        let values = (0..rows)
            .flat_map(|row| (0..width).map(move |column| (row, column)))
            .map(|(row, column)| {
                let number = numbers[row * row_blocks * blocks.block + column];
                (f32::from(number) - blocks.zero()) * self.scales.values[row * row_blocks + column / blocks.block]
            })
            .collect();
        Weight { shape: vec![rows, width], values }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weight(rows: usize, values: Vec<f32>) -> Weight {
        Weight { shape: vec![rows, values.len() / rows], values }
    }

    #[test]
    fn the_bytes_are_those_of_the_operator() {
        let blocks = Blocks { bits: 4, block: 16, accuracy_level: 1 };
        let whole: Vec<f32> = (-8_i8..8).map(f32::from).collect();
        let packed = PackedWeight::of(&weight(1, whole.clone()), blocks);
        // These need no rounding: scale 1, numbers 0 to 15, the first of each pair in the low half.
        assert_eq!((packed.scales.values[0], packed.bytes[0], packed.bytes[7]), (1.0, 0x10, 0xFE));
        let turned = PackedWeight::of(&weight(1, whole.iter().map(|value| -value / 2.0).collect()), blocks);
        assert_eq!((turned.scales.values[0], turned.bytes[0], turned.bytes[7]), (-0.5, 0x10, 0xFE));
        let short = PackedWeight::of(&weight(1, vec![-8.0, 7.0, 1.0]), blocks);
        assert_eq!(short.bytes, [0xF0, 0x89, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88], "zeros to the end of the block");
        let nothing = PackedWeight::of(&weight(1, vec![0.0; 16]), blocks);
        assert_eq!((nothing.scales.values[0], nothing.bytes[0]), (0.0, 0x88));
    }

    /// What is usually done: the largest value gets the end of the range.
    fn plain_error(values: &[f32], zero: f32) -> f32 {
        let largest =
            values.iter().copied().fold(0.0_f32, |best, value| if value.abs() > best.abs() { value } else { best });
        let scale = largest / -zero;
        let number = |value: f32| (value * reciprocal(scale)).round().clamp(-zero, zero - 1.0);
        values.iter().map(|&value| (number(value) * scale - value).powi(2)).sum()
    }

    proptest! {
        #[test]
        fn no_block_is_worse_than_with_the_plain_scale(
            values in prop::collection::vec(-3.0_f32..3.0, 3 * 21),
            bits in prop::sample::select(vec![4_usize, 8]),
        ) {
            let blocks = Blocks { bits, block: 16, accuracy_level: 1 };
            let packed = PackedWeight::of(&weight(3, values.clone()), blocks);
            let back = packed.dequantised(blocks, 21);
            prop_assert_eq!(packed.bytes.len(), 3 * 2 * blocks.bytes());
            for (found, wanted) in back.values.chunks(21).zip(values.chunks(21)) {
                for (found, wanted) in found.chunks(16).zip(wanted.chunks(16)) {
                    let error: f32 = found.iter().zip(wanted).map(|(a, b)| (a - b).powi(2)).sum();
                    let plain = plain_error(wanted, blocks.zero());
                    prop_assert!(error <= plain * 1.0001 + 1e-9, "{} {}", error, plain);
                }
            }
        }
    }
}
