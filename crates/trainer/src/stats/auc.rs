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

/// One value a group (a user), whose mean is the area and whose spread is that of the area over groups drawn anew: the area plus how much each
/// group's scores move it (DeLong, DeLong and Clarke-Pearson 1988, for groups as Obuchowski 1997). `scores`: score, kind, group below
/// `groups`. `None` as for [`auc`].
pub fn auc_by_group(scores: &[(f64, bool, usize)], groups: usize) -> Option<Vec<f64>> {
    let area = auc(scores.iter().map(|&(score, kind, _)| (score, kind)))?;
    let sorted = |kind: bool| {
        let mut all: Vec<f64> = scores.iter().filter(|one| one.1 == kind).map(|one| one.0).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (positive, negative) = (sorted(true), sorted(false));
    // Share of the other kind that a score wins against, ties halved.
    let below = |others: &[f64], score: f64| {
        let (less, most) =
            (others.partition_point(|other| *other < score), others.partition_point(|other| *other <= score));
        (less + most) as f64 / 2.0 / others.len() as f64
    };
    let mut values = vec![area; groups];
    for &(score, kind, group) in scores {
        let (won, count) = match kind {
            true => (below(&negative, score), positive.len()),
            false => (1.0 - below(&positive, score), negative.len()),
        };
        values[group] += groups as f64 / count as f64 * (won - area);
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_mean_over_groups_is_the_area(
            scores in proptest::collection::vec((0u8..9, any::<bool>(), 0usize..5), 1..60)
        ) {
            let scores: Vec<(f64, bool, usize)> =
                scores.into_iter().map(|(score, kind, group)| (f64::from(score), kind, group)).collect();
            let area = auc(scores.iter().map(|one| (one.0, one.1)));
            let values = auc_by_group(&scores, 5);
            prop_assert_eq!(area.is_some(), values.is_some());
            if let (Some(area), Some(values)) = (area, values) {
                prop_assert!((values.iter().sum::<f64>() / 5.0 - area).abs() < 1e-9);
            }
        }
    }

    /// Groups that hold one score each: the variance of their mean is DeLong's.
    #[test]
    fn the_spread_over_groups_is_that_of_delong() {
        let scores = [(1.0, false, 0), (2.0, true, 1), (2.5, false, 2), (3.0, true, 3), (0.5, true, 4)];
        let Some(values) = auc_by_group(&scores, 5) else { panic!() };
        // Won by the positives: 1/2, 1, 0; by the negatives: 2/3, 1/3; the area is 1/2.
        let area = 0.5;
        let moved = [2.0 / 3.0 - area, 0.5 - area, 1.0 / 3.0 - area, 1.0 - area, 0.0 - area];
        let counts = [2.0, 3.0, 2.0, 3.0, 3.0];
        for ((value, moved), count) in values.iter().zip(moved).zip(counts) {
            assert!((value - (area + 5.0 / count * moved)).abs() < 1e-12, "{values:?}");
        }
    }

    #[test]
    fn auc_is_that_of_all_pairs() {
        let scores = [(1.0, false), (2.0, true), (2.0, false), (3.0, true), (0.5, true)];
        // Wins: 2 > 1, 2 = 2, 3 > both, 0.5 none: (1 + .5 + 2 + 0) / 6.
        assert_eq!(auc(scores), Some(3.5 / 6.0));
        assert_eq!(auc([(1.0, true)]), None);
    }
}
