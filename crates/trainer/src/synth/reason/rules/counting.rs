//! Rules that copy and count.
//!
//! In: [`Shown`]. Out: a leaf. Caller: the set of rules, the world test.

use super::super::catalogue::LEAF_COUNT;
#[cfg(test)]
use super::super::cause::Act;
use super::shown::Shown;
use super::{Case, accuracy};

#[cfg(test)]
pub(in crate::synth::reason) fn newest_purchase(shown: &Shown) -> usize {
    shown.lines.iter().find(|line| line.act == Act::Purchase).unwrap_or(&shown.lines[0]).leaf
}

pub(in crate::synth::reason) fn best(scores: &[f64]) -> usize {
    let better = |best: usize, leaf: usize| if scores[leaf] > scores[best] { leaf } else { best };
    (1..scores.len()).fold(0, better)
}

/// Votes of lines, the newest heaviest.
#[cfg(test)]
pub(in crate::synth::reason) fn by_recency(shown: &Shown) -> usize {
    let mut votes = vec![0.0; LEAF_COUNT];
    for (age, line) in shown.lines.iter().enumerate() {
        votes[line.leaf] += 0.7_f64.powi(age as i32);
    }
    best(&votes)
}

/// Which leaves are bought after which, summed over the lines and mixed with recency.
pub(in crate::synth::reason) struct Transitions {
    /// Leaf of a line → share of each leaf bought next.
    table: Vec<[f64; LEAF_COUNT]>,
    decay: f64,
    mixed_decay: f64,
    mix: f64,
    /// Weight of click, cart line, purchase.
    acts: [f64; 3],
}

impl Transitions {
    /// Counts on four fifths, chooses weights on the rest.
    pub(in crate::synth::reason) fn tuned(train: &[Case]) -> Self {
        let (counted, judged) = train.split_at(train.len() * 4 / 5);
        let mut table = vec![[1.0; LEAF_COUNT]; LEAF_COUNT];
        for case in counted {
            for line in &case.shown.lines {
                table[line.leaf][case.target] += 1.0;
            }
        }
        for row in &mut table {
            let total: f64 = row.iter().sum();
            row.iter_mut().for_each(|count| *count /= total);
        }
        let mut rule = Transitions { table, decay: 0.0, mixed_decay: 0.0, mix: 0.0, acts: [1.0; 3] };
        let mut chosen = (0.0, 0.0, 0.0, 0.0, [1.0; 3]);
        for acts in [[1.0, 1.0, 1.0], [1.0, 1.0, 0.3], [1.0, 2.0, 0.3], [0.3, 1.0, 1.0], [1.0, 2.0, 0.0]] {
            for (decay, mixed_decay) in [(0.0, 1.0), (0.4, 1.0), (0.7, 1.0), (0.0, 0.8), (0.4, 0.8), (0.7, 0.7)] {
                for mix in [0.0, 0.3, 1.0, 3.0, 1e3] {
                    (rule.decay, rule.mixed_decay, rule.mix, rule.acts) = (decay, mixed_decay, mix, acts);
                    let reached = accuracy(judged, |shown| rule.answer(shown));
                    if reached > chosen.0 {
                        chosen = (reached, decay, mixed_decay, mix, acts);
                    }
                }
            }
        }
        (_, rule.decay, rule.mixed_decay, rule.mix, rule.acts) = chosen;
        rule
    }

    pub(in crate::synth::reason) fn answer(&self, shown: &Shown) -> usize {
        let mut votes = vec![0.0; LEAF_COUNT];
        for (age, line) in shown.lines.iter().enumerate() {
            let act = self.acts[line.act as usize];
            votes[line.leaf] += act * self.decay.powi(age as i32);
            let weight = self.mix * act * self.mixed_decay.powi(age as i32);
            for (vote, share) in votes.iter_mut().zip(&self.table[line.leaf]) {
                *vote += weight * share;
            }
        }
        best(&votes)
    }
}
