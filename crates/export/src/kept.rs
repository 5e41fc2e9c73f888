//! Blocks of a quantised model that a graph takes over as they are, without rounding again.
//!
//! In: `model.blocks.safetensors`, which `gguf` writes beside the weights: for a tensor NAME in blocks of 32 its numbers `NAME.q` as
//! `MatMulNBits` reads them, scales `NAME.d` and, where it has them, minimums `NAME.m`, all by row and block; `NAME.r` says that its
//! blocks are of a kind no operator reads, and it is to be rounded to 8 bits. Out: packed weights. A value is (q − 2^(bits−1))·d, or
//! with a minimum q·d + m. Called by `linear`.

use super::ExportError;
use super::checkpoint::{Checkpoint, Weight};
use super::nbits::PackedWeight;
use super::options::Blocks;

/// Name of the file.
pub const BLOCKS_FILE: &str = "model.blocks.safetensors";
/// Weights of a block.
pub const BLOCK: usize = 32;

/// A weight in the blocks of its file.
pub struct KeptWeight {
    /// Numbers and scales.
    pub packed: PackedWeight,
    /// What each block adds beside (q − 2^(bits−1))·d for every unit of its inputs' sum: m + 2^(bits−1)·d, [out, blocks].
    pub offsets: Option<Weight>,
}

/// Names in the blocks' file.
pub fn part(name: &str, kind: char) -> String {
    format!("{name}.{kind}")
}

/// How a tensor is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    bits: usize,
    /// Its blocks have minimums.
    pub is_shifted: bool,
    /// The blocks are the model's own; if not, it is to be rounded to 8 bits.
    pub is_exact: bool,
}

impl Kept {
    /// The blocks in a graph.
    pub fn blocks(self, accuracy_level: i64) -> Blocks {
        Blocks { bits: self.bits, block: BLOCK, accuracy_level, zero_points: false }
    }
}

impl Checkpoint {
    /// How a tensor is kept, if it is in blocks.
    pub fn kept(&self, name: &str) -> Option<Kept> {
        if self.shape_of(&part(name, 'r')).is_some() {
            return Some(Kept { bits: 8, is_shifted: false, is_exact: false });
        }
        let bits = match self.shape_of(&part(name, 'q'))? {
            [_, _, bytes] if *bytes == BLOCK => 8,
            [_, _, bytes] if *bytes == BLOCK / 2 => 4,
            _ => return None,
        };
        Some(Kept { bits, is_shifted: self.shape_of(&part(name, 'm')).is_some(), is_exact: true })
    }

    /// Reads a tensor's blocks, [out, in]; they must be the very values that the weights' file holds.
    pub fn read_kept(&mut self, name: &str, shape: [usize; 2], kept: Kept) -> Result<KeptWeight, ExportError> {
        let ([rows, width], blocks) = (shape, kept.blocks(0));
        let row_blocks = blocks.of_row(width);
        let bytes = self.read_bytes(&part(name, 'q'), &[rows, row_blocks, blocks.bytes()])?;
        let scales = self.read(&part(name, 'd'), &[rows, row_blocks])?;
        let minimums = match kept.is_shifted {
            true => Some(self.read(&part(name, 'm'), &[rows, row_blocks])?),
            false => None,
        };
        let values = self.read(name, &shape)?.values;
        let numbers = numbers(&bytes, blocks.bits);
        let zero = if minimums.is_some() { 0.0 } else { blocks.zero() };
        for (place, (&value, &number)) in values.iter().zip(&numbers).enumerate() {
            let block = place / BLOCK;
            let minimum = minimums.as_ref().map_or(0.0, |minimums| minimums.values[block]);
            let of_blocks = (f32::from(number) - zero) * scales.values[block] + minimum;
            if of_blocks != value {
                let message =
                    format!("is not what {BLOCKS_FILE} holds: remove that file if the weights were trained on");
                return Err(ExportError::Weight { path: self.folder.clone(), name: name.to_owned(), message });
            }
        }
        let offsets = minimums.map(|minimums| {
            let pairs = minimums.values.iter().zip(&scales.values);
            let values = pairs.map(|(minimum, scale)| minimum + blocks.zero() * scale).collect();
            Weight { shape: vec![rows, row_blocks], values }
        });
        let packed = PackedWeight { bytes, scales, zeros: None, parameters: values.len() as u64 };
        Ok(KeptWeight { packed, offsets })
    }
}

impl KeptWeight {
    /// Appends another weight's rows.
    pub fn stacked(self, other: Self) -> Self {
        let packed = PackedWeight {
            bytes: [self.packed.bytes, other.packed.bytes].concat(),
            scales: self.packed.scales.stacked(other.packed.scales),
            zeros: None,
            parameters: self.packed.parameters + other.packed.parameters,
        };
        let offsets = self.offsets.zip(other.offsets).map(|(first, second)| first.stacked(second));
        Self { packed, offsets }
    }
}

/// The numbers in order: two of 4 bits share a byte, the first in the low half.
fn numbers(bytes: &[u8], bits: usize) -> Vec<u8> {
    match bits {
        4 => bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
        _ => bytes.to_vec(),
    }
}
