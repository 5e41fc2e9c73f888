//! Scalar and row loops that the compiler vectorises: exp, sigmoid, dot product, column sums.
//!
//! Called by the kernels beside it. Every sum has a fixed order, so the same input gives the same bits on the same machine,
//! whatever the number of threads.

use rayon::prelude::*;

/// Independent partial sums per reduction: two AVX registers.
const LANES: usize = 16;
/// Rows summed by one task; fixed, because it decides the order of summation.
pub(super) const ROWS_PER_TASK: usize = 128;

/// 1.5 · 2^23: adding it rounds to an integer and leaves that integer in the low mantissa bits.
const ROUND_MAGIC: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e^x, relative error below 3e-7, without branches so that loops over it vectorise. Clamped to [-87, 88].
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND_MAGIC);
    let whole = shifted - ROUND_MAGIC;
    let rest = whole.mul_add(-LN2_LOW, whole.mul_add(-LN2_HIGH, clamped));
    // Taylor series of e^rest, |rest| <= ln(2)/2.
    let mut sum = 1.0 / 5040.0;
    sum = rest.mul_add(sum, 1.0 / 720.0);
    sum = rest.mul_add(sum, 1.0 / 120.0);
    sum = rest.mul_add(sum, 1.0 / 24.0);
    sum = rest.mul_add(sum, 1.0 / 6.0);
    sum = rest.mul_add(sum, 0.5);
    sum = rest.mul_add(sum, 1.0);
    sum = rest.mul_add(sum, 1.0);
    // 2^whole, made directly in the exponent bits.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    sum * power
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Σ aᵢ·bᵢ.
#[inline]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (a_block, b_block) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] = a_block[lane].mul_add(b_block[lane], lanes[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Largest value; -inf of an empty slice.
#[inline]
pub(super) fn max(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for lane in 0..LANES {
            // A plain comparison becomes one instruction; f32::max also has to care for NaN.
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces every value by e^(value - shift) and returns their sum.
#[inline]
pub(super) fn exp_in_place(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (blocks, rest) = values.as_chunks_mut::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            block[lane] = exp(block[lane] - shift);
            lanes[lane] += block[lane];
        }
    }
    let mut tail = 0.0;
    for value in rest {
        *value = exp(*value - shift);
        tail += *value;
    }
    lanes.iter().sum::<f32>() + tail
}

/// Column sums of a `[rows, width]` matrix, in a fixed order.
pub(super) fn column_sums(matrix: &[f32], width: usize) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = matrix
        .par_chunks(ROWS_PER_TASK * width)
        .map(|rows| {
            let mut sums = vec![0.0f32; width];
            for row in rows.chunks_exact(width) {
                add_in_place(&mut sums, row);
            }
            sums
        })
        .collect();
    sum_in_order(&partial, width)
}

/// Element-wise sum of equally long vectors, first to last.
pub(super) fn sum_in_order(parts: &[Vec<f32>], width: usize) -> Vec<f32> {
    let mut total = vec![0.0f32; width];
    for part in parts {
        add_in_place(&mut total, part);
    }
    total
}

/// target += source.
#[inline]
pub(super) fn add_in_place(target: &mut [f32], source: &[f32]) {
    for (t, s) in target.iter_mut().zip(source) {
        *t += s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library() {
        let mut worst = 0.0f64;
        for step in -86_000..88_000 {
            let x = step as f32 / 1000.0;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst < 3e-7, "relative error {worst}");
        assert!(exp(-1e9) < 1e-37);
    }

    #[test]
    fn reductions_match_the_plain_loop() {
        let values: Vec<f32> = (0..133).map(|i| ((i * 37 % 101) as f32 - 50.0) / 10.0).collect();
        let plain: f32 = values.iter().map(|v| v * v).sum();
        assert!((dot(&values, &values) - plain).abs() / plain < 1e-5);
        assert_eq!(max(&values), values.iter().copied().fold(f32::MIN, f32::max));
        let sums = column_sums(&values, 7);
        let first: f32 = values.iter().step_by(7).sum();
        assert!((sums[0] - first).abs() < 1e-3);
    }
}
