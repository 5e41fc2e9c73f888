//! One true item among all items: its rank, and what Recall@K and NDCG@K make of it.

/// Rank from 1 of an item in a list; `None` where it is not there.
pub fn rank_in_list(list: &[usize], item: usize) -> Option<f64> {
    list.iter().position(|listed| *listed == item).map(|place| (place + 1) as f64)
}

/// Rank from 1 of an item by its score among all; equals count half, so that no order of ties flatters.
pub fn rank_by_score(scores: &[f64], item: usize) -> Option<f64> {
    let own = *scores.get(item)?;
    let above = scores.iter().filter(|score| **score > own).count();
    let equal = scores.iter().filter(|score| **score == own).count() - 1;
    Some(1.0 + above as f64 + 0.5 * equal as f64)
}

/// 1 where the item is among the first `k`.
pub fn recall(rank: Option<f64>, k: usize) -> f64 {
    f64::from(rank.is_some_and(|rank| rank <= k as f64))
}

/// 1 / log₂(rank + 1) within the first `k`, else 0: with one true item the ideal is 1.
pub fn ndcg(rank: Option<f64>, k: usize) -> f64 {
    rank.filter(|rank| *rank <= k as f64).map_or(0.0, |rank| 1.0 / (rank + 1.0).log2())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn ranks_and_what_they_are_worth() {
        let rank = rank_in_list(&[7, 3, 9], 9);
        assert_eq!((rank, rank_in_list(&[7], 8)), (Some(3.0), None));
        assert_eq!((recall(rank, 3), recall(rank, 2), ndcg(rank, 3), ndcg(rank, 2)), (1.0, 0.0, 0.5, 0.0));
        assert_eq!((recall(None, 5), ndcg(None, 5), ndcg(Some(1.0), 5)), (0.0, 0.0, 1.0));
        assert_eq!(rank_by_score(&[0.5, 2.0, 0.5, 0.5, 1.0], 0), Some(4.0));
        assert_eq!((rank_by_score(&[0.0; 101], 3), rank_by_score(&[], 0)), (Some(51.0), None));
    }
}
