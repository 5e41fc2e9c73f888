//! Tuned counting: the next item by what followed what in the training part. A learned list counts as learning only beside it.
//!
//! `M[a,b] += d^-½` for a before b at distance d ≤ 10, `M[b,a] += .6·d^-½`; `score(b) = Σ_k M[h_k,b] / ((k+1)·√pop(h_k)·pop(b)^.15) +
//! .01·pop(b)/Σpop` over the 20 newest items h_0, h_1, … of the history. Items that were bought before are kept. The settings
//! were chosen on validation users of another set; on all test users of Amazon Instruments it reaches Recall@10 .115 and NDCG@10 .088.

use crate::data::{Dataset, Holdout};
use std::collections::HashMap;

/// Furthest apart that two engagements are a pair.
const WINDOW: usize = 10;
/// Weight of a pair in the other order.
const BACKWARD: f64 = 0.6;
/// Newest items of the history.
const HISTORY: usize = 20;
/// Exponent of the candidate's popularity.
const DAMPING: f64 = 0.15;
/// Weight of popularity alone.
const PRIOR: f64 = 0.01;

/// Counts over the training part of a dataset's users.
pub struct Counting<'a> {
    numbers: HashMap<&'a str, usize>,
    popularity: Vec<f64>,
    /// By item: what it is a pair with.
    pairs: Vec<HashMap<usize, f64>>,
}

impl<'a> Counting<'a> {
    /// Counts what `holdout` leaves, over items with text and without.
    pub fn new(dataset: &'a Dataset, holdout: &Holdout) -> Self {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let with_text = dataset.items.iter().map(|item| item.id.as_str());
        let met = dataset.users.iter().flat_map(|user| &user.engagements).map(|behaviour| behaviour.item_id.as_str());
        for id in with_text.chain(met) {
            let next = numbers.len();
            numbers.entry(id).or_insert(next);
        }
        let (mut popularity, mut pairs) = (vec![0.0; numbers.len()], vec![HashMap::new(); numbers.len()]);
        for user in &dataset.users {
            let seen = user.engagements_before(holdout.cut(dataset, user));
            let items: Vec<usize> = seen.iter().map(|behaviour| numbers[behaviour.item_id.as_str()]).collect();
            for (place, &item) in items.iter().enumerate() {
                popularity[item] += 1.0;
                for (distance, &later) in items[place + 1..].iter().take(WINDOW).enumerate() {
                    let weight = ((distance + 1) as f64).powf(-0.5);
                    *pairs[item].entry(later).or_insert(0.0) += weight;
                    *pairs[later].entry(item).or_insert(0.0) += BACKWARD * weight;
                }
            }
        }
        Counting { numbers, popularity, pairs }
    }

    /// Number of an item; `None`: it is nowhere in the data.
    pub fn number(&self, id: &str) -> Option<usize> {
        self.numbers.get(id).copied()
    }

    /// Times each item was met in the training part, by number.
    pub fn popularity(&self) -> &[f64] {
        &self.popularity
    }

    /// A score for every item, by number; the history comes newest first.
    pub fn scores<'b>(&self, newest_first: impl Iterator<Item = &'b str>) -> Vec<f64> {
        let all: f64 = self.popularity.iter().sum::<f64>().max(1.0);
        let mut scores: Vec<f64> = self.popularity.iter().map(|count| PRIOR * count / all).collect();
        for (place, item) in newest_first.take(HISTORY).filter_map(|id| self.number(id)).enumerate() {
            let scale = (place + 1) as f64 * self.popularity[item].max(1.0).sqrt();
            for (&candidate, weight) in &self.pairs[item] {
                scores[candidate] += weight / (scale * self.popularity[candidate].powf(DAMPING));
            }
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::ranking::{ndcg, rank_by_score, recall};
    use super::*;
    use crate::data::{import_amazon, test_cases};
    use taiji::event::ActionTable;

    /// Figures found independently of this code (NumPy, all 24,772 test users, seen items kept): Recall@10 .1148, NDCG@10 .0881.
    #[test]
    fn on_the_public_set_it_reaches_what_was_found_independently() {
        let shared = testkit::data_folder();
        let interactions = shared.join("instruments.interactions.tsv.gz");
        if !interactions.is_file() {
            testkit::skip(&format!("{} is not there; TAIJI_DATA_DIR names the folder", interactions.display()));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        import_amazon(&interactions, &shared.join("instruments.items.jsonl.gz"), folder.path(), 0.0).unwrap();
        let dataset = Dataset::load(folder.path(), &ActionTable::default()).unwrap();
        let counting = Counting::new(&dataset, &Holdout::of_training("purchase"));
        let set = test_cases(&dataset, "purchase", 1, usize::MAX);
        let ranks: Vec<Option<f64>> = set
            .cases
            .iter()
            .map(|case| {
                let seen = dataset.users[case.user].engagements_before(case.cut).iter().rev();
                let scores = counting.scores(seen.map(|behaviour| behaviour.item_id.as_str()));
                rank_by_score(&scores, counting.number(&case.target_id)?)
            })
            .collect();
        let mean = |figure: fn(Option<f64>, usize) -> f64| {
            ranks.iter().map(|rank| figure(*rank, 10)).sum::<f64>() / ranks.len() as f64
        };
        println!("counting on instruments: {} users, R@10 {:.4}, N@10 {:.4}", ranks.len(), mean(recall), mean(ndcg));
        assert_eq!(ranks.len(), 24_772);
        assert!((mean(recall) - 0.1148).abs() < 3e-4 && (mean(ndcg) - 0.0881).abs() < 3e-4);
    }
}
