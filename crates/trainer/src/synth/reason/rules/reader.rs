//! A reader who knows what follows from what: which causes hold by the prompt, and a fitted logit over them.

use super::super::catalogue::{LEAF_COUNT, Tables};
use super::super::cause::{DOMAINS, Facts, Held, WINDOW, holding};
use super::super::person::HOBBIES;
use super::super::shelf::LEAVES;
use super::Case;
use super::counting::best;
use super::shown::Shown;

/// How much more a click in one of the hobby's L1 speaks for it than one elsewhere, in log: .70 of the impressions fall on 10
/// leaves, so a leaf there is shown 14 times as often as another.
const HOBBY_CLICK: f64 = 2.4;
const EPOCHS: usize = 12;
const RATE: f64 = 0.02;

pub(in crate::synth::reason) struct Reader {
    tables: Tables,
    /// By cause, and whether the newest line is in its domain.
    weights: [[f64; 2]; DOMAINS.len()],
}

/// A leaf that a cause leads to: cause, in its domain or not, certainty.
struct Candidate {
    leaf: usize,
    place: usize,
    fits: usize,
    certainty: f64,
}

impl Reader {
    /// Maximum likelihood by stochastic gradient; ten numbers.
    pub(in crate::synth::reason) fn fitted(tables: Tables, train: &[Case]) -> Self {
        let mut reader = Reader { tables, weights: [[1.0; 2]; DOMAINS.len()] };
        let prepared: Vec<_> = train.iter().map(|case| (reader.candidates(&case.shown), case.target)).collect();
        for epoch in 0..EPOCHS {
            let rate = RATE / (1.0 + epoch as f64);
            for (candidates, target) in &prepared {
                let mut shares = reader.scores(candidates);
                shares.iter_mut().for_each(|score| *score = score.exp());
                let total: f64 = shares.iter().sum();
                for candidate in candidates {
                    let wanted = f64::from(u8::from(candidate.leaf == *target));
                    let slope = wanted - shares[candidate.leaf] / total;
                    reader.weights[candidate.place][candidate.fits] += rate * slope * candidate.certainty;
                }
            }
        }
        reader
    }

    /// Share of each hobby, by the clicked lines.
    fn hobbies(&self, shown: &Shown) -> Vec<f64> {
        let clicks = |hobby: usize| {
            let own = |leaf: usize| self.tables.hobby_tops[hobby].contains(&(leaf / LEAVES));
            shown.lines.iter().filter(|line| line.act == super::super::cause::Act::Click && own(line.leaf)).count()
        };
        let weights: Vec<f64> = (0..HOBBIES.len()).map(|hobby| (HOBBY_CLICK * clicks(hobby) as f64).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    }

    fn candidates(&self, shown: &Shown) -> Vec<Candidate> {
        let before = shown.before_clicks();
        let lines = &before[..before.len().min(WINDOW)];
        let held = |hobby: usize| {
            let need = shown.needs.first().copied();
            let Shown { season, stage, budget, .. } = *shown;
            holding(&self.tables, &Facts { lines, need, hobby, season, stage, budget })
        };
        let candidate = |one: &Held, certainty: f64| Candidate {
            leaf: one.leaf,
            place: one.place(),
            fits: usize::from(one.place() == shown.domains[0]),
            certainty,
        };
        let hobbies = self.hobbies(shown);
        let mut found = Vec::new();
        for (hobby, share) in hobbies.iter().enumerate().filter(|(_, share)| **share > 0.05) {
            let season = held(hobby).into_iter().find(|one| one.place() == 0);
            found.extend(season.map(|one| candidate(&one, *share)));
        }
        // The others do not depend on the hobby.
        found.extend(held(0).iter().filter(|one| one.place() != 0).map(|one| candidate(one, 1.0)));
        found
    }

    fn scores(&self, candidates: &[Candidate]) -> Vec<f64> {
        let mut scores = vec![0.0; LEAF_COUNT];
        for candidate in candidates {
            scores[candidate.leaf] += self.weights[candidate.place][candidate.fits] * candidate.certainty;
        }
        scores
    }

    pub(in crate::synth::reason) fn answer(&self, shown: &Shown) -> usize {
        best(&self.scores(&self.candidates(shown)))
    }
}
