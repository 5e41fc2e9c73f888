//! `rank`: a ranker on the impressions of a folder, judged on the newest of them.

use super::features::FEATURES_FILE;
use super::judge::JUDGED_FILE;
use super::rank_figures::{by_user, lists_by_user, truth};
use super::settings::{Context, KeyError, read, take, value};
use crate::data::{Dataset, read_labels};
use crate::evaluate::{Calibration, LookFigures};
use crate::fit::training_progress;
use crate::rank::{
    FeatureLog, Inputs, Latency, Point, RankError, RankSettings, TargetFigures, Vocabulary, catalogue_ndcg, latency,
    points, popularity, train,
};
use crate::stage::{Artefact, Input, Inputs as Parents, Stage, StageError, write_json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use taiji::event::ActionTable;

/// Name of the file with the times of the graph's calls.
const LATENCY_FILE: &str = "latency.json";

struct Rank {
    settings: RankSettings,
    /// What taiji served, joined as of each point; or a stage of kind `features` is among the inputs.
    features: Option<PathBuf>,
    /// Which of them the ranker sees.
    reads: Vec<Group>,
    /// Whether size and times of calls are among the figures.
    cost: bool,
    value: Value,
}

pub(super) fn make(mut table: toml::Table, context: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let features = take::<PathBuf>(&mut table, "features")?.map(|path| context.folder.join(path));
    let reads = take::<Vec<Group>>(&mut table, "use")?;
    let cost = take::<bool>(&mut table, "cost")?.unwrap_or(false);
    let settings: RankSettings = read(table)?;
    settings.check().map_err(KeyError::other)?;
    let mut value = value(&settings)?;
    if let Some(settings) = value.as_object_mut() {
        // How many threads and how often a state is kept do not change the result.
        ["threads", "checkpoint_every"].iter().for_each(|key| drop(settings.shift_remove(*key)));
        settings.insert("features".to_owned(), json!(features.is_some()));
        settings.insert("use".to_owned(), json!(reads));
        if cost {
            settings.insert("cost".to_owned(), json!(true));
        }
    }
    let reads = reads.unwrap_or(vec![Group::Intra, Group::Cross]);
    Ok(Arc::new(Rank { settings, features, reads, cost, value }))
}

impl Stage for Rank {
    fn kind(&self) -> &'static str {
        "rank"
    }

    fn version(&self) -> u32 {
        4
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Data), Input::optional(Artefact::Features)]
    }

    fn output(&self) -> Artefact {
        Artefact::Ranker
    }

    fn files(&self) -> Result<Vec<(String, PathBuf)>, StageError> {
        Ok(self.features.iter().map(|path| ("features.jsonl".to_owned(), path.clone())).collect())
    }

    fn resumes(&self) -> bool {
        true
    }

    fn run(&self, parents: &Parents, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let data = parents.one(Artefact::Data)?;
        let dataset = Dataset::load(data, &ActionTable::default())?;
        let log = self.features(parents, &dataset)?;
        let labels = read_labels(data)?;
        let (all, left_out) = points(&dataset, &labels);
        let [training, validation, test] = by_time(&all, &self.settings)?;
        let vocabulary = Vocabulary::of(&dataset, training, log.shape());
        let limits = (self.settings.history, self.settings.cross);
        let as_of = |point: &Point| log.as_of(point.user, point.cut.before_ms);
        let encode = |part| Inputs::encode(&dataset, &vocabulary, part, as_of, limits);
        let parts = [encode(training)?, encode(validation)?, encode(test)?];
        let settings = RankSettings { threads: threads.unwrap_or(self.settings.threads), ..self.settings.clone() };
        let progress = &mut *training_progress(parents.progress());
        let (model, report, scored) = train(&settings, &vocabulary, parts.each_ref(), folder, progress)?;
        let mut metrics = by_user(&dataset, test, &scored)?;
        if settings.catalogue_points > 0 {
            let prior = settings.catalogue_popularity.then(|| popularity(training, dataset.items.len()));
            let which = (settings.catalogue_points, prior.as_deref());
            let lists = catalogue_ndcg(&model, &vocabulary, test, &parts[2], which)?;
            metrics.extend(lists_by_user(&lists));
        }
        let latency = latency(folder, &model, &parts[2])?;
        write_json(&folder.join(LATENCY_FILE), &latency)?;
        let figures = if self.cost { cost(report.parameters, &latency) } else { BTreeMap::new() };
        let judged = json!({
            "seconds": report.seconds,
            "points": report.points,
            "click": { "auc": report.click.auc, "log_loss": report.click.log_loss },
            "ctcvr": { "auc": report.ctcvr.auc, "log_loss": report.ctcvr.log_loss },
            "calibration": { "click": calibration(&report.click), "ctcvr": calibration(&report.ctcvr) },
            "truth": truth(data, &labels, &dataset, test)?,
            "looks": [LookFigures { step: None, metrics, figures, texts: vec![] }],
        });
        write_json(&folder.join(JUDGED_FILE), &judged)?;
        let with = all.iter().filter(|point| as_of(point).is_some()).count();
        parents.progress().say(&format!(
            "{} parameters, {} points ({with} with features), {} impressions tested on; {}; {}; left out: {left_out:?}, features of {} \
             unknown users and {} unknown items",
            report.parameters,
            all.len(),
            report.impressions[2],
            told("clicks", &report.click),
            told("conversions", &report.ctcvr),
            log.unknown_users,
            log.unknown_items,
        ));
        let time = |one: &Latency| format!("{} × {}: {:.2} / {:.2}", one.users, one.candidates, one.p50_ms, one.p99_ms);
        parents.progress().say(&format!(
            "onnx/graph.onnx: chances within {:.1e} of the model's; users × candidates: median / 99th percentile in ms on one thread: {}",
            report.graph_apart,
            latency.iter().map(time).collect::<Vec<_>>().join(", ")
        ));
        Ok(())
    }
}

