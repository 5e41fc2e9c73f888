//! The model beside rules that learn nothing, user by user, with intervals: copying the newest line, and counting.
//!
//! In: the judged users, what was written for each. Out: [`Comparison`], a part of `report.json`. Callers: `pipeline` (judging).

use super::counting::Counting;
use super::generations::{CaseHits, GenerationCase};
use super::ranking::{ndcg, rank_by_score, rank_in_list, recall};
use crate::data::{Dataset, Holdout, TestCase, TestSet};
use crate::stats::{Interval, Sample, StatsError, interval};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use taiji::event::Item;
use taiji::prompt::{ParsedAnswer, answer_text};

/// Lines that the counting rule takes a category from.
const CATEGORY_LINES: usize = 10;
/// Longest list looked at.
const LONGEST: usize = 10;

/// What the model wrote for one user.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Beside the truth.
    pub case: GenerationCase,
    /// The item its answer names, where it names one.
    pub item_id: Option<String>,
    /// The categories of that item, or those it names, broadest first.
    pub categories: Vec<String>,
}

/// The model and both rules on the same users.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// One figure each; those of fewer than two users are left out.
    pub figures: Vec<Figure>,
    /// What the lists are.
    pub lists: String,
}

/// One figure; intervals are 95 %, over users, of this one training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `l1`, `l2`, `l3`, `title`, `recall@5` and so on.
    pub metric: String,
    /// Users it is defined for.
    pub users: usize,
    /// Of the model.
    pub model: Interval,
    /// Of copying the newest line of the prompt.
    pub copying: Interval,
    /// Of counting.
    pub counting: Interval,
    /// Paired: above 0, the model is better.
    pub model_minus_copying: Interval,
    /// Paired: above 0, the model is better.
    pub model_minus_counting: Interval,
}

/// What one of the three says of one user.
struct Said {
    hits: CaseHits,
    /// Of the true item in its list.
    rank: Option<f64>,
}

/// Compares what was written for each case, in order, with both rules. Titles are cut as the prompts cut them.
pub fn compare_with_rules(
    dataset: &Dataset,
    set: &TestSet,
    written: &[Written],
    target_action: &str,
    max_title_chars: usize,
) -> Result<Comparison, StatsError> {
    let rules = Rules::new(dataset, target_action, max_title_chars);
    let pairs = || set.cases.iter().zip(written);
    let model: Vec<Said> = pairs().map(|(case, written)| rules.of_model(case, written)).collect();
    let copying: Vec<Said> = pairs().map(|(case, _)| rules.copying(case)).collect();
    let counting: Vec<Said> = pairs().map(|(case, _)| rules.by_counting(case)).collect();
    let mut figures = Vec::new();
    for (metric, of) in METRICS {
        let values = |all: &[Said]| all.iter().filter_map(of).collect::<Vec<f64>>();
        let all = [values(&model), values(&copying), values(&counting)];
        if all[0].len() < 2 {
            continue;
        }
        let [model, copying, counting] = all.map(|values| Sample::of_users(&values));
        let (model, copying, counting) = (model?, copying?, counting?);
        figures.push(Figure {
            metric: metric.to_string(),
            users: model.users(),
            model: interval(&model, 0.95)?,
            copying: interval(&copying, 0.95)?,
            counting: interval(&counting, 0.95)?,
            model_minus_copying: interval(&model.minus(&copying)?, 0.95)?,
            model_minus_counting: interval(&model.minus(&counting)?, 0.95)?,
        });
    }
    let lists = "model: the item that the answer names, then the most met ones of its categories, deepest first, then of all; copying: \
        the history, newest first; counting: co-occurrence in the training part"
        .to_string();
    Ok(Comparison { figures, lists })
}

type Metric = fn(&Said) -> Option<f64>;

