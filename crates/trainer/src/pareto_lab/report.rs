//! A lab's tables, and the row that is kept of it.

use super::arm::{Role, WEIGHTS};
use super::choose::Choice;
use super::figures::{Figures, Kind};
use super::gains::Gains;
use super::judge::{Judged, MARGIN};
use super::lab::Plan;
use super::{ARMS, FACTORS, LabError, OBJECTIVES, ROLLOUTS};
use crate::stats::Interval;
use serde_json::{Value, json};
use std::fmt::Write;

/// Everything that is told of.
pub(super) struct Found<'a> {
    pub plan: &'a Plan,
    pub commit: &'a str,
    pub choice: &'a Choice,
    pub fresh: &'a Gains,
    pub figures: &'a Figures,
    pub judged: &'a Judged,
}

impl Found<'_> {
    /// The tables. Writing to a string cannot fail, so results of `write!` are dropped.
    pub fn markdown(&self) -> Result<String, LabError> {
        let Plan { size, choosing, fresh, cells } = self.plan;
        let mut text = format!(
            "Commit {}; {choosing} seeds choose, {fresh} others confirm; {} users train, {} are judged, {} steps of {ROLLOUTS} roll-outs.\n\n",
            self.commit, size.trained, size.judged, size.steps
        );
        let default = ARMS[self.judged.default].name;
        let why = match self.judged.non_inferior {
            true => format!(
                "the simplest arm that is in no cell more than {MARGIN} below that cell's best arm (lower 95 %)"
            ),
            false => format!(
                "no arm is in every cell at most {MARGIN} below that cell's best arm (lower 95 %), so the one with the best worst cell"
            ),
        };
        let _ = writeln!(text, "**Default: {default}**: {why}.\n");
        self.arms(&mut text);
        let _ = writeln!(text, "\nBalanced gain by cell:\n");
        self.cells(&mut text);
        let _ =
            writeln!(text, "\nWhat balanced gain is divided by, and each cell's best arm on the seeds that chose:\n");
        self.alone(&mut text)?;
        let _ = writeln!(
            text,
            "\nDeclared contrasts (mean over the {} of {} cells that are not refused):\n",
            self.judged.accepted.len(),
            cells.len()
        );
        self.contrasts(&mut text);
        Ok(text)
    }

    /// What was chosen, and what the arm came to over all cells.
    fn arms(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "| arm | tried | step | setting | balanced, mean | balanced, worst cell | sum gain | hypervolume | below the best at most | ms a run |\n|---|---|---|---|---|---|---|---|---|---|"
        );
        for (at, arm) in ARMS.iter().enumerate() {
            let (setting, factor) = self.choice.of[at];
            let [balanced, smallest, sum, volume] = self.judged.standings[at].metrics;
            let chosen = arm.settings[setting];
            let shown = match arm.settings.len() {
                1 => "–".to_string(),
                length if length == WEIGHTS.len() => format!("w {chosen}"),
                _ => format!("η/μ {chosen}"),
            };
            let tried = match arm.name {
                "frozen" => "as popo-guarded".to_string(),
                _ => (arm.settings.len() * FACTORS.len()).to_string(),
            };
            let below = match arm.role {
                Role::Candidate(_) => format!("{:.3}", -self.judged.standings[at].below_best),
                _ => "–".to_string(),
            };
            let _ = writeln!(
                text,
                "| {} | {tried} | {} | {shown} | {} | {} | {} | {} | {below} | {:.1} |",
                arm.name,
                FACTORS[factor],
                with_ends(balanced),
                with_ends(smallest),
                with_ends(sum),
                with_ends(volume),
                1e3 * self.seconds(at)
            );
        }
    }

    /// Mean of an arm's runs on the fresh seeds.
    fn seconds(&self, arm: usize) -> f64 {
        let (setting, factor) = self.choice.of[arm];
        let runs = (0..self.plan.cells.len()).filter_map(|cell| self.figures.get(&Kind { cell, arm, setting, factor }));
        let all: Vec<f64> = runs.flatten().map(|run| run.seconds).collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    }

    fn cells(&self, text: &mut String) {
        let names: Vec<&str> = self.plan.cells.iter().map(|cell| cell.name).collect();
        let _ = writeln!(text, "| arm | {} |\n|---{}|", names.join(" | "), "|---".repeat(names.len()));
        let whole = self.fresh.whole();
        for (at, arm) in ARMS.iter().enumerate() {
            let value = |cell: usize| match self.judged.accepted.contains(&cell) {
                true => format!("{:.2}", self.fresh.balanced(cell, at, &whole)),
                false => "refused".to_string(),
            };
            let row: Vec<String> = (0..names.len()).map(value).collect();
            let _ = writeln!(text, "| {} | {} |", arm.name, row.join(" | "));
        }
    }

    fn alone(&self, text: &mut String) -> Result<(), LabError> {
        let [first, second] = OBJECTIVES;
        let _ = writeln!(text, "| cell | {first} alone gains | {second} alone gains | best arm |\n|---|---|---|---|");
        for (at, cell) in self.plan.cells.iter().enumerate() {
            let gain = |objective: usize| -> Result<String, LabError> {
                let Interval { estimate, low, high, .. } = self.fresh.alone(at, objective)?;
                Ok(format!("{estimate:.4} ({low:.4} to {high:.4})"))
            };
            let best = ARMS[self.choice.best[at]].name;
            let _ = writeln!(text, "| {} | {} | {} | {best} |", cell.name, gain(0)?, gain(1)?);
        }
        Ok(())
    }

    fn contrasts(&self, text: &mut String) {
        let _ = writeln!(text, "| contrast | metric | difference | 95 % | p | Holm | |\n|---|---|---|---|---|---|---|");
        for one in &self.judged.contrasts {
            let Interval { estimate, low, high, p, .. } = one.interval;
            let adjusted = one.adjusted.map_or("–".to_string(), |adjusted| format!("{adjusted:.4}"));
            let says = match (one.adjusted, estimate > 0.0) {
                (None, _) => "for reading",
                (Some(adjusted), _) if adjusted > 0.05 => "not shown",
                (_, true) => "better",
                (_, false) => "worse",
            };
            let _ = writeln!(
                text,
                "| {} | {} | {estimate:+.3} | {low:+.3} to {high:+.3} | {p:.4} | {adjusted} | {says} |",
                one.name, one.metric
            );
        }
    }

    /// Gains rounded to six decimals, by cell, arm and seed.
    pub fn row(&self) -> Value {
        let Plan { size, choosing, fresh, cells } = self.plan;
        let rounded = |value: f64| (value * 1e6).round() / 1e6;
        let arms = ARMS.iter().enumerate().map(|(at, arm)| {
            let (setting, factor) = self.choice.of[at];
            let setting = Some(arm.settings[setting]).filter(|value| value.is_finite());
            let gains: serde_json::Map<String, Value> = cells
                .iter()
                .enumerate()
                .map(|(cell, one)| {
                    let pairs = self.fresh.of[cell][at].iter().map(|gains| gains.map(rounded));
                    (one.name.to_string(), json!(pairs.collect::<Vec<[f64; 2]>>()))
                })
                .collect();
            json!({ "arm": arm.name, "setting": setting, "step": FACTORS[factor], "gains": gains })
        });
        json!({
            "experiment": "pareto",
            "commit": self.commit,
            "objectives": OBJECTIVES,
            "seeds": { "choosing": choosing, "fresh": fresh },
            "size": { "trained": size.trained, "judged": size.judged, "steps": size.steps, "rollouts": ROLLOUTS },
            "default": ARMS[self.judged.default].name,
            "non_inferior": self.judged.non_inferior,
            "arms": arms.collect::<Vec<Value>>(),
        })
    }
}

fn with_ends(Interval { estimate, low, high, .. }: Interval) -> String {
    format!("{estimate:.2} ({low:.2} to {high:.2})")
}
