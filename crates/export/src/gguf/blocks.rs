//! Kinds of numbers in a GGUF file, and how each becomes f32.
//!
//! In: bytes of whole blocks. Out: values. Called by `file` (sizes) and `weights`. Layouts as the ggml library defines them;
//! d, m and the like are f16, little-endian, and stand in front unless said otherwise.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// How a tensor's numbers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 weights: d, then 4 bits each; (q − 8)·d.
    Q4_0,
    /// 32 weights: d, m, then 4 bits each; q·d + m.
    Q4_1,
    /// 32 weights: d, then 8 bits each; q·d.
    Q8_0,
    /// 256 weights: d, m, 8 pairs of 6-bit scales and minima, then 4 bits each; q·(d·scale) − m·minimum.
    Q4K,
    /// 256 weights: 4 low bits each, 2 high bits each, 16 8-bit scales, d; (q − 32)·(d·scale).
    Q6K,
}

/// How blocks get into a graph, by 32 weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptKind {
    /// As they are.
    Exact {
        /// Bytes of the numbers.
        number_bytes: usize,
        /// Kind of the scales and minimums.
        parts: Dtype,
        /// There are minimums.
        has_minimums: bool,
    },
    /// No operator reads them: they are rounded to 8 bits.
    Rounded,
}

impl TensorType {
    /// Those that can be read, for messages.
    pub const KNOWN: &str = "F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K and Q6_K";

    /// The type of a number in the file.
    pub fn of(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            2 => Some(Self::Q4_0),
            3 => Some(Self::Q4_1),
            8 => Some(Self::Q8_0),
            12 => Some(Self::Q4K),
            14 => Some(Self::Q6K),
            30 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Name, as ggml has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Weights of a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q6K => (256, 210),
        }
    }

    /// Whether a graph takes the blocks over, and how; `None` = its numbers are floats.
    pub fn kept(self) -> Option<KeptKind> {
        let exact = |number_bytes, parts, has_minimums| Some(KeptKind::Exact { number_bytes, parts, has_minimums });
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Q4_0 => exact(16, Dtype::F16, false),
            Self::Q4_1 => exact(16, Dtype::F16, true),
            Self::Q8_0 => exact(32, Dtype::F16, false),
            Self::Q4K => exact(16, Dtype::F32, true),
            Self::Q6K => Some(KeptKind::Rounded),
        }
    }

    /// Such blocks as `kept` has them: all numbers, all scales, all minimums, by 32 weights. 4-bit numbers stand in order there, two
    /// a byte, the first low; here a byte holds numbers i and i + 16, or i and i + 32. 8-bit ones count from 128 there.
    pub fn split(self, bytes: &[u8]) -> [Vec<u8>; 3] {
        let head = if self == Self::Q4_1 { 4 } else { 2 };
        let [mut numbers, mut scales, mut minimums] = [const { Vec::new() }; 3];
        let pair = |pairs: &[u8], shift: u8| pairs[0] >> shift & 15 | (pairs[1] >> shift & 15) << 4;
        for block in bytes.chunks_exact(self.block().1) {
            if self == Self::Q4K {
                for (part, quants) in block[16..].chunks_exact(32).enumerate() {
                    for (part, shift) in [(2 * part, 0), (2 * part + 1, 4)] {
                        let (scale, minimum) = q4_k_part(block, part);
                        scales.extend(scale.to_le_bytes());
                        minimums.extend((-minimum).to_le_bytes());
                        numbers.extend(quants.chunks_exact(2).map(|pairs| pair(pairs, shift)));
                    }
                }
                continue;
            }
            scales.extend(&block[..2]);
            minimums.extend(&block[2..head]);
            let quants = &block[head..];
            match self {
                Self::Q8_0 => numbers.extend(quants.iter().map(|byte| byte ^ 0x80)),
                _ => {
                    numbers.extend(quants.chunks_exact(2).map(|pairs| pair(pairs, 0)));
                    numbers.extend(quants.chunks_exact(2).map(|pairs| pair(pairs, 4)));
                }
            }
        }
        [numbers, scales, minimums]
    }

    /// Appends the values of whole blocks.
    pub fn dequantise(self, bytes: &[u8], values: &mut Vec<f32>) {
        let (weights, size) = self.block();
        values.reserve(bytes.len() / size * weights);
        for block in bytes.chunks_exact(size) {
            match self {
                Self::F32 => values.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Self::F16 => values.push(half_at(block, 0)),
                Self::Bf16 => values.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Self::Q4_0 => {
                    let d = half_at(block, 0);
                    push_nibbles(&block[2..], values, |q| (f32::from(q) - 8.0) * d);
                }
                Self::Q4_1 => {
                    let (d, m) = (half_at(block, 0), half_at(block, 2));
                    push_nibbles(&block[4..], values, |q| f32::from(q) * d + m);
                }
                Self::Q8_0 => {
                    let d = half_at(block, 0);
                    values.extend(block[2..].iter().map(|&q| f32::from(q as i8) * d));
                }
                Self::Q4K => push_q4_k(block, values),
                Self::Q6K => push_q6_k(block, values),
            }
        }
    }
}

fn half_at(block: &[u8], place: usize) -> f32 {
    f16::from_le_bytes([block[place], block[place + 1]]).to_f32()
}

/// The low halves of all bytes, then the high ones.
fn push_nibbles(bytes: &[u8], values: &mut Vec<f32>, value: impl Fn(u8) -> f32) {
    values.extend(bytes.iter().map(|byte| value(byte & 15)));
    values.extend(bytes.iter().map(|byte| value(byte >> 4)));
}

fn push_q4_k(block: &[u8], values: &mut Vec<f32>) {
    for (pair, quants) in block[16..].chunks_exact(32).enumerate() {
        for (part, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (scale, minimum) = q4_k_part(block, part);
            values.extend(quants.iter().map(|byte| scale * f32::from(byte >> shift & 15) - minimum));
        }
    }
}

/// Scale and minimum of 32 of the weights.
fn q4_k_part(block: &[u8], part: usize) -> (f32, f32) {
    let (scale, minimum) = scale_and_minimum(&block[4..16], part);
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(minimum))
}

/// Eight pairs of six bits in twelve bytes: the first four plain, the others' high bits in what the first leave free.
fn scale_and_minimum(packed: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        return (packed[part] & 63, packed[part + 4] & 63);
    }
    let low = packed[part + 4];
    (low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4)
}

fn push_q6_k(block: &[u8], values: &mut Vec<f32>) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for place in 0..256 {
        // Two halves of 128 weights, each four runs of 32: runs 0 and 1 have the low nibbles, 2 and 3 the high ones.
        let (part, run, at) = (place / 128, place % 128 / 32, place % 32);
        let nibble = low[part * 64 + run % 2 * 32 + at] >> (run / 2 * 4) & 15;
        let top = high[part * 32 + at] >> (run * 2) & 3;
        let scale = d * f32::from(scales[place / 16] as i8);
        values.push(scale * (f32::from(nibble | top << 4) - 32.0));
    }
}
