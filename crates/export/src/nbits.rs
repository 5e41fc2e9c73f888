//! Weights of 4 or 8 bits in blocks, as `MatMulNBits` and `GatherBlockQuantized` read them.
//!
//! In: a weight [out, in]. Out: for each row its blocks, filled up with zeros at the end, one scale a block and, if wanted, one
//! zero point. A number is (q - zero) * scale, zero = 2^(bits-1) without zero points; two 4-bit numbers share a byte, the first
//! in the low half, and so do two zero points of a row. Called by `linear` and `calibrate`.

use rayon::prelude::*;

use super::checkpoint::Weight;
use super::options::Blocks;

/// Shares of the values' range that the numbers are made to span; what lies beyond is cut off.
const SHARES: [f32; 12] = [0.6, 0.66, 0.72, 0.78, 0.83, 0.87, 0.91, 0.94, 0.97, 1.0, 1.03, 1.06];

/// 1.5 * 2^23: adding it leaves no room for fractions, so that the sum is rounded; far faster than `round`.
const ROUNDER: f32 = 12_582_912.0;

/// A quantised weight.
pub struct PackedWeight {
    /// [out, blocks, bytes of a block].
    pub bytes: Vec<u8>,
    /// [out, blocks].
    pub scales: Weight,
    /// [out, bytes of a row's zero points]; `None` = the middle of the range.
    pub zeros: Option<Vec<u8>>,
    /// Numbers before padding, scales not counted.
    pub parameters: u64,
}

/// What the numbers of a block stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Distance of two numbers' values.
    pub scale: f32,
    /// The number that stands for 0.
    pub zero: f32,
    /// The largest number.
    most: f32,
}

impl Grid {
    /// The number nearest to a value.
    pub fn number(&self, value: f32) -> f32 {
        self.nearest(value, reciprocal(self.scale))
    }

    /// What a number stands for.
    pub fn value(&self, number: f32) -> f32 {
        (number - self.zero) * self.scale
    }

    fn nearest(&self, value: f32, inverse: f32) -> f32 {
        ((value * inverse).clamp(-self.zero, self.most - self.zero) + ROUNDER) - ROUNDER + self.zero
    }

    /// With the scale that fits best when every value keeps its number (least squares).
    fn fitted(self, values: &[f32], importance: &[f32]) -> Self {
        let inverse = reciprocal(self.scale);
        let (mut product, mut square) = (0.0_f32, 0.0_f32);
        for (&value, &weight) in values.iter().zip(importance) {
            let number = self.nearest(value, inverse) - self.zero;
            product += weight * number * value;
            square += weight * number * number;
        }
        if square == 0.0 { self } else { Self { scale: product / square, ..self } }
    }

    /// Squared error.
    fn error(&self, values: &[f32], importance: &[f32]) -> f32 {
        let inverse = reciprocal(self.scale);
        let of = |(value, weight): (&f32, &f32)| weight * (self.value(self.nearest(*value, inverse)) - value).powi(2);
        values.iter().zip(importance).map(of).sum()
    }
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

    /// Bytes of a row's zero points.
    pub fn zero_bytes(&self, width: usize) -> usize {
        (self.of_row(width) * self.bits).div_ceil(8)
    }

    /// What stands for zero where there are no zero points.
    pub fn zero(&self) -> f32 {
        (1 << (self.bits - 1)) as f32
    }

    /// The largest number.
    fn most(&self) -> f32 {
        ((1 << self.bits) - 1) as f32
    }

    /// Fills bytes with numbers; two of 4 bits share one.
    fn pack(&self, number: impl Fn(usize) -> u8, bytes: &mut [u8]) {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = match self.bits {
                4 => number(2 * index) | (number(2 * index + 1) << 4),
                _ => number(index),
            };
        }
    }

    /// The number at a place.
    fn unpack(&self, bytes: &[u8], place: usize) -> u8 {
        match self.bits {
            4 => bytes[place / 2] >> (place % 2 * 4) & 15,
            _ => bytes[place],
        }
    }

    /// The grid with the smallest squared error for values that matter as `importance` says, among some that cut off more or
    /// less of the range.
    pub fn best_grid(&self, values: &[f32], importance: &[f32]) -> Grid {
        let mut best = (f32::INFINITY, Grid { scale: 0.0, zero: self.zero(), most: self.most() });
        let mut consider = |scale: f32, zero: f32| {
            let grid = Grid { scale, zero, most: self.most() }.fitted(values, importance);
            let error = grid.error(values, importance);
            if error < best.0 {
                best = (error, grid);
            }
        };
        let largest = values.iter().copied().fold(0.0_f32, |most, value| most.max(value.abs()));
        for share in SHARES {
            // The range is one longer on the negative side, so both signs are tried: either end may be the one that is cut off.
            for end in [largest, -largest] {
                consider(share * end / self.zero(), self.zero());
            }
        }
        if self.zero_points {
            let least = values.iter().copied().fold(0.0_f32, f32::min);
            let most = values.iter().copied().fold(0.0_f32, f32::max);
            for share in SHARES {
                let scale = share * (most - least) / self.most();
                // The middle of the range stays where it is, whatever is cut off.
                let middle = (self.most() - (most + least) * reciprocal(scale)) / 2.0;
                for shift in [-0.5, 0.5] {
                    consider(scale, (middle + shift).round().clamp(0.0, self.most()));
                }
            }
        }
        best.1
    }
}

