//! Rounding of one weight given its inputs.
//!
//! In: sums of products of inputs (H = Σ x·xᵀ), a weight. Out: the weight in blocks. Called by `states`.
//!
//! The error of a row's outputs is eᵀ·H·e, e = what rounding changes. With H = R·Rᵀ, R upper triangular, that is |Rᵀ·e|², whose term j
//! holds e of the columns up to j only: going through the columns in order, each is rounded to what makes its own term
//! least. That is GPTQ's walk without its inverse matrix. Columns of large inputs go first; scales are chosen beforehand.

use crate::checkpoint::Weight;
use crate::nbits::{PackedWeight, RoundedRow};
use crate::options::Blocks;

/// Share of the mean square that is added to every column's, so that columns which the text hardly uses stay determined.
const DAMPING: f64 = 0.01;

/// What is known of a weight's inputs.
pub struct Inputs {
    /// Columns of the weight in the order of rounding.
    order: Vec<usize>,
    /// For each place in that order what the errors of the places before it count there, one row behind the other.
    carried: Vec<f32>,
    /// Mean square of each input, by column.
    squares: Vec<f32>,
}

impl Inputs {
    /// Of the sums of products, [n, n].
    pub fn of(mut products: Vec<f64>, width: usize) -> Self {
        let total: f64 = (0..width).map(|column| products[column * width + column]).sum();
        // Inputs that are all zero determine nothing: then every column counts alike.
        let extra = if total > 0.0 { DAMPING * total / width as f64 } else { 1.0 };
        for column in 0..width {
            products[column * width + column] += extra;
        }
        let sums = (0..width).map(|column| products[column * width + column]);
        let mean = sums.clone().sum::<f64>() / width as f64;
        let squares: Vec<f32> = sums.map(|sum| (sum / mean) as f32).collect();
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|&left, &right| squares[right].total_cmp(&squares[left]).then(left.cmp(&right)));
        let carried = carried(&products, &order);
        Self { order, carried, squares }
    }

    /// Rounds a weight [out, n].
    pub fn round(&self, weight: &Weight, blocks: Blocks) -> PackedWeight {
        PackedWeight::by_row(weight, blocks, |values| self.round_row(values, blocks))
    }

    fn round_row(&self, values: &[f32], blocks: Blocks) -> RoundedRow {
        let mut row = RoundedRow::nearest(values, blocks, &self.squares);
        let mut errors: Vec<f32> = Vec::with_capacity(values.len());
        let mut rest = self.carried.as_slice();
        for &column in &self.order {
            let (weights, later) = rest.split_at(errors.len());
            rest = later;
            let grid = row.grids[column / blocks.block];
            let number = grid.number(values[column] + dot(weights, &errors));
            row.numbers[column] = number;
            errors.push(values[column] - grid.value(number));
        }
        row
    }
}

/// Sum of products; sums of several lanes, added up last, so that it can be computed in vectors.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (left_parts, left_rest) = left.as_chunks::<LANES>();
    let (right_parts, right_rest) = right.as_chunks::<LANES>();
    for (left, right) in left_parts.iter().zip(right_parts) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