/// Whether a figure is defined depends on the true item alone, so the three are paired.
const METRICS: [(&str, Metric); 8] = [
    ("l1", |said| said.hits.levels[0].map(f64::from)),
    ("l2", |said| said.hits.levels[1].map(f64::from)),
    ("l3", |said| said.hits.levels[2].map(f64::from)),
    ("title", |said| Some(f64::from(said.hits.title))),
    ("recall@5", |said| Some(recall(said.rank, 5))),
    ("recall@10", |said| Some(recall(said.rank, 10))),
    ("ndcg@5", |said| Some(ndcg(said.rank, 5))),
    ("ndcg@10", |said| Some(ndcg(said.rank, 10))),
];

/// What all three need.
struct Rules<'a> {
    dataset: &'a Dataset,
    counting: Counting<'a>,
    /// Category path → items with text, most met first; the empty path holds all.
    shelves: HashMap<Vec<String>, Vec<usize>>,
    max_title_chars: usize,
}

impl<'a> Rules<'a> {
    fn new(dataset: &'a Dataset, target_action: &str, max_title_chars: usize) -> Self {
        let counting = Counting::new(dataset, &Holdout::of_training(target_action));
        // Items with text have the first numbers, in the order of the dataset.
        let mut by_popularity: Vec<usize> = (0..dataset.items.len()).collect();
        by_popularity.sort_by(|left, right| counting.popularity()[*right].total_cmp(&counting.popularity()[*left]));
        let mut shelves: HashMap<Vec<String>, Vec<usize>> = HashMap::new();
        for number in by_popularity {
            let categories = &dataset.items[number].categories;
            for depth in 0..=categories.len() {
                shelves.entry(categories[..depth].to_vec()).or_default().push(number);
            }
        }
        Rules { dataset, counting, shelves, max_title_chars }
    }

    fn of_model(&self, case: &TestCase, written: &Written) -> Said {
        let mut list: Vec<usize> = written.item_id.iter().filter_map(|id| self.counting.number(id)).collect();
        for depth in (0..=written.categories.len()).rev() {
            let shelf = self.shelves.get(&written.categories[..depth]).map(Vec::as_slice).unwrap_or_default();
            for number in shelf {
                if list.len() < LONGEST && !list.contains(number) {
                    list.push(*number);
                }
            }
        }
        Said { hits: written.case.hits(), rank: self.rank_in(&list, case) }
    }

    /// The newest line's item is the answer, the history the list.
    fn copying(&self, case: &TestCase) -> Said {
        let newest = self.seen(case).find_map(|behaviour| self.dataset.items.get(behaviour.item?));
        let mut list: Vec<usize> = Vec::new();
        for number in self.seen(case).filter_map(|behaviour| self.counting.number(&behaviour.item_id)) {
            if list.len() < LONGEST && !list.contains(&number) {
                list.push(number);
            }
        }
        Said { hits: self.hits(newest, case), rank: self.rank_in(&list, case) }
    }

    /// The list is by co-occurrence; the answer is the best of it among the categories that weigh most in the newest lines.
    fn by_counting(&self, case: &TestCase) -> Said {
        let scores = self.counting.scores(self.seen(case).map(|behaviour| behaviour.item_id.as_str()));
        let path = self.heaviest_path(case);
        let shelf = self.shelves.get(&path).map(Vec::as_slice).unwrap_or_default();
        // The first of equals, which is the one met most.
        let best = shelf.iter().rev().max_by(|left, right| scores[**left].total_cmp(&scores[**right]));
        let item = best.and_then(|number| self.dataset.items.get(*number));
        let rank = self.counting.number(&case.target_id).and_then(|number| rank_by_score(&scores, number));
        Said { hits: self.hits(item, case), rank }
    }

    /// Of the newest lines with text, each weighing 1 / (its place from 1); equals go to the newer one.
    fn heaviest_path(&self, case: &TestCase) -> Vec<String> {
        let lines =
            self.seen(case).filter_map(|behaviour| self.dataset.items.get(behaviour.item?)).take(CATEGORY_LINES);
        let mut weights: BTreeMap<&[String], (f64, usize)> = BTreeMap::new();
        for (place, item) in lines.enumerate() {
            let entry = weights.entry(item.categories.as_slice()).or_insert((0.0, place));
            entry.0 += 1.0 / (place + 1) as f64;
        }
        let heaviest = weights
            .into_iter()
            .max_by(|(_, left), (_, right)| left.0.total_cmp(&right.0).then_with(|| right.1.cmp(&left.1)));
        heaviest.map(|(path, _)| path.to_vec()).unwrap_or_default()
    }

