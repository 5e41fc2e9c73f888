//! An experiment's rows → the figures of its page: contrasts, arms beside the first one, curves, calibrations, fronts.

use super::{Calibration, Rows};
use crate::report::{COLOURS, ExperimentReport, FrontPoint, IntervalRow, Series, experiment_page};
use crate::stats::{Interval, Sample, StatsError, interval};
use std::collections::BTreeMap;

impl Rows {
    /// A page about the experiment, for reading; what is decided stands in [`Rows::markdown`], too.
    pub fn page(&self) -> Result<String, StatsError> {
        let experiment = self.experiment();
        let (found, planned, commits) = self.count();
        let facts = [
            ("rows", format!("{found} of {planned}")),
            ("commits", commits.join(", ")),
            ("judged on", experiment.data.clone()),
            ("seeds", experiment.seeds.to_string()),
            ("alpha of the primary contrasts together", experiment.alpha.to_string()),
        ];
        let mut report = ExperimentReport {
            name: experiment.name.clone(),
            question: experiment.question.clone(),
            facts: facts.map(|(what, value)| (what.to_string(), value)).to_vec(),
            reference: experiment.arms[0].clone(),
            ..ExperimentReport::default()
        };
        self.add_contrasts(&mut report)?;
        self.add_arms(&mut report)?;
        self.add_curves(&mut report)?;
        self.add_calibrations(&mut report)?;
        self.add_fronts(&mut report)?;
        Ok(experiment_page(&report))
    }

    fn last(&self) -> usize {
        self.experiment().stop.looks.len() - 1
    }

    fn add_contrasts(&self, report: &mut ExperimentReport) -> Result<(), StatsError> {
        for decided in self.decided(self.last())? {
            let contrast = decided.contrast;
            let Some(found) = decided.found else { continue };
            let label = format!("{} − {}", contrast.arm, contrast.against);
            let row = IntervalRow { strong: contrast.primary, ..row(label, &found) };
            by_metric(&mut report.contrasts, &contrast.metric).push(row);
            let figures = format!("{:+.4} ({:+.4} to {:+.4})", found.estimate, found.low, found.high);
            report.decided.push([contrast.name.clone(), contrast.metric.clone(), figures, decided.says]);
        }
        Ok(())
    }

    fn add_arms(&self, report: &mut ExperimentReport) -> Result<(), StatsError> {
        let (arms, look) = (&self.experiment().arms, self.last());
        for metric in self.metrics() {
            for (place, arm) in arms.iter().enumerate() {
                let Some(own) = self.whole(arm, metric, look)? else { continue };
                by_metric(&mut report.arms, metric).push(row(arm.clone(), &interval(&own, 0.95)?));
                if place == 0 || !self.measures(&arms[0], metric, look) {
                    continue;
                }
                if let Some(difference) = self.paired([arm, &arms[0]], metric, look)? {
                    by_metric(&mut report.beside, metric).push(row(arm.clone(), &interval(&difference, 0.95)?));
                }
            }
        }
        Ok(())
    }

    /// Declared curves, and each shown metric over the looks where there are several.
    fn add_curves(&self, report: &mut ExperimentReport) -> Result<(), StatsError> {
        let experiment = self.experiment();
        for curve in &experiment.curves {
            self.check_metric(&curve.title, &curve.metric)?;
            let (mut middle, mut ends) = (Vec::new(), [Vec::new(), Vec::new()]);
            for (arm, at) in curve.arms.iter().zip(&curve.at) {
                let Some(sample) = self.whole(arm, &curve.metric, self.last())? else { continue };
                let found = interval(&sample, 0.95)?;
                middle.push((*at, found.estimate));
                ends[0].push((*at, found.low));
                ends[1].push((*at, found.high));
            }
            let [low, high] = ends.map(|points| Series { name: "95 %".into(), colour: 7, seldom: true, points });
            let lines =
                vec![Series { name: curve.metric.clone(), colour: 0, seldom: false, points: middle }, low, high];
            report.curves.push((curve.title.clone(), curve.axis.clone(), lines));
        }
        if experiment.stop.looks.len() > 1 {
            for metric in self.metrics() {
                let lines =
                    experiment.arms.iter().enumerate().map(|(colour, arm)| self.over_looks(arm, colour, metric));
                let title = format!("{metric}, by share of the steps");
                report.curves.push((title, "share".into(), lines.collect::<Result<_, _>>()?));
            }
        }
        Ok(())
    }

