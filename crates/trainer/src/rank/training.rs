//! Training a ranker: what `fit`'s loop needs to know of it, and the run around it.
//!
//! In: inputs of training, validation and test points. Out: weights, and figures of the test points. Called by `stages`.

use super::batch::{Batch, FeatureDropout};
use super::inputs::Row;
use super::session::RankSession;
use super::{Inputs, RankError, RankModel, RankSettings, Scored, TargetFigures, Vocabulary, figures, file, graph};
use crate::fit::{self, AdamW, CurvePoint, Evaluated, Gradients, ParameterSet, Task, TrainEvent, Validated};
use crate::nn::Module;
use crate::nn::tensor_file::write_json;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Name of the report's file.
const REPORT_FILE: &str = "rank_report.json";
/// Name of the graph's folder.
pub(super) const GRAPH_FOLDER: &str = "onnx";

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankReport {
    /// Values of the model.
    pub parameters: usize,
    /// Points trained, validated and tested on.
    pub points: [usize; 3],
    /// Impressions of them.
    pub impressions: [usize; 3],
    /// Steps.
    pub steps: u64,
    /// Seconds, earlier attempts of a resumed run included.
    pub seconds: f64,
    /// Mean loss of the kept weights on the validation points (nats an impression, both targets).
    pub validation_loss: Option<f64>,
    /// Step of the lowest validation loss.
    pub best_step: Option<u64>,
    /// Clicks of the test points.
    pub click: TargetFigures,
    /// Clicks that converted.
    pub ctcvr: TargetFigures,
    /// Greatest difference between the chances of the test impressions by the ONNX graph and by the model.
    pub graph_apart: f64,
    /// The run over time.
    pub curve: Vec<CurvePoint>,
}

/// Trains a ranker from scratch (or from the newest resumable state in `out`), writes weights, vocabulary, ONNX graph and report into `out`,
/// and returns it with the report and the chances of the test points' impressions. `parts`: training, validation, test.
pub fn train(
    settings: &RankSettings,
    vocabulary: &Vocabulary,
    parts: [&Inputs; 3],
    out: &Path,
    progress: &mut (dyn FnMut(&TrainEvent) + Send),
) -> Result<(RankModel, RankReport, Vec<Scored>), RankError> {
    settings.check()?;
    let [training, validation, test] = parts;
    check(training, "training")?;
    check(test, "test")?;
    let threads = settings.threads;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| RankError::Threads { threads, message: error.to_string() })?;
    pool.install(|| {
        let model = RankModel::random(vocabulary, &settings.arch(), settings.seed)?;
        let optimizer = AdamW::new(ParameterSet::all(&model), settings.optimizer());
        let epochs = 0..settings.epochs as u64;
        let plan = epochs.flat_map(|epoch| plan_epoch(training.rows.len(), settings, epoch)).collect();
        let mut ranking = Ranking { settings, training, validation, plan, model };
        let (run_id, fitting) = (ranking.run_id()?, settings.fitting(ranking.steps()));
        let fitted = fit::run(&mut ranking, optimizer, &fitting, &run_id, out, progress)?;
        let model = ranking.model;
        let scored = score(&model, test)?;
        let (click, ctcvr) = figures(&scored);
        file::save(out, &model, vocabulary, &settings.arch(), (settings.history, settings.cross))?;
        let folder = out.join(GRAPH_FOLDER);
        graph::write(&model, &folder)?;
        let report = RankReport {
            parameters: model.parameters().iter().map(|parameter| parameter.var.elem_count()).sum(),
            points: parts.map(|part| part.rows.len()),
            impressions: parts.map(Inputs::impressions),
            steps: fitted.steps,
            seconds: fitted.seconds,
            validation_loss: fitted.kept_loss(true),
            best_step: fitted.best.map(|(step, _)| step),
            click,
            ctcvr,
            graph_apart: RankSession::open(&folder, &model, threads)?.compare(&scored, test)?,
            curve: fitted.curve,
        };
        write_json(&out.join(REPORT_FILE), &report)?;
        fit::clear(out)?;
        Ok((model, report, scored))
    })
}

