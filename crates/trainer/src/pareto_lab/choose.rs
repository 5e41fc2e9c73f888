//! Step length and setting of every arm, on seeds that are used for nothing else: the best smallest cell.

use super::arm::{Role, Rule};
use super::figures::{Figures, Kind, gains};
use super::gains::{Gains, arm_at};
use super::{ARMS, FACTORS, LabError};

/// What is tried on the seeds that choose: every arm, setting and step length in every cell; [`Rule::Frozen`] takes what its original has.
pub(super) fn tried(cells: usize) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for cell in 0..cells {
        for (arm, one) in ARMS.iter().enumerate().filter(|(_, arm)| arm.rule != Rule::Frozen) {
            let settings = 0..one.settings.len();
            kinds.extend(
                settings.flat_map(|setting| (0..FACTORS.len()).map(move |factor| Kind { cell, arm, setting, factor })),
            );
        }
    }
    kinds
}

/// What was chosen, by arm.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// (setting, factor)
    pub of: Vec<(usize, usize)>,
    /// Cells that were not refused.
    pub accepted: Vec<usize>,
    /// Best candidate of each cell, by its balanced gain with what was chosen.
    pub best: Vec<usize>,
}

impl Choice {
    /// The runs that were chosen, in every cell.
    pub fn kinds(&self, cells: usize) -> Vec<Kind> {
        let of_cell = |cell: usize| {
            self.of.iter().enumerate().map(move |(arm, (setting, factor))| Kind {
                cell,
                arm,
                setting: *setting,
                factor: *factor,
            })
        };
        (0..cells).flat_map(of_cell).collect()
    }
}

/// Chooses.
pub(super) fn chosen(figures: &Figures, cells: usize) -> Result<Choice, LabError> {
    let alone = [0, 1].map(|objective| best_factor_alone(figures, cells, objective));
    let of_arm = |kind: Kind| figures.get(&kind).map(|runs| gains(runs)).unwrap_or_default();
    // The cell's two arms of one objective, then the one in question.
    let with = |cell: usize, arm: usize, setting: usize, factor: usize| {
        let own = |objective: usize| of_arm(Kind { cell, arm: objective, setting: 0, factor: alone[objective] });
        vec![own(0), own(1), of_arm(Kind { cell, arm, setting, factor })]
    };
    let accepted = Gains::new((0..cells).map(|cell| with(cell, 0, 0, alone[0])).collect()).accepted()?;
    let worst = |arm: usize, setting: usize, factor: usize| {
        let compared = Gains::new(accepted.iter().map(|cell| with(*cell, arm, setting, factor)).collect());
        let whole = compared.whole();
        (0..accepted.len()).map(|cell| compared.balanced(cell, 2, &whole)).fold(f64::INFINITY, f64::min)
    };
    let mut of: Vec<(usize, usize)> = vec![(0, alone[0]), (0, alone[1])];
    for (arm, one) in ARMS.iter().enumerate().skip(2) {
        let mut best = (0, 0, f64::NEG_INFINITY);
        for setting in 0..one.settings.len() {
            for factor in 0..FACTORS.len() {
                let smallest = if one.rule == Rule::Frozen { f64::NAN } else { worst(arm, setting, factor) };
                if smallest > best.2 {
                    best = (setting, factor, smallest);
                }
            }
        }
        of.push((best.0, best.1));
    }
    of[arm_at("frozen")?] = of[arm_at("popo-guarded")?];
    let best = (0..cells).map(|cell| best_candidate(&of, cell, &with)).collect();
    Ok(Choice { of, accepted, best })
}

/// The candidate with the largest balanced gain in a cell.
fn best_candidate(
    of: &[(usize, usize)],
    cell: usize,
    with: &dyn Fn(usize, usize, usize, usize) -> Vec<Vec<[f64; 2]>>,
) -> usize {
    let candidates = (0..ARMS.len()).filter(|arm| matches!(ARMS[*arm].role, Role::Candidate(_)));
    let balanced = |arm: usize| {
        let compared = Gains::new(vec![with(cell, arm, of[arm].0, of[arm].1)]);
        compared.balanced(0, 2, &compared.whole())
    };
    let all = candidates.map(|arm| (arm, balanced(arm)));
    all.fold((2, f64::NEG_INFINITY), |best, one| if one.1 > best.1 { one } else { best }).0
}

/// The step length whose worst cell is best for an arm of one objective: its own gain as a share of its best in that cell.
fn best_factor_alone(figures: &Figures, cells: usize, objective: usize) -> usize {
    let own = |cell: usize, factor: usize| -> f64 {
        let runs = figures.get(&Kind { cell, arm: objective, setting: 0, factor });
        runs.map_or(0.0, |runs| runs.iter().map(|run| run.gains[objective]).sum())
    };
    let worst = |factor: usize| {
        let share = |cell: usize| {
            let best = (0..FACTORS.len()).map(|other| own(cell, other)).fold(f64::NEG_INFINITY, f64::max);
            if best > 0.0 { own(cell, factor) / best } else { 1.0 }
        };
        (0..cells).map(share).fold(f64::INFINITY, f64::min)
    };
    (1..FACTORS.len()).fold(0, |best, factor| if worst(factor) > worst(best) { factor } else { best })
}