    /// By target, what was predicted and what came of it: of the first arm and of those that something is claimed of.
    fn add_calibrations(&self, report: &mut ExperimentReport) -> Result<(), StatsError> {
        let experiment = self.experiment();
        let claimed = |arm: &str| {
            let mut primary = experiment.contrasts.iter().filter(|contrast| contrast.primary);
            arm == experiment.arms[0] || primary.any(|contrast| contrast.arm == arm || contrast.against == arm)
        };
        let mut by_target: BTreeMap<&str, Vec<Series>> = BTreeMap::new();
        for arm in experiment.arms.iter().filter(|arm| claimed(arm)) {
            for (target, rows) in self.calibrations(arm) {
                let points = mean_of_seeds(&rows).ok_or_else(|| self.torn(arm))?;
                let lines = by_target.entry(target).or_default();
                lines.push(Series { name: arm.clone(), colour: lines.len(), seldom: false, points });
            }
        }
        for (target, mut lines) in by_target {
            let ends = lines.iter().flat_map(|line| &line.points).map(|(predicted, _)| *predicted);
            let (low, high) = ends.fold((f64::MAX, f64::MIN), |(low, high), at| (low.min(at), high.max(at)));
            let points = vec![(low, low), (high, high)];
            lines.push(Series { name: "as predicted".into(), colour: COLOURS - 1, seldom: true, points });
            let title = format!("Calibration of {target}: how often it came, by predicted chance");
            report.curves.push((title, "predicted".into(), lines));
        }
        Ok(())
    }

    fn torn(&self, arm: &str) -> StatsError {
        StatsError::Declaration {
            path: self.experiment().name.clone(),
            message: format!("the rows of arm {arm} have calibrations that do not fit together: make them anew"),
        }
    }

    fn over_looks(&self, arm: &str, colour: usize, metric: &str) -> Result<Series, StatsError> {
        let mut points = Vec::new();
        for (look, fraction) in self.experiment().stop.looks.iter().enumerate() {
            points.extend(self.whole(arm, metric, look)?.map(|sample| (*fraction, sample.mean())));
        }
        Ok(Series { name: arm.to_string(), colour, seldom: false, points })
    }

    fn add_fronts(&self, report: &mut ExperimentReport) -> Result<(), StatsError> {
        for front in &self.experiment().fronts {
            self.check_metric(&front.title, &front.x)?;
            self.check_metric(&front.title, &front.y)?;
            let mut points = Vec::new();
            for arm in &self.experiment().arms {
                let found = |metric: &str| self.whole(arm, metric, self.last());
                let (Some(x), Some(y)) = (found(&front.x)?, found(&front.y)?) else { continue };
                let range = |sample: &Sample| interval(sample, 0.95).map(|found| ends(&found));
                points.push(FrontPoint { label: arm.clone(), x: range(&x)?, y: range(&y)? });
            }
            report.fronts.push((front.title.clone(), [front.x.clone(), front.y.clone()], points));
        }
        Ok(())
    }

    /// Refuses a picture of what no row has.
    fn check_metric(&self, title: &str, metric: &str) -> Result<(), StatsError> {
        let arms = &self.experiment().arms;
        let is_new = arms.iter().all(|arm| self.seeds(arm).is_empty());
        match is_new || arms.iter().any(|arm| self.measures(arm, metric, self.last())) {
            true => Ok(()),
            false => Err(StatsError::Declaration {
                path: self.experiment().name.clone(),
                message: format!("{title}: no row has the metric {metric}"),
            }),
        }
    }

    /// All seeds of an arm that has rows with this metric.
    fn whole(&self, arm: &str, metric: &str, look: usize) -> Result<Option<Sample>, StatsError> {
        if !self.measures(arm, metric, look) {
            return Ok(None);
        }
        let seeds: Vec<u64> = self.seeds(arm).into_iter().collect();
        if seeds.is_empty() {
            return Ok(None);
        }
        self.sample(arm, &seeds, metric, look).map(Some)
    }
}

/// Bucket by bucket; `None` where rows are torn or have different buckets.
fn mean_of_seeds(rows: &[&Calibration]) -> Option<Vec<(f64, f64)>> {
    let all: Vec<_> = rows.iter().map(|row| row.points()).collect::<Option<_>>()?;
    let buckets = all.first()?.len();
    let share = 1.0 / all.len() as f64;
    let mean = |bucket: usize| {
        let sum = all.iter().try_fold((0.0, 0.0), |sum, row| {
            let (predicted, observed) = row.get(bucket)?;
            Some((sum.0 + predicted, sum.1 + observed))
        })?;
        Some((sum.0 * share, sum.1 * share))
    };
    match all.iter().all(|row| row.len() == buckets) {
        true => (0..buckets).map(mean).collect(),
        false => None,
    }
}

fn by_metric<'a>(all: &'a mut Vec<(String, Vec<IntervalRow>)>, metric: &str) -> &'a mut Vec<IntervalRow> {
    let place = all.iter().position(|(known, _)| known == metric).unwrap_or_else(|| {
        all.push((metric.to_string(), Vec::new()));
        all.len() - 1
    });
    &mut all[place].1
}

fn ends(found: &Interval) -> [f64; 3] {
    [found.low, found.estimate, found.high]
}

fn row(label: String, found: &Interval) -> IntervalRow {
    IntervalRow { label, range: ends(found), strong: false }
}
