//! Rank correlation.
//!
//! In: pairs of numbers. Out: Spearman's coefficient. Caller: `simulate`.

/// Correlation of the ranks, ties at their mean rank (Spearman 1904). `None` where one side has no two different values. No NaN.
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    let left = ranks(pairs.iter().map(|pair| pair.0).collect());
    let right = ranks(pairs.iter().map(|pair| pair.1).collect());
    let middle = (pairs.len() as f64 - 1.0) / 2.0;
    let product = |one: &[f64], other: &[f64]| -> f64 {
        one.iter().zip(other).map(|(one, other)| (one - middle) * (other - middle)).sum()
    };
    let spread = (product(&left, &left) * product(&right, &right)).sqrt();
    (spread > 0.0).then(|| product(&left, &right) / spread)
}

/// From 0.
fn ranks(values: Vec<f64>) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&left, &right| values[left].total_cmp(&values[right]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for ties in order.chunk_by(|&left, &right| values[left] == values[right]) {
        let mean = first as f64 + (ties.len() as f64 - 1.0) / 2.0;
        ties.iter().for_each(|&place| ranks[place] = mean);
        first += ties.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spearman_is_scipys() {
        // scipy.stats.spearmanr([1, 2, 2, 4, 9], [3, 1, 4, 4, 8]) = 0.7631578947368421
        let pairs = [(1.0, 3.0), (2.0, 1.0), (2.0, 4.0), (4.0, 4.0), (9.0, 8.0)];
        assert!(spearman(&pairs).is_some_and(|found| (found - 0.763_157_894_736_842_1).abs() < 1e-12));
        assert_eq!(spearman(&[(1.0, 2.0), (2.0, 3.0), (3.0, 9.0)]), Some(1.0));
        assert_eq!(spearman(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(spearman(&[]), None);
    }
}