fn calibration(figures: &TargetFigures) -> Calibration {
    Calibration::new(figures.calibration.iter().map(|bucket| (bucket.predicted, bucket.observed)))
}

/// What a ranker costs: its size, and the median of the calls in which one user's candidates, and those of several users, are asked for (ms).
fn cost(parameters: usize, latency: &[Latency]) -> BTreeMap<String, f64> {
    let asked = latency.iter().filter(|one| one.candidates == 100);
    let times = asked.map(|one| (format!("ms_{}x{}", one.users, one.candidates), one.p50_ms));
    times.chain([("parameters".to_owned(), parameters as f64)]).collect()
}

/// What of taiji's features a ranker may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Group {
    /// Codes.
    Intra,
    /// The cross-user sequence.
    Cross,
}

impl Rank {
    fn features(&self, parents: &Parents, dataset: &Dataset) -> Result<FeatureLog, StageError> {
        let made = parents.optional(Artefact::Features).map(|folder| folder.join(FEATURES_FILE));
        if made.is_some() && self.features.is_some() {
            let message = "a stage of kind features is named in from, too: leave one out".to_string();
            return Err(StageError::Setting { key: "features", message });
        }
        let Some(path) = made.or(self.features.clone()) else { return Ok(FeatureLog::default()) };
        let mut log = FeatureLog::read(&path, dataset)?;
        log.keep(self.reads.contains(&Group::Intra), self.reads.contains(&Group::Cross));
        Ok(log)
    }
}

fn told(what: &str, figures: &TargetFigures) -> String {
    let TargetFigures { auc, gauc, log_loss, predicted_over_observed, .. } = figures;
    let area = |area: &Option<f64>| area.map_or("-".to_owned(), |area| format!("{area:.4}"));
    format!(
        "{what}: AUC {}, GAUC {}, log-loss {log_loss:.4}, predicted/observed {predicted_over_observed:.3}",
        area(auc),
        area(gauc)
    )
}

/// Training, validation and test points, which lie in the order of time: the newest are tested on, those before them validated on. What
/// happened at one instant (a day, of a clock that counts days) is on one side.
fn by_time<'a>(points: &'a [Point], settings: &RankSettings) -> Result<[&'a [Point]; 3], RankError> {
    let count = |share: f64, of: usize| (share * of as f64).ceil() as usize;
    let cut = |points: &'a [Point], last: usize| {
        let instant = points.get(points.len() - last).map_or(i64::MAX, |point| point.cut.before_ms);
        points.split_at(points.partition_point(|point| point.cut.before_ms < instant))
    };
    let (before, test) = cut(points, count(settings.test_share, points.len()));
    let (training, validation) = cut(before, count(settings.validation_share, before.len()));
    let parts = [("training", training), ("validation", validation), ("test", test)];
    match parts.iter().find(|(_, part)| part.is_empty()) {
        Some((part, _)) => Err(RankError::NoPoints { part, points: points.len() }),
        None => Ok([training, validation, test]),
    }
}
