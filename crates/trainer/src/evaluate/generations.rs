//! Generated answers against the items that were bought.
//!
//! Titles and categories are compared without regard to case, white space and what the prompt's sanitiser removes.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use taiji::event::Item;
use taiji::prompt::{ParsedAnswer, answer_text, sanitise, split_answer};

/// One generation beside the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationCase {
    /// What the model wrote, parsed.
    pub written: ParsedAnswer,
    /// Categories of the item that was bought, broadest first.
    pub categories: Vec<String>,
    /// Its title, cut as the training answers were (see [`GenerationCase::new`]); empty where it has none, and nothing hits that.
    pub title: String,
}

impl GenerationCase {
    /// The truth is cut as training cuts it, so that a hit can be one. `None`: an item without text, which no answer can name.
    pub fn new(written: ParsedAnswer, bought: Option<&Item>, max_title_chars: usize) -> Self {
        let Some(bought) = bought else {
            return GenerationCase { written, categories: Vec::new(), title: String::new() };
        };
        let truth = answer_text(&bought.categories, &bought.title, max_title_chars);
        let (categories, title) = match bought.categories.is_empty() {
            true => (Vec::new(), truth),
            false => split_answer(&truth),
        };
        GenerationCase { written, categories, title }
    }
}

/// What of one generation is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaseHits {
    /// The exact format.
    pub format: bool,
    /// The path down to each level; `None` where the true item has no such level.
    pub levels: [Option<bool>; 3],
    /// The title; never of an item without text.
    pub title: bool,
}

impl GenerationCase {
    /// Compares what was written with the truth.
    pub fn hits(&self) -> CaseHits {
        let (path, title) = split_answer(&self.written.answer);
        let level =
            |place: usize| (self.categories.len() > place).then(|| same_path(&path, &self.categories, place + 1));
        let truth = plain(&self.title);
        // The answer for an item without categories is its title alone, which may hold a colon itself.
        let title_right =
            plain(&title) == truth || (self.categories.is_empty() && plain(&self.written.answer) == truth);
        CaseHits {
            format: self.written.format_ok,
            levels: [0, 1, 2].map(level),
            title: !truth.is_empty() && title_right,
        }
    }
}

/// Shares are of the cases for which they are defined; 0 when there is none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GenerationMetrics {
    /// Generations scored.
    pub cases: usize,
    /// Share with the exact format.
    pub format_rate: f64,
    /// Share whose first category is right.
    pub first_category_accuracy: f64,
    /// What always answering the most frequent first category would reach.
    pub best_constant_accuracy: f64,
    /// That category.
    pub best_constant: Option<String>,
    /// Share right at L1, at L1 and L2, at all three.
    pub category_hits: [f64; 3],
    /// Share with the title right.
    pub title_hit: f64,
    /// Share of different answers: near 0 means that the model says the same to everyone.
    pub distinct_answers: f64,
    /// Mean words of the reasoning.
    pub reasoning_words: f64,
}

/// Scores all cases.
pub fn score_generations(cases: &[GenerationCase]) -> GenerationMetrics {
    if cases.is_empty() {
        return GenerationMetrics::default();
    }
    let hits: Vec<CaseHits> = cases.iter().map(GenerationCase::hits).collect();
    let category_hits = [0, 1, 2].map(|level| share(hits.iter().filter_map(|hit| hit.levels[level])));
    let firsts: Vec<&str> = cases.iter().filter_map(|case| case.categories.first()).map(String::as_str).collect();
    let (best_constant, best_constant_accuracy) = best_constant(&firsts);
    let distinct: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.written.answer.as_str()).collect();
    let words: usize = cases.iter().map(|case| case.written.reasoning.split_whitespace().count()).sum();
    GenerationMetrics {
        cases: cases.len(),
        format_rate: share(hits.iter().map(|hit| hit.format)),
        first_category_accuracy: category_hits[0],
        best_constant_accuracy,
        best_constant: best_constant.map(str::to_string),
        category_hits,
        title_hit: share(hits.iter().map(|hit| hit.title)),
        distinct_answers: distinct.len() as f64 / cases.len() as f64,
        reasoning_words: words as f64 / cases.len() as f64,
    }
}

