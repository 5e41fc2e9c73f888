//! Small dense products: C = A·B, C += Aᵀ·B and C += A·B on slices, 4×16 results held in registers.
//!
//! Called by `attention`, which pads: its row counts are multiples of [`ROWS`], its column counts of [`COLUMNS`]; and by
//! `linear` for adapters, whose product ([`add`]) may have any.

/// Rows of one register tile.
pub(super) const ROWS: usize = 4;
/// Columns of one register tile.
pub(super) const COLUMNS: usize = 16;

type Tile<const R: usize = ROWS> = [[f32; COLUMNS]; R];

/// A matrix inside a slice: element (row, column) at `row * stride + column`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

impl Matrix<'_> {
    /// The same without its first rows.
    fn skip_rows(self, row: usize) -> Self {
        Self { data: &self.data[row * self.stride..], stride: self.stride }
    }
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

/// c\[m, n\] += a\[m, k\] · b\[k, n\] for any m and n, the terms of a result added in order of k.
pub(super) fn add(c: &mut [f32], c_stride: usize, a: Matrix<'_>, b: Matrix<'_>, (m, n, k): (usize, usize, usize)) {
    let whole = m - m % ROWS;
    for row in (0..whole).step_by(ROWS) {
        add_rows::<ROWS>(&mut c[row * c_stride..], c_stride, a.skip_rows(row), b, (n, k));
    }
    for row in whole..m {
        add_rows::<1>(&mut c[row * c_stride..], c_stride, a.skip_rows(row), b, (n, k));
    }
}

/// The same for R rows. A tile is a copy: what is summed in place, behind a reference, goes through memory for every term.
#[inline]
fn add_rows<const R: usize>(c: &mut [f32], c_stride: usize, a: Matrix<'_>, b: Matrix<'_>, (n, k): (usize, usize)) {
    let whole = n - n % COLUMNS;
    for column in (0..whole).step_by(COLUMNS) {
        let mut tile: Tile<R> = [[0.0; COLUMNS]; R];
        for (row, tile_row) in tile.iter_mut().enumerate() {
            tile_row.copy_from_slice(&c[row * c_stride + column..][..COLUMNS]);
        }
        for (depth, b_row) in b.data[column..].chunks(b.stride).take(k).enumerate() {
            let Some(b_part) = b_row.first_chunk::<COLUMNS>() else { break };
            rank_one(&mut tile, std::array::from_fn(|row| a.data[row * a.stride + depth]), b_part);
        }
        for (row, tile_row) in tile.iter().enumerate() {
            c[row * c_stride + column..][..COLUMNS].copy_from_slice(tile_row);
        }
    }
    for row in 0..R {
        for depth in 0..k {
            let factor = a.data[row * a.stride + depth];
            let b_rest = &b.data[depth * b.stride..][whole..n];
            for (value, part) in c[row * c_stride..][whole..n].iter_mut().zip(b_rest) {
                *value = factor.mul_add(*part, *value);
            }
        }
    }
}

#[inline(always)]
fn rank_one<const R: usize>(tile: &mut Tile<R>, a: [f32; R], b: &[f32; COLUMNS]) {
    for row in 0..R {
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
    fn products_of_any_size_are_added_inside_wider_matrices() {
        for (m, n, k) in [(8, 32, 5), (7, 19, 3), (1, 5, 16), (4, 16, 1)] {
            let (a_stride, b_stride, c_stride) = (k + 2, n + 1, n + 3);
            let (a, b) = (ramp(m * a_stride, 7), ramp(k * b_stride, 5));
            let before = ramp(m * c_stride, 3);
            let mut c = before.clone();
            add(
                &mut c,
                c_stride,
                Matrix { data: &a, stride: a_stride },
                Matrix { data: &b, stride: b_stride },
                (m, n, k),
            );
            for (place, (value, old)) in c.iter().zip(&before).enumerate() {
                let (row, column) = (place / c_stride, place % c_stride);
                let product = |depth: usize| a[row * a_stride + depth] * b[depth * b_stride + column];
                let added: f32 = if column < n { (0..k).map(product).sum() } else { 0.0 };
                assert_eq!(*value, old + added, "{m} × {n} × {k}: row {row}, column {column}");
            }
        }
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
