//! Fitted multinomial logits over single facts of the prompt, without any interplay: the facts alone, or also where in the
//! history they stand. The sum of what each says for a leaf is more than it looks: where two facts point to few leaves each, it
//! finds the leaf that both point to.

use super::super::catalogue::LEAF_COUNT;
use super::super::cause::Act;
use super::super::shelf::LEAVES;
use super::Case;
use super::shown::Shown;

const EPOCHS: usize = 12;
const RATE: f32 = 0.35;
/// Features of a leaf: each act, and each act's newest.
const LEAF_FEATURES: usize = 6;
const ACTS: usize = 3;

pub(in crate::synth::reason) struct Logit {
    detail: Detail,
    /// By feature, then leaf.
    weights: Vec<[f32; LEAF_COUNT]>,
}

/// Which features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::synth::reason) enum Detail {
    /// Profile, searches, newest domain; which leaves were clicked, carted, bought.
    Facts,
    /// Also which are the newest, how often an L1 was clicked, which purchases are old, the tier of cart lines.
    Places,
}

/// Numbers of the facts that are there.
fn facts(shown: &Shown, detail: Detail) -> Vec<usize> {
    let mut found = vec![0, 1 + shown.season, 5 + shown.stage, 9 + shown.budget, 11 + shown.domains[0]];
    found.push(16 + shown.needs[0]);
    found.extend(shown.needs.get(1).map(|need| 22 + need));
    found.extend(shown.lines.iter().map(|line| LINES + line.leaf * LEAF_FEATURES + line.act as usize));
    if detail == Detail::Places {
        found.extend(places(shown));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// What the order of the lines and their counts say.
fn places(shown: &Shown) -> Vec<usize> {
    let mut found = vec![REST + 200 + shown.lines[0].leaf];
    let mut seen = [false; ACTS];
    let mut clicked = [0; LEAF_COUNT / LEAVES];
    for (age, line) in shown.lines.iter().enumerate() {
        let act = line.act as usize;
        if !seen[act] {
            seen[act] = true;
            found.push(LINES + line.leaf * LEAF_FEATURES + ACTS + act);
        }
        match line.act {
            Act::Click => clicked[line.leaf / LEAVES] += 1,
            Act::Cart => found.push(REST + 400 + line.tier),
            Act::Purchase if age >= 5 => found.push(REST + 100 + line.leaf),
            Act::Purchase => {}
        }
    }
    let counted = clicked.into_iter().enumerate().filter(|(_, count)| *count > 0);
    found.extend(counted.map(|(top, count)| REST + top * 4 + usize::min(count, 4) - 1));
    found
}

/// First feature of the leaves, and the first after them.
const LINES: usize = 28;
const REST: usize = LINES + LEAF_COUNT * LEAF_FEATURES;
/// Number of features.
const FEATURES: usize = REST + 402;

impl Logit {
    /// Stochastic gradient with AdaGrad's rate for each feature.
    pub(in crate::synth::reason) fn fitted(train: &[Case], detail: Detail) -> Self {
        let prepared: Vec<(Vec<usize>, usize)> =
            train.iter().map(|case| (facts(&case.shown, detail), case.target)).collect();
        let mut logit = Logit { detail, weights: vec![[0.0; LEAF_COUNT]; FEATURES] };
        let mut squares = vec![1.0_f32; FEATURES];
        for epoch in 0..EPOCHS {
            let rate = RATE / (1.0 + epoch as f32);
            for step in 0..prepared.len() {
                // A fixed order that mixes users and splits: 7,919 is prime and divides no number of cases here.
                let (found, target) = &prepared[(step * 7_919) % prepared.len()];
                let mut gradient = logit.shares(found);
                gradient[*target] -= 1.0;
                let square: f32 = gradient.iter().map(|one| one * one).sum();
                for feature in found {
                    squares[*feature] += square;
                    let pace = rate / squares[*feature].sqrt();
                    for (weight, slope) in logit.weights[*feature].iter_mut().zip(&gradient) {
                        *weight -= pace * slope;
                    }
                }
            }
        }
        logit
    }

    fn scores(&self, found: &[usize]) -> [f32; LEAF_COUNT] {
        let mut scores = [0.0; LEAF_COUNT];
        for feature in found {
            for (score, weight) in scores.iter_mut().zip(&self.weights[*feature]) {
                *score += weight;
            }
        }
        scores
    }

    fn shares(&self, found: &[usize]) -> [f32; LEAF_COUNT] {
        let mut shares = self.scores(found);
        let most = shares.iter().copied().fold(f32::MIN, f32::max);
        shares.iter_mut().for_each(|score| *score = (*score - most).exp());
        let total: f32 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share /= total);
        shares
    }

    pub(in crate::synth::reason) fn answer(&self, shown: &Shown) -> usize {
        let scores = self.scores(&facts(shown, self.detail));
        (1..LEAF_COUNT).fold(0, |best, leaf| if scores[leaf] > scores[best] { leaf } else { best })
    }
}
