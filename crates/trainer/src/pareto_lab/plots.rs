//! Fronts over the weight, and weights over time, as SVG.

use super::arm::{Rule, WEIGHTS};
use super::cell::Cell;
use super::choose::Choice;
use super::figures::{Figures, Kind};
use super::{ARMS, train};
use crate::report::{Series, picture};

/// Arms whose weights move.
const MOVING: [Rule; 7] =
    [Rule::PopoRewards, Rule::PopoAdvantages, Rule::PopoGuarded, Rule::PopoLight, Rule::MinNorm, Rule::Saw, Rule::Nash];

/// The runs a picture of fronts is made of: arms with a weight in the first cell, at the step length that was chosen.
pub(super) fn fronts(choice: &Choice) -> Vec<Kind> {
    let weighed = ARMS.iter().enumerate().filter(|(_, arm)| arm.settings.len() == WEIGHTS.len());
    let of_arm = |arm: usize| {
        let factor = choice.of[arm].1;
        (0..WEIGHTS.len()).map(move |setting| Kind { cell: 0, arm, setting, factor })
    };
    weighed.flat_map(|(arm, _)| of_arm(arm)).collect()
}

/// CTCVR's gain over similarity's in the first cell, along the weight.
pub(super) fn front_picture(cells: &[Cell], figures: &Figures, fronts: &[Kind]) -> String {
    let Some(cell) = cells.first() else { return String::new() };
    let mean = |kind: &Kind, objective: usize| {
        let runs = figures.get(kind).map_or(&[][..], Vec::as_slice);
        runs.iter().map(|run| run.gains[objective]).sum::<f64>() / runs.len().max(1) as f64
    };
    let mut series: Vec<Series> = Vec::new();
    for (at, arm) in ARMS.iter().enumerate() {
        let own = fronts.iter().filter(|kind| kind.arm == at);
        let points: Vec<(f64, f64)> = own.map(|kind| (mean(kind, 0), mean(kind, 1))).collect();
        if !points.is_empty() {
            series.push(Series { name: arm.name.to_string(), colour: series.len(), seldom: true, points });
        }
    }
    let title = format!("CTCVR's gain over similarity's, weight .1 to .9; cell {}", cell.name);
    picture(&title, "gain in similarity", &series)
}

/// Similarity's weight over the steps, mean of the seeds, in the last cell.
pub(super) fn weight_picture(cells: &[Cell], figures: &Figures, choice: &Choice) -> String {
    let Some(last) = cells.last() else { return String::new() };
    let mut series: Vec<Series> = Vec::new();
    for (arm, one) in ARMS.iter().enumerate().filter(|(_, arm)| MOVING.contains(&arm.rule)) {
        let (setting, factor) = choice.of[arm];
        let Some(runs) = figures.get(&Kind { cell: cells.len() - 1, arm, setting, factor }) else { continue };
        let length = runs.iter().map(|run| run.trace.len()).min().unwrap_or(0);
        let mean = |at: usize| runs.iter().map(|run| run.trace[at]).sum::<f64>() / runs.len() as f64;
        let points = (0..length).map(|at| ((at * train::TRACED) as f64, mean(at))).collect();
        series.push(Series { name: one.name.to_string(), colour: series.len(), seldom: false, points });
    }
    picture(&format!("weight of similarity; cell {}", last.name), "step", &series)
}
