//! Small dense products for attention: C = A·B and C += Aᵀ·B on slices, 4×16 results held in registers.
//!
//! Called by `attention`. Bounds: row counts are multiples of [`ROWS`], column counts of [`COLUMNS`]; callers pad.

/// Rows of one register tile.
pub(super) const ROWS: usize = 4;
/// Columns of one register tile.
pub(super) const COLUMNS: usize = 16;

type Tile = [[f32; COLUMNS]; ROWS];

/// A matrix inside a slice: element (row, column) at `row * stride + column`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

/// c\[m, n\] = a\[m, k\] · b\[k, n\]; overwrites c, whose row stride is `c_stride`.
#[inline]
pub(super) fn multiply(c: &mut [f32], c_stride: usize, a: Matrix<'_>, b: Matrix<'_>, (m, n, k): (usize, usize, usize)) {
    for row in (0..m).step_by(ROWS) {
        let a0 = &a.data[row * a.stride..][..k];
        let a1 = &a.data[(row + 1) * a.stride..][..k];
        let a2 = &a.data[(row + 2) * a.stride..][..k];
        let a3 = &a.data[(row + 3) * a.stride..][..k];
        for column in (0..n).step_by(COLUMNS) {
            let mut tile: Tile = [[0.0; COLUMNS]; ROWS];
            for (depth, b_row) in b.data[column..].chunks(b.stride).take(k).enumerate() {
                let Some(b_part) = b_row.first_chunk::<COLUMNS>() else {
                    break;
                };
                rank_one(&mut tile, [a0[depth], a1[depth], a2[depth], a3[depth]], b_part);
            }
            for (offset, tile_row) in tile.iter().enumerate() {
                c[(row + offset) * c_stride + column..][..COLUMNS].copy_from_slice(tile_row);
            }
        }
    }
}

/// c\[m, n\] += aᵀ · b, with a stored as \[k, m\] and b as \[k, n\].
#[inline]
pub(super) fn add_transposed(
    c: &mut [f32],
    c_stride: usize,
    a: Matrix<'_>,
    b: Matrix<'_>,
    (m, n, k): (usize, usize, usize),
) {
    for row in (0..m).step_by(ROWS) {
        for column in (0..n).step_by(COLUMNS) {
            let mut tile: Tile = [[0.0; COLUMNS]; ROWS];
            let a_rows = a.data[row..].chunks(a.stride).take(k);
            for (a_row, b_row) in a_rows.zip(b.data[column..].chunks(b.stride)) {
                let (Some(a_part), Some(b_part)) = (a_row.first_chunk::<ROWS>(), b_row.first_chunk::<COLUMNS>()) else {
                    break;
                };
                rank_one(&mut tile, *a_part, b_part);
            }
            for (offset, tile_row) in tile.iter().enumerate() {
                let target = &mut c[(row + offset) * c_stride + column..][..COLUMNS];
                for (t, value) in target.iter_mut().zip(tile_row) {
                    *t += value;
                }
            }
        }
    }
}

#[inline(always)]
fn rank_one(tile: &mut Tile, a: [f32; ROWS], b: &[f32; COLUMNS]) {
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            tile[row][column] = a[row].mul_add(b[column], tile[row][column]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn both_products_match_the_plain_loops() {
        let (m, n, k) = (8, 32, 5);
        let (a, b) = (ramp(m * k, 7), ramp(k * n, 5));
        let mut c = vec![9.0; m * n];
        multiply(&mut c, n, Matrix { data: &a, stride: k }, Matrix { data: &b, stride: n }, (m, n, k));
        let a_transposed: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
        let mut d = vec![1.0; m * n];
        add_transposed(&mut d, n, Matrix { data: &a_transposed, stride: m }, Matrix { data: &b, stride: n }, (m, n, k));
        for row in 0..m {
            for column in 0..n {
                let expected: f32 = (0..k).map(|p| a[row * k + p] * b[p * n + column]).sum();
                assert_eq!(c[row * n + column], expected);
                assert_eq!(d[row * n + column], expected + 1.0);
            }
        }
    }
}
