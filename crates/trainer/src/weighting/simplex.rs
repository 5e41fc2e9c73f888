//! Weights that lie in the simplex.

/// Shares in proportion to `values` (0 or above; all alike where none is above 0), none below `floor` and so none above 1 − (K−1)·floor:
/// who would be below gets the floor, the others share the rest in proportion.
pub fn limited(values: &[f64], floor: f64) -> Vec<f64> {
    let count = values.len();
    let total: f64 = values.iter().sum();
    let usable = total.is_finite() && total > 0.0;
    let mut shares: Vec<f64> = match usable {
        true => values.iter().map(|value| value / total).collect(),
        false => vec![1.0 / count as f64; count],
    };
    let mut fixed = vec![false; count];
    // Each round fixes one more at least.
    for _ in 0..count {
        let below: Vec<usize> = (0..count).filter(|at| !fixed[*at] && shares[*at] < floor).collect();
        if below.is_empty() {
            break;
        }
        below.iter().for_each(|at| fixed[*at] = true);
        let free: f64 = (0..count).filter(|at| !fixed[*at]).map(|at| shares[at]).sum();
        let left = 1.0 - floor * fixed.iter().filter(|one| **one).count() as f64;
        for at in 0..count {
            shares[at] = if fixed[at] { floor } else { shares[at] * left / free };
        }
    }
    shares
}

/// Softmax of logarithms, without overflow.
pub(super) fn softmax(logarithms: &[f64]) -> Vec<f64> {
    let largest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    limited(&logarithms.iter().map(|value| (value - largest).exp()).collect::<Vec<f64>>(), 0.0)
}

/// Weights of the shortest vector Σ a_k g_k in the convex hull of gradients, from their inner products (MGDA: Désidéri, Comptes Rendus 350,
/// 2012), by Frank and Wolfe's steps with exact line search (Sener and Koltun, NeurIPS 2018). Exact after one step for two gradients.
pub fn min_norm(products: &[Vec<f64>]) -> Vec<f64> {
    let count = products.len();
    if count == 2 {
        let (aa, ab, bb) = (products[0][0], products[0][1], products[1][1]);
        let apart = aa - 2.0 * ab + bb;
        let first = if apart > 0.0 { ((bb - ab) / apart).clamp(0.0, 1.0) } else { 0.5 };
        return vec![first, 1.0 - first];
    }
    let mut weights = vec![1.0 / count as f64; count];
    for _ in 0..200 {
        let slopes: Vec<f64> = products
            .iter()
            .map(|row| row.iter().zip(&weights).map(|(product, weight)| product * weight).sum())
            .collect();
        let best = (0..count).fold(0, |best, at| if slopes[at] < slopes[best] { at } else { best });
        let own: f64 = slopes.iter().zip(&weights).map(|(slope, weight)| slope * weight).sum();
        let apart = own - 2.0 * slopes[best] + products[best][best];
        if own - slopes[best] <= 1e-12 * own.abs() || apart <= 0.0 {
            break;
        }
        let step = ((own - slopes[best]) / apart).clamp(0.0, 1.0);
        weights.iter_mut().for_each(|weight| *weight *= 1.0 - step);
        weights[best] += step;
    }
    weights
}
