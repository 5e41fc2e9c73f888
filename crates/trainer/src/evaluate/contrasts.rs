//! An experiment's rows → its tables: what each arm reached, and what is shown of the declared contrasts, whatever the sign.
//!
//! In: `docs/experiments/<name>.toml` and the rows of its arms and seeds. Out: Markdown. Judged by the declaration alone. As long as rows
//! are missing nothing is decided, and that is said. Caller: `taiji-trainer contrasts`.

use super::{Calibration, LookFigures, PerUser};
use crate::stats::{Contrast, Experiment, Interval, Sample, StatsError, Verdict, interval, put_into};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

/// Metrics of the first table, where they were measured.
const SHOWN: [&str; 16] = [
    "similarity",
    "ctcvr_percent",
    "l1",
    "l2",
    "l3",
    "title",
    "format",
    "evidence",
    "cause",
    "click_auc",
    "ctcvr_auc",
    "click_auc_low",
    "click_auc_mid",
    "click_auc_high",
    "ndcg_10_catalogue",
    "ndcg_10_shown",
];

/// What is read of a row.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    arm: String,
    seed: u64,
    /// From 1, where a seed has several.
    run: Option<u64>,
    commit: Option<String>,
    /// Stage → seconds.
    #[serde(default)]
    seconds: BTreeMap<String, f64>,
    result: Run,
}

#[derive(Debug, Clone, Deserialize)]
struct Run {
    /// What the stage `filter` said of the pairs, where there is one.
    #[serde(default)]
    pairs: Value,
    /// By target, of a ranker.
    #[serde(default)]
    calibration: BTreeMap<String, Calibration>,
    /// Of a ranker: what the chances that a generated world drew with would reach, by metric.
    #[serde(default)]
    truth: Option<BTreeMap<String, Option<f64>>>,
    looks: Vec<LookFigures>,
}

/// An experiment's declaration with the rows that are there.
#[derive(Debug, Clone)]
pub struct Rows {
    experiment: Experiment,
    rows: Vec<Row>,
}

/// A contrast, and what is found of it.
pub(super) struct Decided<'a> {
    pub(super) contrast: &'a Contrast,
    /// At 95 %; `None` without rows.
    pub(super) found: Option<Interval>,
    p: f64,
    /// What `p` is held to.
    threshold: Option<f64>,
    /// Holm's p among the contrasts that are not primary.
    adjusted: Option<f64>,
    /// Whether it is shown, or why that is not known.
    pub(super) says: String,
}

impl Rows {
    /// Reads a declaration and the rows of a folder; rows of arms that are not declared are refused.
    pub fn read(declaration: &Path, folder: &Path) -> Result<Rows, StatsError> {
        let experiment = Experiment::read(declaration)?;
        let refuse =
            |path: &Path, message: String| StatsError::Declaration { path: path.display().to_string(), message };
        let mut rows: Vec<Row> = Vec::new();
        let entries = std::fs::read_dir(folder).map_err(|error| refuse(folder, error.to_string()))?;
        for entry in entries {
            let path = entry.map_err(|error| refuse(folder, error.to_string()))?.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let text = std::fs::read(&path).map_err(|error| refuse(&path, error.to_string()))?;
            let row: Row = serde_json::from_slice(&text).map_err(|error| refuse(&path, error.to_string()))?;
            if !experiment.arms.contains(&row.arm) {
                return Err(refuse(&path, format!("arm {} is not declared", row.arm)));
            }
            let run = row.run.unwrap_or(1) as usize;
            if run == 0 || run > experiment.runs || row.run.is_some() != (experiment.runs > 1) {
                let message = format!(
                    "is run {run}, and {} runs of a seed are declared: remove the file, or declare runs as the recipe has them",
                    experiment.runs
                );
                return Err(refuse(&path, message));
            }
            if rows.iter().any(|other| (&other.arm, other.seed, other.run) == (&row.arm, row.seed, row.run)) {
                return Err(refuse(
                    &path,
                    "is of the same arm, seed and run as another file: remove one of both".into(),
                ));
            }
            let metrics = row.result.looks.iter().flat_map(|look| look.metrics.values());
            if let Some(users) = metrics.map(PerUser::users).max().filter(|users| *users != experiment.users) {
                let message =
                    format!("has figures of {users} users, {} are declared: declare what is judged", experiment.users);
                return Err(refuse(&path, message));
            }
            if row.result.looks.len() != experiment.stop.looks.len() {
                let (found, declared) = (row.result.looks.len(), experiment.stop.looks.len());
                return Err(refuse(&path, format!("has {found} looks, {declared} are declared")));
            }
            rows.push(row);
        }
        rows.sort_by(|left, right| (&left.arm, left.seed, left.run).cmp(&(&right.arm, right.seed, right.run)));
        Ok(Rows { experiment, rows })
    }

