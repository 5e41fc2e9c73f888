//! Page-level reward: what a list of items is worth beyond its items (PageLLM, arXiv 2506.09084). No run uses it until a prompt asks for a
//! list.

use std::collections::HashSet;

/// What breadth and repetition count beside the items' mean reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlateWeights {
    /// Of the share of different categories among the items.
    pub coverage: f64,
    /// Of the share of items that stand in the list already.
    pub redundancy: f64,
}

/// Mean reward of the items + coverage·(different categories / items) - redundancy·(repeated items / items); 0 of an empty list.
/// `items`: (item, its category), as far as they are known; `rewards`: one an item.
pub fn slate(items: &[(usize, &str)], rewards: &[f64], weights: SlateWeights) -> f64 {
    if items.is_empty() {
        return 0.0;
    }
    let count = items.len() as f64;
    let different: HashSet<usize> = items.iter().map(|(item, _)| *item).collect();
    let categories: HashSet<&str> = items.iter().map(|(_, category)| *category).collect();
    let repeated = count - different.len() as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    mean + weights.coverage * categories.len() as f64 / count - weights.redundancy * repeated / count
}
