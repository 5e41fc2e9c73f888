//! Which pairs of prompt and reason a student is taught, by their scores or without any.
//!
//! In: [`Group`]s, [`Scores`], a [`Method`]. Out: chosen pairs, and why the others were left. A threshold is a percentile over *other*
//! pairs (validation), as in ORFT; it belongs to one scorer and one teacher. Caller: the stage `filter`.

use super::{Group, Scores};
use crate::stats::quantile;
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// How pairs are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// All of them.
    All,
    /// One a prompt, at random.
    One,
    /// Any half.
    Half,
    /// The title's perplexity with the reason is below the threshold.
    Perplexity,
    /// What the reason saves of it is above the threshold.
    Gain,
    /// The reason with the lowest perplexity among those of its prompt.
    Best,
    /// The title's perplexity without a reason is below the threshold: is it only that the item is easy?
    NoReason,
}

impl Method {
    /// Whether scores are looked at.
    pub fn needs_scores(self) -> bool {
        self.has_threshold() || self == Method::Best
    }

    /// Whether a threshold decides.
    pub fn has_threshold(self) -> bool {
        matches!(self, Method::Perplexity | Method::Gain | Method::NoReason)
    }

    /// Nats by which a pair is judged, lower is better; `None` where there is no score.
    pub fn cost(self, scores: &Scores, reason: usize) -> Option<f64> {
        match self {
            Method::All | Method::One | Method::Half => None,
            Method::Perplexity | Method::Best => scores.with[reason],
            Method::Gain => scores.gain(reason).map(|gain| -gain),
            Method::NoReason => scores.without,
        }
    }
}

/// A pair: the prompt's number, and its reason's.
pub type Pair = (usize, usize);

/// What a method takes and leaves, both in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chosen {
    /// Taken.
    pub taken: Vec<Pair>,
    /// Left, with what they cost.
    pub left: Vec<(Pair, f64)>,
    /// Left, because the scorer could not read them.
    pub unscored: Vec<Pair>,
}

/// The value below which a share of the values lies, between neighbours by weight; `None` without any.
pub fn percentile(mut values: Vec<f64>, share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then(|| quantile(&values, share.clamp(0.0, 1.0)))
}

/// The threshold of a method that has one: a percentile of what the first `most` pairs of a validation subset cost.
pub fn threshold(method: Method, groups: &[Group], scores: &[Scores], share: f64, most: usize) -> Option<f64> {
    if !method.has_threshold() {
        return None;
    }
    let costs = pairs(groups).filter_map(|(group, reason)| method.cost(&scores[group], reason));
    percentile(costs.take(most).collect(), share)
}

/// All pairs, by prompt and reason.
pub fn pairs(groups: &[Group]) -> impl Iterator<Item = Pair> + '_ {
    groups.iter().enumerate().flat_map(|(group, one)| (0..one.reasons.len()).map(move |reason| (group, reason)))
}

/// Chooses. `scores` are those of the groups, in order, and may be empty for methods that look at none; `threshold` is for those that
/// have one.
pub fn choose(method: Method, groups: &[Group], scores: &[Scores], threshold: f64, random: &mut impl Rng) -> Chosen {
    let mut chosen = Chosen::default();
    match method {
        Method::All => chosen.taken = pairs(groups).collect(),
        Method::One => {
            let with_any = groups.iter().enumerate().filter(|(_, group)| !group.reasons.is_empty());
            chosen.taken =
                with_any.map(|(place, group)| (place, random.random_range(0..group.reasons.len()))).collect();
        }
        Method::Half => {
            let all: Vec<Pair> = pairs(groups).collect();
            let half = all.len().div_ceil(2);
            chosen.taken = draw(all, half, random);
        }
        Method::Perplexity | Method::Gain | Method::NoReason => {
            for (group, reason) in pairs(groups) {
                match method.cost(&scores[group], reason) {
                    Some(cost) if cost < threshold => chosen.taken.push((group, reason)),
                    Some(cost) => chosen.left.push(((group, reason), cost)),
                    None => chosen.unscored.push((group, reason)),
                }
            }
        }
        Method::Best => best(groups, scores, &mut chosen),
    }
    chosen
}

