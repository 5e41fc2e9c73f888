//! Blocks of a quantised model that a graph takes over as they are, without rounding again.
//!
//! In: `model.blocks.safetensors`, which `gguf` writes beside the weights: for a tensor NAME in blocks of 32 its numbers `NAME.q` as
//! `MatMulNBits` reads them, scales `NAME.d` and, where it has them, minimums `NAME.m`, all by row and block. Out: packed weights.
//! A value is (q − 2^(bits−1))·d, or with a minimum q·d + m. Called by `linear`.

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

impl Checkpoint {
    /// How the blocks of a weight are kept; `names` are the tensors it is stacked of. `None` if one is not, or not like the first.
    pub fn kept_blocks(&self, names: &[String], accuracy_level: i64) -> Option<Blocks> {
        let bits = |name: &String| {
            let shape = self.shape_of(&part(name, 'q'))?;
            match shape[..] {
                [_, _, bytes] if bytes == BLOCK => Some(8),
                [_, _, bytes] if bytes == BLOCK / 2 => Some(4),
                _ => None,
            }
        };
        let shifted = |name: &String| self.shape_of(&part(name, 'm')).is_some();
        let (first, rest) = names.split_first()?;
        let found = bits(first)?;
        let alike = rest.iter().all(|name| bits(name) == Some(found) && shifted(name) == shifted(first));
        alike.then_some(Blocks { bits: found, block: BLOCK, accuracy_level })
    }

    /// Whether the blocks of a tensor have minimums.
    pub fn is_shifted(&self, name: &str) -> bool {
        self.shape_of(&part(name, 'm')).is_some()
    }

    /// Reads a tensor's blocks, [out, in]; they must be the very values that the weights' file holds.
    pub fn read_kept(&mut self, name: &str, shape: [usize; 2], blocks: Blocks) -> Result<KeptWeight, ExportError> {
        let [rows, width] = shape;
        let row_blocks = blocks.of_row(width);
        let bytes = self.read_bytes(&part(name, 'q'), &[rows, row_blocks, blocks.bytes()])?;
        let scales = self.read(&part(name, 'd'), &[rows, row_blocks])?;
        let minimums = match self.is_shifted(name) {
            true => Some(self.read(&part(name, 'm'), &[rows, row_blocks])?),
            false => None,
        };
        let values = self.read(name, &shape)?.values;
        let numbers = numbers(&bytes, blocks.bits);
        let zero = if minimums.is_some() { 0.0 } else { blocks.zero() };
        for (place, (&value, &number)) in values.iter().zip(&numbers).enumerate() {
            let block = place / BLOCK;
            let minimum = minimums.as_ref().map_or(0.0, |minimums| minimums.values[block]);
            let kept = (f32::from(number) - zero) * scales.values[block] + minimum;
            if kept != value {
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
        Ok(KeptWeight { packed: PackedWeight { bytes, scales, parameters: values.len() as u64 }, offsets })
    }
}

impl KeptWeight {
    /// Appends another weight's rows.
    pub fn stacked(self, other: Self) -> Self {
        let packed = PackedWeight {
            bytes: [self.packed.bytes, other.packed.bytes].concat(),
            scales: self.packed.scales.stacked(other.packed.scales),
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
