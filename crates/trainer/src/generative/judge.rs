//! Lists of all held-out users beside tuned counting on the same users: Recall@K and NDCG@K, with the items a user has had
//! already kept and removed. Called by `stages`.

use super::{Case, GenerativeError, Recommender};
use crate::evaluate::{Counting, ndcg, rank_by_score, rank_in_list, recall};
use crate::progress::Progress;
use crate::semantic_ids::CodeTable;
use crate::stats::{Interval, Sample, StatsError, interval};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Instant;

/// Figures of a decoder's lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Beams of a search.
    pub width: usize,
    /// Items of the code table.
    pub items: usize,
    /// Of them, items that share their codes with one before them: lists show those one after the other, the one met more often first.
    pub collisions: usize,
    /// Validation, test.
    pub splits: Vec<SplitFigures>,
}

/// Figures on one part of the held-out items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitFigures {
    /// `validation` or `test`.
    pub split: String,
    /// Users judged.
    pub users: usize,
    /// Of the beam searches.
    pub seconds: f64,
    /// Lists as they were found.
    pub seen_kept: Vec<ListFigure>,
    /// Without the items of the user's history.
    pub seen_removed: Vec<ListFigure>,
}

/// One figure; intervals are 95 %, over users, of one training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListFigure {
    /// `recall@5` and so on.
    pub metric: String,
    /// Of the decoder.
    pub model: Interval,
    /// Of tuned counting.
    pub counting: Interval,
    /// Paired: above 0, the decoder is better.
    pub model_minus_counting: Interval,
}

type Metric = fn(Option<f64>, usize) -> f64;

const METRICS: [(&str, Metric, usize); 4] =
    [("recall@5", recall, 5), ("recall@10", recall, 10), ("ndcg@5", ndcg, 5), ("ndcg@10", ndcg, 10)];

/// Ranks of the true items, by user.
#[derive(Default)]
struct Ranks {
    model: Vec<Option<f64>>,
    counting: Vec<Option<f64>>,
}

/// Judges the cases of a split.
pub fn judge(
    split: &str,
    cases: &[&Case],
    recommender: &Recommender,
    table: &CodeTable,
    counting: &Counting<'_>,
    progress: &Progress,
) -> Result<SplitFigures, GenerativeError> {
    let started = Instant::now();
    let prompts: Vec<&[u32]> = cases.iter().map(|case| case.prompt.as_slice()).collect();
    let lists = recommender.lists(&prompts, progress)?;
    let seconds = started.elapsed().as_secs_f64();
    let (mut kept, mut removed) = (Ranks::default(), Ranks::default());
    for (case, list) in cases.iter().zip(&lists) {
        let target = table.number(&case.target);
        let rank = |list: &[usize]| target.and_then(|target| rank_in_list(list, target));
        let seen: BTreeSet<usize> = case.history.iter().filter_map(|item| table.number(item)).collect();
        let unseen: Vec<usize> = list.iter().copied().filter(|item| !seen.contains(item)).collect();
        kept.model.push(rank(list));
        removed.model.push(rank(&unseen));

        let counted = counting.number(&case.target);
        let mut scores = counting.scores(case.history.iter().rev().map(String::as_str));
        kept.counting.push(counted.and_then(|item| rank_by_score(&scores, item)));
        for item in case.history.iter().filter_map(|item| counting.number(item)) {
            scores[item] = f64::NEG_INFINITY;
        }
        removed.counting.push(counted.and_then(|item| rank_by_score(&scores, item)));
    }
    Ok(SplitFigures {
        split: split.to_owned(),
        users: cases.len(),
        seconds,
        seen_kept: kept.figures()?,
        seen_removed: removed.figures()?,
    })
}

impl Ranks {
    fn figures(&self) -> Result<Vec<ListFigure>, StatsError> {
        let figure = |(name, metric, k): &(&str, Metric, usize)| {
            let sample = |ranks: &[Option<f64>]| {
                Sample::of_users(&ranks.iter().map(|rank| metric(*rank, *k)).collect::<Vec<f64>>())
            };
            let (model, counting) = (sample(&self.model)?, sample(&self.counting)?);
            Ok(ListFigure {
                metric: (*name).to_owned(),
                model: interval(&model, 0.95)?,
                counting: interval(&counting, 0.95)?,
                model_minus_counting: interval(&model.minus(&counting)?, 0.95)?,
            })
        };
        METRICS.iter().map(figure).collect()
    }
}
