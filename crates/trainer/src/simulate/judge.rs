//! How good a simulator's choice is, where the truth is known.
//!
//! In: of each user the items that roll-outs named, with what the simulator and what the oracle says of them. Out: figures. Called by
//! `stages`.

use super::{Known, Level, Telemetry};
use crate::stats::{Interval, Resampling, Sample, StatsError, interval, ratio_of_means, spearman};
use serde::{Deserialize, Serialize};

/// A user with fewer different items than this has no rank correlation.
const LEAST_PAIRS: usize = 3;
const LEVEL: f64 = 0.95;

/// What one user's roll-outs named: each item once, in the order of its first mention.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Choice {
    /// What the simulator says, and the true chance.
    pub items: Vec<(Known, f64)>,
}

/// Figures over users; a user counts once, whatever was named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimulatorFigures {
    /// Users whose roll-outs named an item at all.
    pub users: usize,
    /// Users whose roll-outs named none.
    pub users_without_items: usize,
    /// Different items a user, mean.
    pub items: f64,
    /// True chance of the item that the simulator puts first, mean.
    pub chosen: f64,
    /// Of the best of the items, mean.
    pub best: f64,
    /// Of all of them, mean: what a draw is worth.
    pub drawn: f64,
    /// `chosen` / `best`.
    pub share: Interval,
    /// (`chosen` − `drawn`) / (`best` − `drawn`): 0 = no better than a draw, 1 = the truth.
    pub gain_share: Interval,
    /// Spearman's coefficient between simulator and truth over a user's items whose pairs the table has; mean over the users with at least
    /// three of them.
    pub spearman: Interval,
    /// Those users.
    pub spearman_users: usize,
    /// Share of the roll-outs whose pair is in the table.
    pub hit_rate: f64,
    /// Share that name no item.
    pub ungrounded_share: f64,
    /// Counts.
    pub telemetry: Telemetry,
}

/// Figures of all users.
pub fn figures(choices: &[Choice], telemetry: Telemetry) -> Result<SimulatorFigures, StatsError> {
    let with: Vec<&Choice> = choices.iter().filter(|choice| !choice.items.is_empty()).collect();
    let sample =
        |of: &dyn Fn(&Choice) -> f64| Sample::of_users(&with.iter().map(|choice| of(choice)).collect::<Vec<_>>());
    let chosen = sample(&chosen)?;
    let best = sample(&|choice| choice.items.iter().map(|item| item.1).fold(0.0, f64::max))?;
    let drawn = sample(&|choice| choice.items.iter().map(|item| item.1).sum::<f64>() / choice.items.len() as f64)?;
    let correlations: Vec<f64> = with.iter().filter_map(|choice| correlation(choice)).collect();
    let ratio = |above: &Sample, below: &Sample| ratio_of_means(above, below, LEVEL, Resampling::default());
    Ok(SimulatorFigures {
        users: with.len(),
        users_without_items: choices.len() - with.len(),
        items: with.iter().map(|choice| choice.items.len()).sum::<usize>() as f64 / with.len() as f64,
        chosen: chosen.mean(),
        best: best.mean(),
        drawn: drawn.mean(),
        share: ratio(&chosen, &best)?,
        gain_share: ratio(&chosen.minus(&drawn)?, &best.minus(&drawn)?)?,
        spearman: interval(&Sample::of_users(&correlations)?, LEVEL)?,
        spearman_users: correlations.len(),
        hit_rate: telemetry.hit_rate(),
        ungrounded_share: telemetry.ungrounded_share(),
        telemetry,
    })
}

/// The true chance of the item that the simulator puts first; among equals the one named first.
fn chosen(choice: &Choice) -> f64 {
    let better =
        |best: (f64, f64), item: &(Known, f64)| if item.0.ctcvr > best.0 { (item.0.ctcvr, item.1) } else { best };
    choice.items.iter().fold((f64::NEG_INFINITY, 0.0), better).1
}

fn correlation(choice: &Choice) -> Option<f64> {
    let hit = choice.items.iter().filter(|(known, _)| known.level == Level::Pair);
    let pairs: Vec<(f64, f64)> = hit.map(|(known, truth)| (known.ctcvr, *truth)).collect();
    if pairs.len() < LEAST_PAIRS { None } else { spearman(&pairs) }
}
