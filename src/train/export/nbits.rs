//! Weights of 4 or 8 bits in blocks, as `MatMulNBits` and `GatherBlockQuantized` read them.
//!
//! In: a weight [out, in]. Out: for each row its blocks, filled up with zeros at the end, and one scale a block. A number
//! is (q - 2^(bits-1)) * scale; two 4-bit numbers share a byte, the first in the low half. Called by `linear`.

use rayon::prelude::*;

use super::checkpoint::Weight;
use super::options::Blocks;

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
    fn zero(&self) -> f32 {
        (1 << (self.bits - 1)) as f32
    }

    /// Scale and bytes of one block.
    fn pack(&self, values: &[f32], bytes: &mut [u8]) -> f32 {
        let zero = self.zero();
        let largest =
            values.iter().copied().fold(0.0_f32, |best, value| if value.abs() > best.abs() { value } else { best });
        // The range is one longer on the negative side: the largest number goes there, whatever its sign.
        let scale = largest / -zero;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let number = |index: usize| {
            let value = values.get(index).copied().unwrap_or(0.0);
            ((value * inverse).round() + zero).clamp(0.0, 2.0 * zero - 1.0) as u8
        };
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = match self.bits {
                4 => number(2 * index) | (number(2 * index + 1) << 4),
                _ => number(index),
            };
        }
        scale
    }
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
    #[cfg(test)]
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
        let packed = PackedWeight::of(&weight(1, vec![-8.0, 7.0, 1.0, -1.0, 0.0]), blocks);
        // -8 is the largest: scale 1, numbers 0, 15, 9, 7, then zeros (8) to the end of the block.
        assert_eq!(packed.scales.values, [1.0]);
        assert_eq!(packed.bytes, [0xF0, 0x79, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88]);
        let positive = PackedWeight::of(&weight(1, vec![4.0, -3.5]), blocks);
        assert_eq!((positive.scales.values[0], positive.bytes[0]), (-0.5, 0xF0));
        let nothing = PackedWeight::of(&weight(1, vec![0.0; 16]), blocks);
        assert_eq!((nothing.scales.values[0], nothing.bytes[0]), (0.0, 0x88));
    }

    proptest! {
        #[test]
        fn no_number_is_further_off_than_a_step(
            values in prop::collection::vec(-3.0_f32..3.0, 3 * 21),
            bits in prop::sample::select(vec![4_usize, 8]),
        ) {
            let blocks = Blocks { bits, block: 16, accuracy_level: 1 };
            let packed = PackedWeight::of(&weight(3, values.clone()), blocks);
            let back = packed.dequantised(blocks, 21);
            prop_assert_eq!(packed.bytes.len(), 3 * 2 * blocks.bytes());
            for (index, (found, wanted)) in back.values.iter().zip(&values).enumerate() {
                let step = packed.scales.values[index / 21 * 2 + index % 21 / 16].abs();
                // Half a step of rounding; a whole one where the positive end is cut off.
                prop_assert!((found - wanted).abs() <= step * 1.001, "{} {} {}", found, wanted, step);
            }
        }
    }
}