    /// Engagements before the cut, newest first.
    fn seen(&self, case: &TestCase) -> impl Iterator<Item = &'a crate::data::Behaviour> + use<'a> {
        self.dataset.users[case.user].engagements_before(case.cut).iter().rev()
    }

    /// An item as an answer, judged as the model's answers are.
    fn hits(&self, item: Option<&Item>, case: &TestCase) -> CaseHits {
        let answer =
            item.map(|item| answer_text(&item.categories, &item.title, self.max_title_chars)).unwrap_or_default();
        let written = ParsedAnswer { answer, ..ParsedAnswer::default() };
        GenerationCase::new(written, case.target.as_ref(), self.max_title_chars).hits()
    }

    fn rank_in(&self, list: &[usize], case: &TestCase) -> Option<f64> {
        rank_in_list(list, self.counting.number(&case.target_id)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::data::test_cases;
    use crate::synth::{self, SynthSettings};

    /// On the first generated world: a model that knows the truth, one that copies, and one that says nothing.
    #[test]
    fn rules_and_models_are_judged_alike() {
        let settings = SynthSettings { users: 300, items: 300, events: 300 * 60, seed: 5, ..SynthSettings::default() };
        let dataset = synth::generate(&settings).dataset();
        let set = test_cases(&dataset, "purchase", 50, usize::MAX);
        let rules = Rules::new(&dataset, "purchase", 48);
        let write = |item: Option<&Item>, case: &TestCase| {
            let answer = item.map(|item| answer_text(&item.categories, &item.title, 48)).unwrap_or_default();
            let written = ParsedAnswer { answer, ..ParsedAnswer::default() };
            Written {
                case: GenerationCase::new(written, case.target.as_ref(), 48),
                item_id: item.map(|item| item.id.clone()),
                categories: item.map(|item| item.categories.clone()).unwrap_or_default(),
            }
        };
        let compare = |written: Vec<Written>| compare_with_rules(&dataset, &set, &written, "purchase", 48).unwrap();
        let figure = |comparison: &Comparison, metric: &str| {
            comparison.figures.iter().find(|figure| figure.metric == metric).cloned().unwrap()
        };

        let perfect = compare(set.cases.iter().map(|case| write(case.target.as_ref(), case)).collect());
        assert_eq!(perfect.figures.len(), METRICS.len());
        for figure in &perfect.figures {
            assert_eq!((figure.model.estimate, figure.users), (1.0, set.cases.len()), "{}", figure.metric);
            assert!(figure.model_minus_copying.low > 0.0 && figure.copying.estimate > 0.0, "{}", figure.metric);
        }
        let l3 = figure(&perfect, "l3");
        // Copying has .64 of the leaves of this world, counting less.
        assert!(l3.copying.covers(0.642) && l3.counting.estimate < l3.copying.estimate, "{l3:?}");

        let newest = |case: &TestCase| rules.seen(case).find_map(|behaviour| dataset.items.get(behaviour.item?));
        let copied = compare(set.cases.iter().map(|case| write(newest(case), case)).collect());
        for metric in ["l1", "l2", "l3", "title"] {
            let figure = figure(&copied, metric);
            assert_eq!((figure.model_minus_copying.low, figure.model_minus_copying.high), (0.0, 0.0), "{metric}");
        }
        let silent = compare(set.cases.iter().map(|case| write(None, case)).collect());
        assert_eq!(figure(&silent, "title").model.estimate, 0.0);
        assert!(figure(&silent, "recall@10").model.estimate < 0.2, "the most met items of all are its list");
    }
}
