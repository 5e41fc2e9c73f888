//! `docs/experiments/<name>.toml`: what an experiment will claim, on how much data, and when it stops; committed before its first
//! run. Read and checked here, and its contrasts judged by nothing else than what it says.

use super::decide::{by_size, holm};
use super::interval::Spread;
use super::{Interval, Look, Sample, Spending, StatsError, interval, looks};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The whole file; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// As the file is called.
    pub name: String,
    /// What is asked, in words.
    pub question: String,
    /// What is judged on, in words: world or data set, split, seed of the held-out users.
    pub data: String,
    /// What is compared.
    pub arms: Vec<String>,
    /// Independent seeds of every arm.
    pub seeds: usize,
    /// Runs of each seed, such as alignment seeds on one checkpoint.
    #[serde(default = "one")]
    pub runs: usize,
    /// Held-out users of every run, the same ones for all; 1 where a run gives one figure.
    pub users: usize,
    /// Two-sided, of the family of primary contrasts together.
    pub alpha: f64,
    /// When it is looked at.
    pub stop: StopRule,
    /// `[[contrast]]`
    #[serde(rename = "contrast")]
    pub contrasts: Vec<Contrast>,
    /// `[[curve]]`: figures along an axis, for the page; nothing is decided by them.
    #[serde(rename = "curve", default)]
    pub curves: Vec<Curve>,
    /// `[[front]]`: two metrics against each other, for the page.
    #[serde(rename = "front", default)]
    pub fronts: Vec<Front>,
}

/// `[[curve]]`: arms that differ in one quantity.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Over the picture.
    pub title: String,
    /// The figure.
    pub metric: String,
    /// What differs.
    pub axis: String,
    /// Some of `arms`.
    pub arms: Vec<String>,
    /// Of each, rising.
    pub at: Vec<f64>,
}

impl Curve {
    fn check(&self, arms: &BTreeSet<&str>) -> Result<(), String> {
        let wrong = |message: &str| Err(format!("curve {:?}: {message}", self.title));
        if let Some(arm) = self.arms.iter().find(|arm| !arms.contains(arm.as_str())) {
            return wrong(&format!("there is no arm {arm}"));
        }
        match self.arms.len() == self.at.len() && self.at.is_sorted() {
            true => Ok(()),
            false => wrong("at: one number an arm, rising"),
        }
    }
}

/// `[[front]]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Front {
    /// Over the picture.
    pub title: String,
    /// Metric from left to right.
    pub x: String,
    /// Metric upwards.
    pub y: String,
}

fn one() -> usize {
    1
}

/// `[stop]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRule {
    /// Fractions of the planned data; `[1.0]` is one look at the end.
    pub looks: Vec<f64>,
    /// Required with more than one look.
    pub spending: Option<Spending>,
    /// Whether a look adds seeds or users (true), or sees the same ones again, further trained (false; alpha is then split).
    #[serde(default)]
    pub looks_add_data: bool,
    /// Stop when every primary interval at .95 ends below this gain; without it nothing is stopped for futility.
    pub futility: Option<f64>,
}

/// `[[contrast]]`: `arm` − `against`, higher is better.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// Of its own in the file.
    pub name: String,
    /// The figure, as the rows of results call it.
    pub metric: String,
    /// One of `arms`.
    pub arm: String,
    /// Another of `arms`.
    pub against: String,
    /// What is to be shown.
    #[serde(default)]
    pub aim: Aim,
    /// With `aim = "non_inferior"`: the loss that is negligible, above 0.
    pub margin: Option<f64>,
    /// Primary contrasts share alpha (Holm); the others are reported with their intervals and claim nothing.
    pub primary: bool,
}

/// What a contrast is to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// That the difference is not 0.
    #[default]
    Different,
    /// That the arm is at most `margin` below.
    NonInferior,
}

/// What was found of one contrast at a look.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Of the contrast.
    pub name: String,
    /// Its aim.
    pub aim: Aim,
    /// At 95 %, whatever the look: for reading, not for deciding.
    pub interval: Interval,
    /// Two-sided; of a non-inferiority, twice the one-sided value, so that one alpha serves both.
    pub p: f64,
    /// What `p` was compared with; `None` for contrasts that are not primary, and after the first that was not shown.
    pub threshold: Option<f64>,
    /// Of contrasts that are not primary: `p` adjusted by Holm's rule among them. They claim nothing; it says how many of them chance makes.
    pub adjusted: Option<f64>,
    /// Whether what was aimed at is shown.
    pub shown: bool,
}

/// A page with an experiment's tables in their place, between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; `None` where it has none.
pub fn put_into(page: &str, name: &str, tables: &str) -> Option<String> {
    let (open, close) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->"));
    let (before, rest) = page.split_once(&open)?;
    let (_, after) = rest.split_once(&close)?;
    Some(format!("{before}{open}{tables}{close}{after}"))
}

impl Experiment {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, StatsError> {
        let refuse = |message: String| StatsError::Declaration { path: path.display().to_string(), message };
        let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        let experiment: Experiment = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        experiment.check().map_err(refuse)?;
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if stem != Some(&experiment.name) {
            return Err(refuse(format!("name is {:?}: the file must be called {0}.toml", experiment.name)));
        }
        Ok(experiment)
    }