/// 1 / scale; 0 for a block of zeros.
fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// A row of a weight, rounded.
pub struct RoundedRow {
    /// One a block.
    pub grids: Vec<Grid>,
    /// One a value.
    pub numbers: Vec<f32>,
}

impl RoundedRow {
    /// Every value by itself, on the best grid for those of its block; `importance` is that of each column.
    pub fn nearest(values: &[f32], blocks: Blocks, importance: &[f32]) -> Self {
        let pairs = values.chunks(blocks.block).zip(importance.chunks(blocks.block));
        let grids: Vec<Grid> = pairs.map(|(values, importance)| blocks.best_grid(values, importance)).collect();
        let on_grid = |(column, &value): (usize, &f32)| grids[column / blocks.block].number(value);
        let numbers = values.iter().enumerate().map(on_grid).collect();
        Self { grids, numbers }
    }
}

impl PackedWeight {
    /// Quantises a matrix, every value by itself.
    pub fn of(weight: &Weight, blocks: Blocks) -> Self {
        let alike = vec![1.0; weight.shape.last().copied().unwrap_or(1)];
        Self::by_row(weight, blocks, |values| RoundedRow::nearest(values, blocks, &alike))
    }

    /// Quantises a matrix as `round` does each of its rows.
    pub fn by_row(weight: &Weight, blocks: Blocks, round: impl Fn(&[f32]) -> RoundedRow + Sync) -> Self {
        let width = weight.shape.last().copied().unwrap_or(1).max(1);
        let rows = weight.values.len() / width;
        let (row_blocks, zero_bytes) = (blocks.of_row(width), blocks.zero_bytes(width));
        let mut bytes = vec![0_u8; rows * row_blocks * blocks.bytes()];
        let mut scales = vec![0.0_f32; rows * row_blocks];
        let mut zeros = vec![0_u8; rows * zero_bytes];
        bytes
            .par_chunks_mut(row_blocks * blocks.bytes())
            .zip(scales.par_chunks_mut(row_blocks))
            .zip(zeros.par_chunks_mut(zero_bytes))
            .zip(weight.values.par_chunks(width))
            .for_each(|(((row_bytes, row_scales), row_zeros), values)| {
                let rounded = round(values);
                let numbers = rounded.numbers.chunks(blocks.block);
                for ((block_bytes, numbers), grid) in
                    row_bytes.chunks_mut(blocks.bytes()).zip(numbers).zip(&rounded.grids)
                {
                    // What fills up the last block stands for 0.
                    let number = |place: usize| numbers.get(place).copied().unwrap_or(grid.zero) as u8;
                    blocks.pack(number, block_bytes);
                }
                blocks.pack(|place| rounded.grids.get(place).map_or(0.0, |grid| grid.zero) as u8, row_zeros);
                for (scale, grid) in row_scales.iter_mut().zip(&rounded.grids) {
                    *scale = grid.scale;
                }
            });
        let scales = Weight { shape: vec![rows, row_blocks], values: scales };
        Self { bytes, scales, zeros: blocks.zero_points.then_some(zeros), parameters: weight.values.len() as u64 }
    }

    /// The numbers that the bytes stand for, [out, width].
    pub fn dequantised(&self, blocks: Blocks, width: usize) -> Weight {
        let row_blocks = blocks.of_row(width);
        let rows = self.scales.values.len() / row_blocks.max(1);
        let mut values = Vec::with_capacity(rows * width);
        for row in 0..rows {
            let bytes = &self.bytes[row * row_blocks * blocks.bytes()..];
            let zeros = self.zeros.as_ref().map(|zeros| &zeros[row * blocks.zero_bytes(width)..]);
            values.extend((0..width).map(|column| {
                let block = column / blocks.block;
                let zero = zeros.map_or(blocks.zero(), |zeros| f32::from(blocks.unpack(zeros, block)));
                let number = f32::from(blocks.unpack(bytes, column));
                (number - zero) * self.scales.values[row * row_blocks + block]
            }));
        }
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
        let blocks = Blocks { bits: 4, block: 16, accuracy_level: 1, zero_points: false };
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

    #[test]
    fn zero_points_find_a_grid_that_does_not_lie_around_zero() {
        let blocks = Blocks { bits: 4, block: 16, accuracy_level: 1, zero_points: true };
        // Numbers 0 to 15 around 3, and around 12 in the second block.
        let values: Vec<f32> = (0..16_u8)
            .map(|number| (f32::from(number) - 3.0) * 0.5)
            .chain((0..16_u8).map(|number| (f32::from(number) - 12.0) * 0.25))
            .collect();
        let packed = PackedWeight::of(&weight(1, values.clone()), blocks);
        assert_eq!(packed.dequantised(blocks, 32).values, values);
        assert_eq!((packed.zeros.as_deref(), packed.bytes[0]), (Some([0xC3_u8].as_slice()), 0x10));
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
            zero_points in any::<bool>(),
        ) {
            let blocks = Blocks { bits, block: 16, accuracy_level: 1, zero_points };
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