/// R[k][j] / R[j][j] for each place j and every k before it: Cholesky's factor from the last column to the first.
fn carried(products: &[f64], order: &[usize]) -> Vec<f32> {
    let width = order.len();
    // The usual factor L of the matrix turned around is R turned around.
    let turned = |row: usize, column: usize| products[order[width - 1 - row] * width + order[width - 1 - column]];
    let mut factor = vec![0.0_f64; width * width];
    for row in 0..width {
        let (before, rest) = factor.split_at_mut(row * width);
        let own = &mut rest[..width];
        for column in 0..row {
            let other = &before[column * width..][..=column];
            let known: f64 = own[..column].iter().zip(other).map(|(left, right)| left * right).sum();
            own[column] = (turned(row, column) - known) / other[column];
        }
        let known: f64 = own[..row].iter().map(|value| value * value).sum();
        // Damping keeps this far above rounding errors.
        own[row] = (turned(row, row) - known).max(f64::MIN_POSITIVE).sqrt();
    }
    let mut carried = Vec::with_capacity(width * (width - 1) / 2);
    for place in 0..width {
        let column = width - 1 - place;
        let diagonal = factor[column * width + column];
        carried.extend((0..place).map(|before| (factor[(width - 1 - before) * width + column] / diagonal) as f32));
    }
    carried
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 24;
    const BLOCKS: Blocks = Blocks { bits: 4, block: 16, accuracy_level: 1, zero_points: false };

    /// Sums of products of some inputs.
    fn products(inputs: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; WIDTH * WIDTH];
        for input in inputs.chunks(WIDTH) {
            for (row, left) in input.iter().enumerate() {
                for (column, right) in input.iter().enumerate() {
                    sums[row * WIDTH + column] += f64::from(left * right);
                }
            }
        }
        sums
    }

    fn output_error(sums: &[f64], wanted: &[f32], found: &[f32]) -> f64 {
        let errors: Vec<f64> = wanted.iter().zip(found).map(|(left, right)| f64::from(left - right)).collect();
        let of_row = |row: usize| -> f64 { (0..WIDTH).map(|column| sums[row * WIDTH + column] * errors[column]).sum() };
        (0..WIDTH).map(|row| errors[row] * of_row(row)).sum()
    }

    #[test]
    fn inputs_without_correlation_round_every_value_by_itself() {
        let mut sums = vec![0.0; WIDTH * WIDTH];
        for column in 0..WIDTH {
            sums[column * WIDTH + column] = 2.0;
        }
        let values: Vec<f32> = (0..WIDTH).map(|place| (place as f32 * 0.7).sin()).collect();
        let weight = Weight { shape: vec![1, WIDTH], values };
        let (fitted, plain) = (Inputs::of(sums, WIDTH).round(&weight, BLOCKS), PackedWeight::of(&weight, BLOCKS));
        assert_eq!((fitted.bytes, fitted.scales.values), (plain.bytes, plain.scales.values));
    }

    #[test]
    fn a_later_column_makes_up_for_an_earlier_ones_error() {
        // Two inputs that are always equal: only the sum of their weights matters, and 0.05 is nearer to 0 twice than 0.1 is.
        let mut values = vec![0.0_f32; WIDTH];
        (values[0], values[1], values[2]) = (0.05, 0.05, -1.0);
        let mut inputs = vec![0.0_f32; 2 * WIDTH];
        (inputs[0], inputs[1], inputs[WIDTH + 2]) = (1.0, 1.0, 1.0);
        let sums = products(&inputs);
        let weight = Weight { shape: vec![1, WIDTH], values };
        let error =
            |packed: PackedWeight| output_error(&sums, &weight.values, &packed.dequantised(BLOCKS, WIDTH).values);
        let fitted = error(Inputs::of(sums.clone(), WIDTH).round(&weight, BLOCKS));
        let plain = error(PackedWeight::of(&weight, BLOCKS));
        assert!(fitted < plain / 2.0, "{fitted} {plain}");
    }

    /// A column's error is made up for as far as those behind it can: greedily, so not for every weight, but for most.
    #[test]
    fn outputs_of_correlated_inputs_are_nearer_for_most_weights_and_by_far_in_all() {
        let mut state = 7_u64;
        let mut drawn = |count: usize, width: f32| -> Vec<f32> {
            let mut one = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1 << 24) as f32 * 2.0 - 1.0) * width
            };
            (0..count).map(|_| one()).collect()
        };
        let (mut nearer, mut all_fitted, mut all_plain) = (0, 0.0, 0.0);
        for _ in 0..200 {
            // Three causes behind all inputs.
            let (base, noise, values) = (drawn(3 * 40, 1.0), drawn(WIDTH * 40, 0.1), drawn(8 * WIDTH, 1.0));
            let caused = |(place, noise): (usize, &f32)| noise + base[place / WIDTH * 3 + place % 3];
            let sums = products(&noise.iter().enumerate().map(caused).collect::<Vec<f32>>());
            let weight = Weight { shape: vec![8, WIDTH], values: values.clone() };
            let error = |packed: PackedWeight| -> f64 {
                let found = packed.dequantised(BLOCKS, WIDTH).values;
                values.chunks(WIDTH).zip(found.chunks(WIDTH)).map(|(a, b)| output_error(&sums, a, b)).sum()
            };
            let fitted = error(Inputs::of(sums.clone(), WIDTH).round(&weight, BLOCKS));
            let plain = error(PackedWeight::of(&weight, BLOCKS));
            nearer += usize::from(fitted < plain);
            (all_fitted, all_plain) = (all_fitted + fitted, all_plain + plain);
        }
        println!("{nearer} of 200; {} of the error is left", all_fitted / all_plain);
        assert!(nearer >= 190 && all_fitted < 0.5 * all_plain, "{nearer} {all_fitted} {all_plain}");
    }
}
