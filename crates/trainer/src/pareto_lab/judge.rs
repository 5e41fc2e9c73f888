//! What fresh seeds say: non-inferiority in every cell, the default, the declared contrasts.

use super::arm::Role;
use super::choose::Choice;
use super::gains::{Gains, Metric, arm_at};
use super::{ARMS, LabError};
use crate::stats::{Experiment, Interval, holm};

/// An arm may be so much balanced gain below the best arm of a cell.
pub const MARGIN: f64 = 0.05;

/// One arm on the fresh seeds.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// In the order of [`Metric::ALL`].
    pub metrics: [Interval; 4],
    /// Lower end of the 95 % interval of (arm − best arm of the cell), in its worst cell.
    pub below_best: f64,
}

/// A declared contrast.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub name: String,
    pub metric: String,
    pub primary: bool,
    pub interval: Interval,
    /// By Holm's rule among the primary ones.
    pub adjusted: Option<f64>,
}

/// All that is said.
#[derive(Debug, Clone)]
pub(super) struct Judged {
    /// Cells refused by neither half of the seeds.
    pub accepted: Vec<usize>,
    pub standings: Vec<Standing>,
    pub default: usize,
    /// Whether the default is non-inferior, or only has the best smallest cell.
    pub non_inferior: bool,
    pub contrasts: Vec<Shown>,
}

pub(super) fn judged(fresh: &Gains, choice: &Choice, experiment: &Experiment) -> Result<Judged, LabError> {
    let on_fresh = fresh.accepted()?;
    let accepted: Vec<usize> = choice.accepted.iter().copied().filter(|cell| on_fresh.contains(cell)).collect();
    if accepted.is_empty() {
        return Err(LabError::NoCell);
    }
    let mut standings = Vec::new();
    for arm in 0..ARMS.len() {
        let of = |metric: Metric| fresh.interval(|seeds| fresh.metric(metric, &accepted, arm, seeds));
        let [balanced, smallest, sum, volume] = Metric::ALL.map(of);
        let mut below_best = f64::INFINITY;
        for cell in &accepted {
            let best = choice.best[*cell];
            let behind =
                fresh.interval(|seeds| fresh.balanced(*cell, arm, seeds) - fresh.balanced(*cell, best, seeds))?;
            below_best = below_best.min(behind.low);
        }
        standings.push(Standing { metrics: [balanced?, smallest?, sum?, volume?], below_best });
    }
    let (default, non_inferior) = default(&standings);
    let contrasts = contrasts(fresh, &accepted, experiment)?;
    Ok(Judged { accepted, standings, default, non_inferior, contrasts })
}

/// The simplest candidate that is non-inferior in every cell; where there is none, the one with the best smallest cell.
fn default(standings: &[Standing]) -> (usize, bool) {
    let mut candidates: Vec<(usize, usize)> = ARMS
        .iter()
        .enumerate()
        .filter_map(|(at, arm)| match arm.role {
            Role::Candidate(order) => Some((order, at)),
            _ => None,
        })
        .collect();
    candidates.sort_unstable();
    if let Some((_, at)) = candidates.iter().find(|(_, at)| standings[*at].below_best > -MARGIN) {
        return (*at, true);
    }
    let smallest = |at: usize| standings[at].metrics[1].estimate;
    let first = candidates.first().map_or(0, |(_, at)| *at);
    (candidates.iter().fold(first, |best, (_, at)| if smallest(*at) > smallest(best) { *at } else { best }), false)
}

fn contrasts(fresh: &Gains, accepted: &[usize], experiment: &Experiment) -> Result<Vec<Shown>, LabError> {
    let mut shown = Vec::new();
    for contrast in &experiment.contrasts {
        let metric = Metric::ALL.into_iter().find(|metric| metric.name() == contrast.metric);
        let metric = metric.ok_or_else(|| LabError::NoMetric(contrast.metric.clone()))?;
        let (arm, against) = (arm_at(&contrast.arm)?, arm_at(&contrast.against)?);
        let of = |arm: usize, seeds: &[f64]| fresh.metric(metric, accepted, arm, seeds);
        shown.push(Shown {
            name: contrast.name.clone(),
            metric: contrast.metric.clone(),
            primary: contrast.primary,
            interval: fresh.interval(|seeds| of(arm, seeds) - of(against, seeds))?,
            adjusted: None,
        });
    }
    let p: Vec<f64> = shown.iter().filter(|one| one.primary).map(|one| one.interval.p).collect();
    for (one, adjusted) in shown.iter_mut().filter(|one| one.primary).zip(holm(&p)) {
        one.adjusted = Some(adjusted);
    }
    Ok(shown)
}
