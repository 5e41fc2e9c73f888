//! Which runs were made, and what they came to by seed.

use super::policy::Policy;
use super::train::{Run, Start};
use super::world::Tables;
use super::{ARMS, Cell, FACTORS, LabError, Size};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// One kind of run: indices into the cells, [`ARMS`], the arm's settings, [`FACTORS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub cell: usize,
    pub arm: usize,
    pub setting: usize,
    pub factor: usize,
}

/// The runs of every kind, in the order of the seeds.
pub(super) type Figures = BTreeMap<Kind, Vec<Run>>;

/// Makes the runs; every seed has a world, users, prompts and noise of its own, the same for all kinds.
pub(super) fn measured(cells: &[Cell], kinds: &[Kind], size: Size, seeds: &[u64]) -> Result<Figures, LabError> {
    let of_seed = |seed: &u64| -> Result<Vec<(Kind, Run)>, LabError> {
        let tables = Tables::new(*seed, size.trained + size.judged);
        let policy = Policy::taught(&tables, size.trained);
        let mut runs = Vec::with_capacity(kinds.len());
        for (at, cell) in cells.iter().enumerate() {
            let start = Start::new(&tables, &policy, cell, size, *seed, at as u64)?;
            for kind in kinds.iter().filter(|kind| kind.cell == at) {
                let arm = &ARMS[kind.arm];
                runs.push((*kind, start.run(arm, arm.settings[kind.setting], FACTORS[kind.factor])?));
            }
        }
        Ok(runs)
    };
    let all: Vec<Vec<(Kind, Run)>> = seeds.par_iter().map(of_seed).collect::<Result<_, _>>()?;
    let mut figures = Figures::new();
    for (kind, run) in all.into_iter().flatten() {
        figures.entry(kind).or_default().push(run);
    }
    Ok(figures)
}

/// Both objectives' gains of an arm, by seed.
pub(super) fn gains(runs: &[Run]) -> Vec<[f64; 2]> {
    runs.iter().map(|run| run.gains).collect()
}