    fn check(&self) -> Result<(), String> {
        let arms: BTreeSet<&str> = self.arms.iter().map(String::as_str).collect();
        if arms.len() < self.arms.len() || arms.len() < 2 {
            return Err("arms: at least two different ones".to_string());
        }
        if self.runs == 0 || self.seeds * self.users < 2 {
            return Err("seeds, runs, users: at least two seeds or two users, and one run".to_string());
        }
        if self.contrasts.iter().all(|contrast| !contrast.primary) {
            return Err("contrast: at least one must be primary".to_string());
        }
        let names: BTreeSet<&str> = self.contrasts.iter().map(|contrast| contrast.name.as_str()).collect();
        if names.len() < self.contrasts.len() {
            return Err("contrast: a name stands twice".to_string());
        }
        self.contrasts.iter().try_for_each(|contrast| contrast.check(&arms))?;
        self.curves.iter().try_for_each(|curve| curve.check(&arms))?;
        if self.stop.looks.len() > 1 && self.stop.spending.is_none() {
            return Err("stop.spending: pocock or o_brien_fleming, since there is more than one look".to_string());
        }
        self.looks(self.alpha).map(|_| ()).map_err(|error| format!("alpha or stop.looks: {error}"))
    }

    /// The looks at a level. With one look all of it is spent there.
    pub fn looks(&self, alpha: f64) -> Result<Vec<Look>, StatsError> {
        looks(self.stop.spending.unwrap_or(Spending::OBrienFleming), alpha, &self.stop.looks)
    }

    /// By look, what the smallest primary p-value is held to, the next one once that is shown, and so on.
    pub fn thresholds(&self) -> Result<Vec<Vec<f64>>, StatsError> {
        let primary = self.contrasts.iter().filter(|contrast| contrast.primary).count();
        let steps = |look: usize| {
            (1..=primary).rev().map(|left| self.threshold(self.alpha / left as f64, look)).collect::<Result<_, _>>()
        };
        (0..self.stop.looks.len()).map(steps).collect()
    }

    /// What a p-value at a look is held to, at a level.
    fn threshold(&self, alpha: f64, look: usize) -> Result<f64, StatsError> {
        let all = self.looks(alpha)?;
        let here = all.get(look).ok_or_else(|| StatsError::Declaration {
            path: self.name.clone(),
            message: format!("look {look} is not declared: stop.looks has {}", all.len()),
        })?;
        Ok(if self.stop.looks_add_data { here.nominal } else { here.spent_here })
    }

    /// Judges all contrasts at a look (from 0): paired differences by the contrast's name. Primary ones by Holm's rule with each look's
    /// share (a group-sequential Holm procedure: Ye, Li, Liu and Yao, Statistics in Medicine 32, 2013); the rest have Holm's p among themselves.
    pub fn judge(&self, look: usize, differences: &BTreeMap<String, Sample>) -> Result<Vec<Verdict>, StatsError> {
        let mut verdicts = Vec::new();
        for contrast in &self.contrasts {
            let sample = differences.get(&contrast.name).ok_or_else(|| StatsError::Declaration {
                path: self.name.clone(),
                message: format!("contrast {} was not measured", contrast.name),
            })?;
            verdicts.push(contrast.measured(sample)?);
        }
        let primary: Vec<usize> = (0..verdicts.len()).filter(|place| self.contrasts[*place].primary).collect();
        let p: Vec<f64> = primary.iter().map(|place| verdicts[*place].p).collect();
        for (rank, index) in by_size(&p).into_iter().enumerate() {
            let verdict = &mut verdicts[primary[index]];
            let threshold = self.threshold(self.alpha / (primary.len() - rank) as f64, look)?;
            verdict.threshold = Some(threshold);
            verdict.shown = verdict.p <= threshold;
            if !verdict.shown {
                break;
            }
        }
        let rest: Vec<usize> = (0..verdicts.len()).filter(|place| !self.contrasts[*place].primary).collect();
        let p: Vec<f64> = rest.iter().map(|place| verdicts[*place].p).collect();
        for (place, adjusted) in rest.into_iter().zip(holm(&p)) {
            verdicts[place].adjusted = Some(adjusted);
        }
        Ok(verdicts)
    }

    /// Whether the rule says to stop for futility: no primary gain can still be the declared one.
    pub fn is_futile(&self, verdicts: &[Verdict]) -> bool {
        let Some(least) = self.stop.futility else { return false };
        let primary = self.contrasts.iter().zip(verdicts).filter(|(contrast, _)| contrast.primary);
        primary.map(|(_, verdict)| verdict).all(|verdict| verdict.interval.high < least)
    }
}

impl Contrast {
    fn check(&self, arms: &BTreeSet<&str>) -> Result<(), String> {
        let refuse = |message: &str| Err(format!("contrast {}: {message}", self.name));
        if self.arm == self.against || [&self.arm, &self.against].iter().any(|arm| !arms.contains(arm.as_str())) {
            return refuse("arm and against must be two of arms");
        }
        match (self.aim, self.margin) {
            (Aim::NonInferior, Some(margin)) if margin > 0.0 => Ok(()),
            (Aim::NonInferior, _) => refuse("aim non_inferior needs a margin above 0"),
            (Aim::Different, Some(_)) => refuse("margin belongs to aim non_inferior"),
            (Aim::Different, None) => Ok(()),
        }
    }

    /// Its interval and p-value; nothing is decided yet.
    fn measured(&self, sample: &Sample) -> Result<Verdict, StatsError> {
        let interval = interval(sample, 0.95)?;
        let p = match (self.aim, self.margin) {
            (Aim::NonInferior, Some(margin)) => (2.0 * Spread::of(sample)?.p_above(-margin)).min(1.0),
            _ => interval.p,
        };
        Ok(Verdict {
            name: self.name.clone(),
            aim: self.aim,
            interval,
            p,
            threshold: None,
            adjusted: None,
            shown: false,
        })
    }
}