/// The cheapest of each prompt, the first of equals.
fn best(groups: &[Group], scores: &[Scores], chosen: &mut Chosen) {
    for (place, group) in groups.iter().enumerate() {
        let costs: Vec<Option<f64>> =
            (0..group.reasons.len()).map(|reason| Method::Best.cost(&scores[place], reason)).collect();
        let known = costs.iter().enumerate().filter_map(|(reason, cost)| Some((reason, (*cost)?)));
        let cheapest = known.min_by(|left, right| left.1.total_cmp(&right.1)).map(|(reason, _)| reason);
        for (reason, cost) in costs.into_iter().enumerate() {
            match cost {
                Some(_) if cheapest == Some(reason) => chosen.taken.push((place, reason)),
                Some(cost) => chosen.left.push(((place, reason), cost)),
                None => chosen.unscored.push((place, reason)),
            }
        }
    }
}

/// So many of them, at random, in order again; all, where there are no more.
pub fn draw(mut all: Vec<Pair>, count: usize, random: &mut impl Rng) -> Vec<Pair> {
    if all.len() > count {
        all.shuffle(random);
        all.truncate(count);
        all.sort_unstable();
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::BTreeSet;

    fn world(costs: &[(f64, Vec<f64>)]) -> (Vec<Group>, Vec<Scores>) {
        let group = |(_, with): &(f64, Vec<f64>)| Group {
            user_id: "u".into(),
            prompt: "p".into(),
            categories: vec![],
            title: "t".into(),
            teacher: "rule".into(),
            reasons: with.iter().map(|cost| cost.to_string()).collect(),
        };
        let scores = costs
            .iter()
            .map(|(without, with)| Scores { without: Some(*without), with: with.iter().copied().map(Some).collect() });
        (costs.iter().map(group).collect(), scores.collect())
    }

    fn random() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(5)
    }

    #[test]
    fn each_method_takes_what_its_name_says() {
        let (groups, mut scores) = world(&[(2.0, vec![1.0, 3.0]), (5.0, vec![4.0, 2.5, 2.5]), (1.0, vec![])]);
        let taken =
            |method, threshold, scores: &[Scores]| choose(method, &groups, scores, threshold, &mut random()).taken;
        assert_eq!(taken(Method::All, 0.0, &[]).len(), 5);
        assert_eq!(taken(Method::Perplexity, 2.6, &scores), [(0, 0), (1, 1), (1, 2)]);
        // Gains 1, -1, 1, 2.5, 2.5: above 1.5, as costs below -1.5.
        assert_eq!(taken(Method::Gain, -1.5, &scores), [(1, 1), (1, 2)]);
        assert_eq!(taken(Method::Best, 0.0, &scores), [(0, 0), (1, 1)]);
        assert_eq!(taken(Method::NoReason, 2.5, &scores), [(0, 0), (0, 1)]);
        assert_eq!(threshold(Method::Perplexity, &groups, &scores, 0.5, 100), Some(2.5));
        assert_eq!(threshold(Method::Perplexity, &groups, &scores, 0.5, 2), Some(2.0));
        scores[1].with[1] = None;
        let chosen = choose(Method::Best, &groups, &scores, 0.0, &mut random());
        assert_eq!(
            (chosen.taken.as_slice(), chosen.unscored.as_slice()),
            ([(0, 0), (1, 2)].as_slice(), [(1, 1)].as_slice())
        );
        assert_eq!(percentile(vec![], 0.5), None);
        assert_eq!(threshold(Method::Half, &groups, &[], 0.5, 100), None);
    }

    proptest! {
        /// Every pair is taken, left or unscored, once, whatever the method but those that draw; a draw is a subset of its size.
        #[test]
        fn pairs_are_neither_lost_nor_doubled(
            costs in prop::collection::vec((0.0f64..5.0, prop::collection::vec(0.0f64..5.0, 0..4)), 0..20), threshold in 0.0f64..5.0,
        ) {
            let (groups, scores) = world(&costs);
            let all: Vec<Pair> = pairs(&groups).collect();
            for method in [Method::Perplexity, Method::Gain, Method::NoReason, Method::Best] {
                let chosen = choose(method, &groups, &scores, threshold, &mut random());
                let mut seen: Vec<Pair> = chosen.taken.clone();
                seen.extend(chosen.left.iter().map(|(pair, _)| *pair).chain(chosen.unscored));
                seen.sort_unstable();
                prop_assert_eq!(&seen, &all);
            }
            let half = choose(Method::Half, &groups, &scores, 0.0, &mut random()).taken;
            prop_assert_eq!(half.len(), all.len().div_ceil(2));
            prop_assert_eq!(half.iter().collect::<BTreeSet<_>>().len(), half.len());
            prop_assert!(half.windows(2).all(|two| two[0] < two[1]));
            let one = choose(Method::One, &groups, &scores, 0.0, &mut random()).taken;
            prop_assert_eq!(one.len(), groups.iter().filter(|group| !group.reasons.is_empty()).count());
        }
    }
}