/// The most frequent label and its share; of equally frequent ones the first by name.
pub fn best_constant<'a>(labels: &[&'a str]) -> (Option<&'a str>, f64) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for label in labels {
        *counts.entry(label).or_default() += 1;
    }
    let best = counts.into_iter().max_by_key(|(label, count)| (*count, std::cmp::Reverse(*label)));
    match best {
        Some((label, count)) => (Some(label), count as f64 / labels.len() as f64),
        None => (None, 0.0),
    }
}

fn same_path(written: &[String], truth: &[String], depth: usize) -> bool {
    written.len() >= depth && written.iter().zip(truth).take(depth).all(|(left, right)| plain(left) == plain(right))
}

/// As the prompt shows it, in lower case. A colon inside a category is a space there.
fn plain(text: &str) -> String {
    sanitise(&text.replace(':', " "), usize::MAX).to_lowercase()
}

fn share(hits: impl Iterator<Item = bool>) -> f64 {
    let (hit, all) = hits.fold((0usize, 0usize), |(hit, all), right| (hit + usize::from(right), all + 1));
    if all == 0 { 0.0 } else { hit as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use taiji::prompt::{PromptMode, parse};

    fn case(written: &str, truth: &[&str], title: &str) -> GenerationCase {
        let categories = truth.iter().map(|name| name.to_string()).collect();
        GenerationCase { written: parse(written, PromptMode::Think), categories, title: title.to_string() }
    }

    #[test]
    fn each_share_counts_what_it_says() {
        let metrics = score_generations(&[
            case("r r</think><answer>A > B > C: t one</answer>", &["A", "B", "C"], "T  one"),
            case("r</think><answer>A > B > X: t</answer>", &["A", "B", "C"], "other"),
            case("r</think><answer>A > X > C: t</answer>", &["A", "B", "C"], "other"),
            case("broken: all", &["D", "B", "C"], "other"),
        ]);
        assert_eq!(metrics.cases, 4);
        assert_eq!(metrics.format_rate, 0.75);
        assert_eq!(metrics.category_hits, [0.75, 0.5, 0.25]);
        assert_eq!(metrics.first_category_accuracy, 0.75);
        assert_eq!((metrics.best_constant.as_deref(), metrics.best_constant_accuracy), (Some("A"), 0.75));
        assert_eq!(metrics.title_hit, 0.25);
        assert_eq!(metrics.distinct_answers, 1.0);
        assert_eq!(score_generations(&[]), GenerationMetrics::default());
    }

    #[test]
    fn a_perfect_model_scores_one_whatever_the_item_is_called() {
        let items =
            [("x".repeat(90), vec!["A: b > c".to_string(), "L".repeat(60)]), ("Plain: title".to_string(), vec![])];
        let cases = items.map(|(title, categories)| {
            let item = Item { id: "1".into(), title, categories, brand: None, price: None, state: Default::default() };
            let answer = answer_text(&item.categories, &item.title, 48);
            let written = ParsedAnswer { reasoning: "because".to_string(), answer, format_ok: true };
            GenerationCase::new(written, Some(&item), 48)
        });
        let metrics = score_generations(&cases);
        assert_eq!((metrics.format_rate, metrics.title_hit), (1.0, 1.0));
        assert_eq!(metrics.category_hits, [1.0, 1.0, 0.0]);
    }

    #[test]
    fn items_without_categories_count_for_titles_only() {
        let metrics = score_generations(&[
            case("r</think><answer>Cable: red</answer>", &[], "Cable: red"),
            case("r</think><answer>A: t</answer>", &["A"], "t"),
        ]);
        assert_eq!((metrics.title_hit, metrics.first_category_accuracy), (1.0, 1.0));
        assert_eq!(metrics.category_hits, [1.0, 0.0, 0.0]);
    }

    #[test]
    fn an_item_without_text_is_never_hit() {
        let metrics = score_generations(&[
            GenerationCase::new(parse("r</think><answer></answer>", PromptMode::Think), None, 48),
            case("r</think><answer>A: t</answer>", &["A"], "t"),
        ]);
        assert_eq!((metrics.cases, metrics.title_hit, metrics.first_category_accuracy), (2, 0.5, 1.0));
    }
}
