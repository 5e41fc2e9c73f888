//! The whole experiment: choose, then confirm.

use super::cell::{CELLS, Cell};
use super::choose::{chosen, tried};
use super::figures::{Figures, Kind, gains, measured};
use super::gains::Gains;
use super::judge::judged;
use super::{ARMS, LabError, Size, plots, report};
use crate::stats::{Experiment, put_into};
use serde_json::Value;
use std::path::Path;

/// How much is run, and on which seeds.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What is made hard.
    pub cells: &'static [Cell],
    /// Of every run.
    pub size: Size,
    /// Seeds that choose step lengths and settings, from 0.
    pub choosing: u64,
    /// Seeds that confirm, right after those.
    pub fresh: u64,
}

impl Plan {
    /// As declared in `docs/experiments/pareto.toml`.
    pub const DECLARED: Plan =
        Plan { cells: &CELLS, size: Size { trained: 400, judged: 400, steps: 400 }, choosing: 24, fresh: 24 };
}

/// What is kept of a lab.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Tables.
    pub markdown: String,
    /// Choices, and each arm's gains by cell and seed.
    pub row: Value,
    /// (name, SVG)
    pub pictures: Vec<(&'static str, String)>,
}

impl Outcome {
    /// Leaves row and pictures in a folder, and the tables in a page between `<!-- pareto:begin -->` and `<!-- pareto:end -->`.
    pub fn write(&self, folder: &Path, page: &Path) -> Result<(), LabError> {
        let refuse = |path: &Path, message: String| LabError::File { path: path.display().to_string(), message };
        let text = std::fs::read_to_string(page).map_err(|error| refuse(page, error.to_string()))?;
        let no_place = "has no place for the tables: add <!-- pareto:begin --> and <!-- pareto:end -->";
        let text = put_into(&text, "pareto", &self.markdown).ok_or_else(|| refuse(page, no_place.to_string()))?;
        let write =
            |path: &Path, text: &str| std::fs::write(path, text).map_err(|error| refuse(path, error.to_string()));
        std::fs::create_dir_all(folder).map_err(|error| refuse(folder, error.to_string()))?;
        write(&folder.join("lab.json"), &format!("{}\n", self.row))?;
        for (name, svg) in &self.pictures {
            write(&folder.join(format!("{name}.svg")), svg)?;
        }
        write(page, &text)
    }
}

/// Runs a plan. `commit`: of the code, for the row; `told` hears what is done next.
pub fn run(plan: &Plan, experiment: &Experiment, commit: &str, told: &dyn Fn(&str)) -> Result<Outcome, LabError> {
    let cells = plan.cells.len();
    let kinds = tried(cells);
    told(&format!("{} runs choose on {} seeds", kinds.len() as u64 * plan.choosing, plan.choosing));
    let seeds: Vec<u64> = (0..plan.choosing + plan.fresh).collect();
    let (first, second) = seeds.split_at(plan.choosing as usize);
    let choice = chosen(&measured(plan.cells, &kinds, plan.size, first)?, cells)?;
    let mut kinds = choice.kinds(cells);
    let fronts = plots::fronts(&choice);
    kinds.extend(fronts.iter().filter(|kind| !choice_has(&choice.of, kind)));
    told(&format!("{} runs confirm on {} others", kinds.len() as u64 * plan.fresh, plan.fresh));
    let figures = measured(plan.cells, &kinds, plan.size, second)?;
    let fresh = Gains::new((0..cells).map(|cell| of_cell(&figures, &choice.of, cell)).collect());
    let judged = judged(&fresh, &choice, experiment)?;
    let pictures = vec![
        ("fronts", plots::front_picture(plan.cells, &figures, &fronts)),
        ("weights", plots::weight_picture(plan.cells, &figures, &choice)),
    ];
    let found = report::Found { plan, commit, choice: &choice, fresh: &fresh, figures: &figures, judged: &judged };
    Ok(Outcome { markdown: found.markdown()?, row: found.row(), pictures })
}

fn choice_has(of: &[(usize, usize)], kind: &Kind) -> bool {
    of[kind.arm] == (kind.setting, kind.factor)
}

/// Gains of all arms with what was chosen.
fn of_cell(figures: &Figures, of: &[(usize, usize)], cell: usize) -> Vec<Vec<[f64; 2]>> {
    let runs = |arm: usize| figures.get(&Kind { cell, arm, setting: of[arm].0, factor: of[arm].1 });
    (0..ARMS.len()).map(|arm| runs(arm).map(|runs| gains(runs)).unwrap_or_default()).collect()
}
