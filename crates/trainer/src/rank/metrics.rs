//! How well chances tell what happened, and whether they are the chances they claim to be.
//!
//! In: predicted chances and what came of each impression. Out: [`TargetFigures`] of clicks and of clicks that converted.

use crate::stats::auc;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Buckets of a calibration, of equal numbers of impressions.
const BUCKETS: usize = 20;
/// Nothing is certain: keeps the log-loss finite.
const LEAST: f64 = 1e-7;

/// An impression with its predicted chances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Whose; any number that tells users apart.
    pub user: usize,
    /// P(click).
    pub click: f64,
    /// P(conversion | click).
    pub conversion: f64,
    /// A click came of it.
    pub clicked: bool,
    /// The click converted.
    pub converted: bool,
}

/// Impressions of like chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// How many.
    pub impressions: usize,
    /// Mean predicted chance.
    pub predicted: f64,
    /// Share that it came to.
    pub observed: f64,
}

/// Figures of one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetFigures {
    /// Impressions looked at.
    pub impressions: usize,
    /// Those among them that it came to.
    pub positive: usize,
    /// Over all impressions.
    pub auc: Option<f64>,
    /// Mean of the users' AUC, weighted by their impressions (Zhou et al. 2018, eq. 7), over users with both kinds.
    pub gauc: Option<f64>,
    /// Users with both kinds.
    pub gauc_users: usize,
    /// Nats an impression.
    pub log_loss: f64,
    /// Sum of the chances over the number of positives.
    pub predicted_over_observed: f64,
    /// From the lowest chance to the highest.
    pub calibration: Vec<Bucket>,
}

/// Figures of clicks, and of clicks that converted.
pub fn figures(scored: &[Scored]) -> (TargetFigures, TargetFigures) {
    let clicks = scored.iter().map(|one| (one.user, one.click, one.clicked)).collect();
    let conversions = scored.iter().map(|one| (one.user, one.click * one.conversion, one.converted)).collect();
    (target(clicks), target(conversions))
}

fn target(mut all: Vec<(usize, f64, bool)>) -> TargetFigures {
    let positive = all.iter().filter(|(_, _, came)| *came).count();
    let mut users: BTreeMap<usize, Vec<(f64, bool)>> = BTreeMap::new();
    all.iter().for_each(|&(user, chance, came)| users.entry(user).or_default().push((chance, came)));
    let by_user: Vec<(f64, usize)> = users
        .into_values()
        .filter_map(|shown| {
            let count = shown.len();
            Some((auc(shown)?, count))
        })
        .collect();
    let weight: usize = by_user.iter().map(|(_, count)| count).sum();
    let gauc = by_user.iter().map(|(area, count)| area * *count as f64).sum::<f64>() / weight as f64;
    let loss = |&(_, chance, came): &(usize, f64, bool)| -> f64 {
        let chance = chance.clamp(LEAST, 1.0 - LEAST);
        -(if came { chance } else { 1.0 - chance }).ln()
    };
    let predicted: f64 = all.iter().map(|(_, chance, _)| chance).sum();
    let count = all.len();
    let log_loss = all.iter().map(loss).sum::<f64>() / count as f64;
    let area = auc(all.iter().map(|&(_, chance, came)| (chance, came)));
    all.sort_by(|left, right| left.1.total_cmp(&right.1));
    TargetFigures {
        impressions: count,
        positive,
        auc: area,
        gauc: (weight > 0).then_some(gauc),
        gauc_users: by_user.len(),
        log_loss,
        predicted_over_observed: predicted / positive as f64,
        calibration: all.chunks(count.div_ceil(BUCKETS).max(1)).map(bucket).collect(),
    }
}

fn bucket(shown: &[(usize, f64, bool)]) -> Bucket {
    let count = shown.len() as f64;
    Bucket {
        impressions: shown.len(),
        predicted: shown.iter().map(|(_, chance, _)| chance).sum::<f64>() / count,
        observed: shown.iter().filter(|(_, _, came)| *came).count() as f64 / count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_hand() {
        let one = |user, click, conversion, clicked, converted| Scored { user, click, conversion, clicked, converted };
        let scored = [
            one(0, 0.9, 0.5, true, true),
            one(0, 0.2, 0.5, false, false),
            one(0, 0.4, 0.5, true, false),
            one(1, 0.3, 0.5, false, false),
            one(1, 0.1, 0.5, true, false),
            one(2, 0.7, 0.5, false, false),
        ];
        let (clicks, conversions) = figures(&scored);
        assert_eq!((clicks.impressions, clicks.positive, clicks.gauc_users), (6, 3, 2));
        // Pairs: .9 beats .2 .3 .7; .4 beats .2 .3; .1 beats none: 5 of 9.
        assert!((clicks.auc.unwrap_or(0.0) - 5.0 / 9.0).abs() < 1e-12);
        // User 0: all right, three impressions; user 1: wrong, two; user 2 has one kind only.
        assert!((clicks.gauc.unwrap_or(0.0) - 3.0 / 5.0).abs() < 1e-12);
        let expected = -(0.9_f64.ln() + 0.8_f64.ln() + 0.4_f64.ln() + 0.7_f64.ln() + 0.1_f64.ln() + 0.3_f64.ln()) / 6.0;
        assert!((clicks.log_loss - expected).abs() < 1e-12);
        assert!((clicks.predicted_over_observed - 2.6 / 3.0).abs() < 1e-12);
        assert_eq!((conversions.positive, conversions.gauc_users, conversions.auc), (1, 1, Some(1.0)));
        assert_eq!(clicks.calibration.len(), 6);
        assert_eq!(clicks.calibration[0], Bucket { impressions: 1, predicted: 0.1, observed: 1.0 });
    }
}
