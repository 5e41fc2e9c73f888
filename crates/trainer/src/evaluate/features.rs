//! Are the features worth anything? Codes (entropy, distinct tuples) and neighbours (same wish, overlapping history).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Health of the sparse IDs over all users.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CodeHealth {
    /// Users.
    pub rows: usize,
    /// Entropy of each slot's codes in bits; log2 of K at best.
    pub slot_entropy_bits: Vec<f64>,
    /// Share of users with a tuple that differs from all counted before: 1 = no two alike.
    pub distinct_tuples: f64,
}

/// How often a user and the neighbour have the same top category.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Agreement {
    /// Pairs with a category on both sides.
    pub pairs: usize,
    /// Share that agrees.
    pub agreement: f64,
    /// What random pairs would reach.
    pub chance: f64,
}

/// Overlap of item histories.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct JaccardComparison {
    /// Users with a neighbour.
    pub pairs: usize,
    /// Mean Jaccard with the neighbour.
    pub neighbour: f64,
    /// Mean Jaccard with a random other user.
    pub random: f64,
}

/// Both health figures; `rows` are the code tuples of the users, all of one length.
pub fn code_health<C: Ord + Copy>(rows: &[Vec<C>]) -> CodeHealth {
    CodeHealth {
        rows: rows.len(),
        slot_entropy_bits: slot_entropy_bits(rows),
        distinct_tuples: distinct_tuple_share(rows),
    }
}

/// Shannon entropy of each slot in bits.
pub fn slot_entropy_bits<C: Ord + Copy>(rows: &[Vec<C>]) -> Vec<f64> {
    let slots = rows.iter().map(Vec::len).max().unwrap_or(0);
    (0..slots)
        .map(|slot| {
            let mut counts: BTreeMap<C, usize> = BTreeMap::new();
            for code in rows.iter().filter_map(|row| row.get(slot)) {
                *counts.entry(*code).or_default() += 1;
            }
            let total: usize = counts.values().sum();
            let bits = |count: &usize| {
                let share = *count as f64 / total as f64;
                -share * share.log2()
            };
            // One code for all gives -0.0; the report should say 0.
            counts.values().map(bits).sum::<f64>().max(0.0)
        })
        .collect()
}

/// Distinct tuples over all tuples; 0 without rows.
pub fn distinct_tuple_share<C: Ord>(rows: &[Vec<C>]) -> f64 {
    let distinct: BTreeSet<&Vec<C>> = rows.iter().collect();
    if rows.is_empty() { 0.0 } else { distinct.len() as f64 / rows.len() as f64 }
}

/// Top category of each user beside that of the neighbour (an index into the same list).
pub fn neighbour_agreement(top_categories: &[Option<String>], neighbours: &[Option<usize>]) -> Agreement {
    let top = |index: usize| top_categories.get(index).and_then(Option::as_deref);
    let pairs: Vec<(&str, &str)> =
        neighbours.iter().enumerate().filter_map(|(user, neighbour)| Some((top(user)?, top((*neighbour)?)?))).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for category in top_categories.iter().flatten() {
        *counts.entry(category).or_default() += 1;
    }
    // Drawn without the user himself, as neighbours are.
    let total: usize = counts.values().sum();
    let same: f64 = counts.values().map(|count| (count * count.saturating_sub(1)) as f64).sum();
    let all = (total * total.saturating_sub(1)) as f64;
    let agreeing = pairs.iter().filter(|(left, right)| left == right).count();
    Agreement { pairs: pairs.len(), agreement: ratio(agreeing as f64, pairs.len() as f64), chance: ratio(same, all) }
}

/// Mean Jaccard of the users' item sets with their neighbour's, and with those of random others drawn by `seed`.
pub fn jaccard_with_neighbours<T: Ord>(
    histories: &[BTreeSet<T>],
    neighbours: &[Option<usize>],
    seed: u64,
) -> JaccardComparison {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut comparison = JaccardComparison::default();
    if histories.len() < 2 {
        return comparison;
    }
    for (user, neighbour) in neighbours.iter().enumerate() {
        let Some(other) = neighbour.and_then(|index| histories.get(index)) else { continue };
        let Some(own) = histories.get(user) else { continue };
        // An index below the user's own stays, one from there on moves up: all others alike, never the user.
        let drawn = random.random_range(0..histories.len() - 1);
        let stranger = &histories[drawn + usize::from(drawn >= user)];
        comparison.pairs += 1;
        comparison.neighbour += jaccard(own, other);
        comparison.random += jaccard(own, stranger);
    }
    comparison.neighbour = ratio(comparison.neighbour, comparison.pairs as f64);
    comparison.random = ratio(comparison.random, comparison.pairs as f64);
    comparison
}

fn jaccard<T: Ord>(left: &BTreeSet<T>, right: &BTreeSet<T>) -> f64 {
    let shared = left.intersection(right).count();
    ratio(shared as f64, (left.len() + right.len() - shared) as f64)
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn entropy_and_distinct_tuples() {
        let rows =
            vec![vec![0u8, 7], vec![1, 7], vec![2, 7], vec![3, 7], vec![3, 7], vec![2, 7], vec![1, 7], vec![0, 7]];
        let health = code_health(&rows);
        assert_eq!(health.slot_entropy_bits, vec![2.0, 0.0]);
        assert_eq!(health.distinct_tuples, 0.5);
        assert_eq!(code_health::<u32>(&[]), CodeHealth::default());
    }

    #[test]
    fn agreement_beside_chance() {
        let tops: Vec<Option<String>> = ["A", "A", "B", "B"].iter().map(|name| Some(name.to_string())).collect();
        let found = neighbour_agreement(&tops, &[Some(1), Some(2), Some(3), None]);
        assert_eq!(found.pairs, 3);
        assert!((found.agreement - 2.0 / 3.0).abs() < 1e-12 && (found.chance - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn jaccard_is_seeded_and_never_compares_a_user_with_himself() {
        let histories: Vec<BTreeSet<u32>> = (0..50).map(|user| BTreeSet::from([user / 2, 100 + user])).collect();
        let neighbours: Vec<Option<usize>> = (0..50).map(|user| Some(user ^ 1)).collect();
        let one = jaccard_with_neighbours(&histories, &neighbours, 3);
        assert_eq!(one, jaccard_with_neighbours(&histories, &neighbours, 3));
        assert!((one.neighbour - 1.0 / 3.0).abs() < 1e-12 && one.random < 0.1);
        assert_eq!(one.pairs, 50);
    }
}