/// Chances of every impression of some points, in their order.
pub fn score(model: &RankModel, inputs: &Inputs) -> Result<Vec<Scored>, RankError> {
    let mut scored = Vec::with_capacity(inputs.impressions());
    let sigmoid = |logit: f32| 1.0 / (1.0 + (-f64::from(logit)).exp());
    for rows in model.pieces(&inputs.rows) {
        let rows: Vec<&Row> = rows.iter().collect();
        let logits = model.logits(&Batch::of(&rows, model, None)?)?.to_vec2::<f32>()?;
        let shown = rows.iter().flat_map(|row| row.shown.iter().map(|one| (row.user, one)));
        scored.extend(shown.zip(logits).map(|((user, &(_, clicked, converted)), logits)| Scored {
            user,
            click: sigmoid(logits[0]),
            conversion: sigmoid(logits[1]),
            clicked,
            converted,
        }));
    }
    Ok(scored)
}

/// Both labels must vary, or there is nothing to learn or to judge.
fn check(inputs: &Inputs, part: &'static str) -> Result<(), RankError> {
    let shown = || inputs.rows.iter().flat_map(|row| &row.shown);
    let count = shown().count();
    let labels = [("clicked", shown().filter(|one| one.1).count()), ("converted", shown().filter(|one| one.2).count())];
    match labels.into_iter().find(|(_, positive)| [0, count].contains(positive)) {
        Some((label, positive)) => Err(RankError::ConstantLabel { part, label, positive, count }),
        None => Ok(()),
    }
}

/// The batches of one epoch, shuffled by (seed, epoch).
fn plan_epoch(points: usize, settings: &RankSettings, epoch: u64) -> Vec<Vec<usize>> {
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    random.set_stream(epoch + 1);
    let mut order: Vec<usize> = (0..points).collect();
    order.shuffle(&mut random);
    order.chunks(settings.batch).map(<[usize]>::to_vec).collect()
}

/// The task.
struct Ranking<'a> {
    settings: &'a RankSettings,
    training: &'a Inputs,
    validation: &'a Inputs,
    /// Point numbers of every step.
    plan: Vec<Vec<usize>>,
    model: RankModel,
}

impl Ranking<'_> {
    /// Hash of everything that decides the result.
    fn run_id(&self) -> Result<String, RankError> {
        let decisive = RankSettings {
            threads: 0,
            checkpoint_every: 0,
            catalogue_points: 0,
            catalogue_popularity: false,
            ..self.settings.clone()
        };
        let text = serde_json::to_string(&decisive)
            .map_err(|error| RankError::Settings { field: "settings", message: error.to_string() })?;
        let mut hash = Sha256::new();
        hash.update(text.as_bytes());
        for inputs in [self.training, self.validation] {
            inputs.rows.iter().for_each(|row| row.digest(&mut hash));
        }
        Ok(hex::encode(hash.finalize()))
    }
}

impl Task for Ranking<'_> {
    /// With its number, which decides what feature dropout leaves out.
    type Batch = (u64, Batch);
    type Error = RankError;

    fn steps(&self) -> u64 {
        self.plan.len() as u64
    }

    fn batches(&mut self, step: u64) -> Result<Vec<(u64, Batch)>, RankError> {
        let Some(chosen) = self.plan.get(step as usize) else { return Ok(Vec::new()) };
        let rows: Vec<&Row> = chosen.iter().map(|&point| &self.training.rows[point]).collect();
        let dropout = FeatureDropout { rate: self.settings.feature_dropout, seed: self.settings.seed, step };
        Ok(vec![(step, Batch::of(&rows, &self.model, Some(&dropout))?)])
    }

    fn evaluate(&mut self, (_, batch): &(u64, Batch), set: &ParameterSet) -> Result<Evaluated, RankError> {
        let loss = self.model.loss(batch, true)?;
        let shown = batch.clicked.elem_count();
        Ok(Evaluated {
            loss: f64::from(loss.to_scalar::<f32>()?),
            weight: shown as f64,
            tokens: shown as u64,
            gradients: Gradients::collect(set, &loss.backward()?)?,
        })
    }

    /// Mean loss of the validation impressions.
    fn validate(&mut self) -> Result<Option<Validated>, RankError> {
        let (mut total, mut count) = (0.0, 0);
        for rows in self.model.pieces(&self.validation.rows) {
            let rows: Vec<&Row> = rows.iter().collect();
            let batch = Batch::of(&rows, &self.model, None)?;
            let shown = batch.clicked.elem_count();
            total += f64::from(self.model.loss(&batch, false)?.to_scalar::<f32>()?) * shown as f64;
            count += shown;
        }
        Ok((count > 0).then(|| Validated { loss: total / count as f64, accuracy: None }))
    }

    fn epoch(&self, steps: u64) -> Option<f64> {
        let points: usize = self.plan.iter().take(steps as usize).map(Vec::len).sum();
        Some(points as f64 / self.training.rows.len() as f64)
    }
}