    fn of(&self, arm: &str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.arm == arm)
    }

    /// By target, the calibrations of an arm's rows.
    pub(super) fn calibrations(&self, arm: &str) -> BTreeMap<&str, Vec<&Calibration>> {
        let mut found: BTreeMap<&str, Vec<&Calibration>> = BTreeMap::new();
        for (target, calibration) in self.of(arm).flat_map(|row| &row.result.calibration) {
            found.entry(target).or_default().push(calibration);
        }
        found
    }

    /// Both tables.
    pub fn markdown(&self) -> Result<String, StatsError> {
        let mut text = self.arms();
        for (look, fraction) in self.experiment.stop.looks.iter().enumerate() {
            let _ = write!(text, "\nLook at {fraction} of the steps:\n\n{}", self.contrasts(look)?);
        }
        Ok(text)
    }

    /// A page with the tables in their place: between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
    pub fn put_into(&self, page: &str) -> Result<String, StatsError> {
        let name = &self.experiment.name;
        put_into(page, name, &self.markdown()?).ok_or_else(|| StatsError::Declaration {
            path: name.clone(),
            message: format!("the page has no place for the tables: <!-- {name}:begin --> … <!-- {name}:end -->"),
        })
    }

    /// The declaration.
    pub(super) fn experiment(&self) -> &Experiment {
        &self.experiment
    }

    /// How many there are, how many are planned, and their commits.
    pub(super) fn count(&self) -> (usize, usize, Vec<String>) {
        // A tree with changes of its own stays marked (`-dirty`).
        let short = |commit: &str| match commit.split_once('-') {
            Some((hash, mark)) => format!("{}-{mark}", &hash[..hash.len().min(7)]),
            None => commit[..commit.len().min(7)].to_owned(),
        };
        let commits: BTreeSet<String> = self.rows.iter().filter_map(|row| row.commit.as_deref().map(short)).collect();
        let planned = self.experiment.arms.len() * self.experiment.seeds * self.experiment.runs;
        (self.rows.len(), planned, commits.into_iter().collect())
    }

    /// The metrics that are shown and were measured.
    pub(super) fn metrics(&self) -> Vec<&'static str> {
        let measures =
            |row: &Row, metric: &str| row.result.looks.last().is_some_and(|look| look.metrics.contains_key(metric));
        SHOWN.into_iter().filter(|metric| self.rows.iter().any(|row| measures(row, metric))).collect()
    }

    /// What each arm reached, mean over its seeds.
    fn arms(&self) -> String {
        let (found, planned, commits) = self.count();
        let mut text = format!("{found} of {planned} rows; commits {}.\n\n", commits.join(", "));
        let looks = &self.experiment.stop.looks;
        let last = looks.len() - 1;
        let metrics = self.metrics();
        let early: Vec<String> = looks[..last].iter().map(|fraction| format!("l3 at {fraction}")).collect();
        let has_pairs = self.rows.iter().any(|row| !row.result.pairs.is_null());
        let of_pairs = if has_pairs { vec!["pairs", "distinct prompts", "wrong reasons"] } else { vec![] };
        let head = ["arm", "seeds"].into_iter().chain(of_pairs).chain(metrics.iter().copied());
        let of_all: BTreeSet<&str> = self
            .rows
            .iter()
            .filter_map(|row| row.result.looks.get(last))
            .flat_map(|look| look.figures.keys())
            .map(String::as_str)
            .collect();
        let is_timed = self.rows.iter().any(|row| !row.seconds.is_empty());
        let times = if is_timed { vec!["seconds of all stages"] } else { vec![] };
        let shares = self.truth_shares();
        let share = if shares.is_empty() { vec![] } else { vec!["share of the truth's lead in click_auc"] };
        let figures = of_all.iter().copied().chain(share).chain(times);
        let head: Vec<&str> = head.chain(early.iter().map(String::as_str)).chain(figures).collect();
        let _ = writeln!(text, "| {} |\n|{}|", head.join(" | "), vec!["---"; head.len()].join("|"));
        for arm in &self.experiment.arms {
            let rows: Vec<&Row> = self.of(arm).collect();
            let Some(first) = rows.first() else {
                let _ = writeln!(text, "| {arm} | 0 |{}", " – |".repeat(head.len() - 2));
                continue;
            };
            let pairs = &first.result.pairs;
            let seeds = rows.iter().map(|row| row.seed).collect::<BTreeSet<_>>().len();
            let runs = if self.experiment.runs > 1 { format!(" ({} runs)", rows.len()) } else { String::new() };
            let mut cells = vec![arm.clone(), format!("{seeds}{runs}")];
            if has_pairs {
                cells.extend([pairs["pairs"].to_string(), pairs["distinct_prompts"].to_string()]);
                cells.push(wrong_share(&pairs["planted_taken"]));
            }
            let at = |look: usize, metric: &str| {
                let digits = if metric.contains("auc") { 4 } else { 3 };
                mean(&rows, look, metric).map_or("–".to_string(), |mean| format!("{mean:.digits$}"))
            };
            cells.extend(metrics.iter().map(|metric| at(last, metric)).chain((0..last).map(|look| at(look, "l3"))));
            let figure = |name: &str| {
                mean_of(rows.iter().filter_map(|row| row.result.looks[last].figures.get(name).copied())).map_or(
                    "–".to_string(),
                    |mean| if mean >= 1e3 { format!("{mean:.0}") } else { format!("{mean:.3}") },
                )
            };
            cells.extend(of_all.iter().map(|name| figure(name)));
            if !shares.is_empty() {
                cells.push(shares.get(arm.as_str()).map_or("–".to_string(), |share| format!("{:.0} %", 100.0 * share)));
            }
            if is_timed {
                let timed = rows.iter().filter(|row| !row.seconds.is_empty());
                let mean = mean_of(timed.map(|row| row.seconds.values().sum()));
                cells.push(mean.map_or("–".to_string(), |mean| format!("{mean:.0}")));
            }
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text
    }

    /// By arm, which share of the way from the first arm to the world's own chances it goes, in the area of clicks (means over seeds).
    fn truth_shares(&self) -> BTreeMap<&str, f64> {
        const METRIC: &str = "click_auc";
        let last = self.experiment.stop.looks.len() - 1;
        let reached = |arm: &str| mean(&self.of(arm).collect::<Vec<_>>(), last, METRIC);
        let of_truth = |row: &Row| row.result.truth.as_ref()?.get(METRIC).copied().flatten();
        let (Some(without), Some(truth)) =
            (reached(&self.experiment.arms[0]), mean_of(self.rows.iter().filter_map(of_truth)))
        else {
            return BTreeMap::new();
        };
        let arms = self.experiment.arms[1..].iter();
        arms.filter_map(|arm| Some((arm.as_str(), (reached(arm)? - without) / (truth - without)))).collect()
    }

    /// The contrasts at a look, as a table.
    fn contrasts(&self, look: usize) -> Result<String, StatsError> {
        let mut text =
            "| contrast | metric | estimate | 95 % | p | held to, or Holm's p of the rest | |\n|---|---|---|---|---|---|---|\n".to_string();
        for Decided { contrast, found, p, threshold, adjusted, says } in self.decided(look)? {
            let Contrast { name, metric, .. } = contrast;
            let Some(found) = found else {
                let _ = writeln!(text, "| {name} | {metric} | – | – | – | – | {says} |");
                continue;
            };
            let says = if says == SHOWN_IN_WORDS { format!("**{says}**") } else { says };
            let held = match (threshold, adjusted) {
                (Some(threshold), _) => format!("{threshold:.4}"),
                (None, Some(adjusted)) => format!("Holm {adjusted:.4}"),
                (None, None) => "–".to_string(),
            };
            let _ = writeln!(text, "| {name} | {metric} | {} | {p:.4} | {held} | {says} |", shown(&found));
        }
        Ok(text)
    }

    /// What is found of each contrast at a look.
    pub(super) fn decided(&self, look: usize) -> Result<Vec<Decided<'_>>, StatsError> {
        let mut differences = BTreeMap::new();
        for contrast in &self.experiment.contrasts {
            if let Some(sample) = self.difference(contrast, look)? {
                differences.insert(contrast.name.clone(), sample);
            }
        }
        let is_whole = self.experiment.contrasts.iter().all(|contrast| {
            differences.get(&contrast.name).is_some_and(|sample: &Sample| sample.seeds() == self.experiment.seeds)
        });
        let verdicts = if is_whole { self.experiment.judge(look, &differences)? } else { Vec::new() };
        let mut decided = Vec::new();
        for contrast in &self.experiment.contrasts {
            let Some(sample) = differences.get(&contrast.name) else {
                let says = "no rows yet".into();
                decided.push(Decided { contrast, found: None, p: 1.0, threshold: None, adjusted: None, says });
                continue;
            };
            let found = interval(sample, 0.95)?;
            let verdict = verdicts.iter().find(|verdict| verdict.name == contrast.name);
            let says = match verdict {
                Some(verdict) => said(contrast, verdict).to_string(),
                None => format!("{} of {} seeds: nothing is decided", sample.seeds(), self.experiment.seeds),
            };
            let p = verdict.map_or(found.p, |verdict| verdict.p);
            let threshold = verdict.and_then(|verdict| verdict.threshold);
            let adjusted = verdict.and_then(|verdict| verdict.adjusted);
            decided.push(Decided { contrast, found: Some(found), p, threshold, adjusted, says });
        }
        Ok(decided)
    }

    fn difference(&self, contrast: &Contrast, look: usize) -> Result<Option<Sample>, StatsError> {
        self.paired([&contrast.arm, &contrast.against], &contrast.metric, look)
    }

    /// The first arm less the second, paired by seed and user, over the seeds that both have; `None` without any.
    pub(super) fn paired(&self, arms: [&str; 2], metric: &str, look: usize) -> Result<Option<Sample>, StatsError> {
        let [own, other] = arms.map(|arm| self.seeds(arm));
        let common: Vec<u64> = own.intersection(&other).copied().collect();
        if common.is_empty() {
            return Ok(None);
        }
        let [own, other] = arms.map(|arm| self.sample(arm, &common, metric, look));
        own?.minus(&other?).map(Some)
    }

    /// Seeds whose runs are all there.
    pub(super) fn seeds(&self, arm: &str) -> BTreeSet<u64> {
        let is_whole = |seed: &u64| self.of(arm).filter(|row| row.seed == *seed).count() == self.experiment.runs;
        self.of(arm).map(|row| row.seed).filter(is_whole).collect()
    }

    /// Whether an arm has rows, and all of them have a metric.
    pub(super) fn measures(&self, arm: &str, metric: &str, look: usize) -> bool {
        let mut rows = self.of(arm).peekable();
        rows.peek().is_some() && rows.all(|row| row.result.looks[look].metrics.contains_key(metric))
    }

    /// An arm's figures at some seeds.
    pub(super) fn sample(&self, arm: &str, seeds: &[u64], metric: &str, look: usize) -> Result<Sample, StatsError> {
        let mut values = Vec::new();
        for row in self.of(arm).filter(|row| seeds.contains(&row.seed)) {
            let hits = row.result.looks[look].metrics.get(metric).and_then(|hits| hits.values());
            values.extend(hits.ok_or_else(|| StatsError::Declaration {
                path: format!("{arm}, seed {}", row.seed),
                message: format!("has no readable metric {metric}"),
            })?);
        }
        let runs = self.experiment.runs;
        Sample::new(seeds.len(), runs, values.len() / (seeds.len() * runs).max(1), &values)
    }
}

/// Over the rows that have the metric.
fn mean(rows: &[&Row], look: usize, metric: &str) -> Option<f64> {
    mean_of(rows.iter().filter_map(|row| Some(row.result.looks[look].metrics.get(metric)?.mean())))
}

fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

fn shown(found: &Interval) -> String {
    format!("{:+.4} | {:+.4} … {:+.4}", found.estimate, found.low, found.high)
}

const SHOWN_IN_WORDS: &str = "shown";

fn said(contrast: &Contrast, verdict: &Verdict) -> &'static str {
    match (contrast.primary, verdict.shown) {
        (true, true) => SHOWN_IN_WORDS,
        (true, false) => "not shown",
        (false, _) => "for reading",
    }
}

/// Share of the pairs whose reason is known to be wrong.
fn wrong_share(planted: &Value) -> String {
    let count = |name: &str| planted[name].as_f64().unwrap_or(0.0);
    let wrong = count("wrong_right") + count("wrong_own");
    let all = wrong + count("true");
    if all == 0.0 { "–".to_string() } else { format!("{:.3}", wrong / all) }
}
