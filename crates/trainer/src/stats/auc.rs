//! Area under the ROC curve.
//!
//! In: scores and whether each is of the one kind. Out: the chance that one of it scores higher than one of the other. Callers:
//! `rank`, `reason`.

/// The chance that a score of the one kind (`true`) is higher than one of the other, half of the ties counted. `None` where one of the
/// two kinds is missing. Scores are no NaN.
pub fn auc(scores: impl IntoIterator<Item = (f64, bool)>) -> Option<f64> {
    let mut all: Vec<(f64, bool)> = scores.into_iter().collect();
    all.sort_by(|left, right| left.0.total_cmp(&right.0));
    let positive = all.iter().filter(|(_, is_positive)| *is_positive).count();
    let negative = all.len() - positive;
    if positive == 0 || negative == 0 {
        return None;
    }
    let (mut below, mut won) = (0usize, 0.0);
    for ties in all.chunk_by(|left, right| left.0 == right.0) {
        let positive_here = ties.iter().filter(|(_, is_positive)| *is_positive).count();
        let negative_here = ties.len() - positive_here;
        won += positive_here as f64 * (below as f64 + 0.5 * negative_here as f64);
        below += negative_here;
    }
    Some(won / (positive as f64 * negative as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_is_that_of_all_pairs() {
        let scores = [(1.0, false), (2.0, true), (2.0, false), (3.0, true), (0.5, true)];
        // Wins: 2 > 1, 2 = 2, 3 > both, 0.5 none: (1 + .5 + 2 + 0) / 6.
        assert_eq!(auc(scores), Some(3.5 / 6.0));
        assert_eq!(auc([(1.0, true)]), None);
    }
}
