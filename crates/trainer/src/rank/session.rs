//! The ranker's graph on ONNX Runtime, as a ranking service runs it: does it say what the model says, and how fast.
//!
//! In: the folder of a graph, rows. Out: chances; [`Latency`]. Called by `stages`.

use super::inputs::{ITEM_FIELDS, ItemFields, Known, Row, WORDS};
use super::training::GRAPH_FOLDER;
use super::{Inputs, RankError, RankModel, Scored};
use crate::stats::quantile;
use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;
use std::time::Instant;
use taiji::onnx::{GRAPH_FILE, runtime};

/// Chances of the graph and of the model may differ by so much: both add f32 numbers, in other orders.
const MOST_APART: f64 = 1e-5;
/// Where a router chooses experts, two that are as good may change places by that: so many of the impressions may differ by more.
const ROUTED_OTHERWISE: f64 = 1e-4;
/// Points of one call when both are compared.
const COMPARED_POINTS: usize = 64;
/// Users and candidates of each in one timed call.
const SHAPES: [(usize, usize); 5] = [(1, 1), (1, 10), (1, 100), (1, 500), (16, 100)];
/// Calls before the timed ones, and timed ones.
const CALLS: (usize, usize) = (20, 200);

/// Time of one call of the graph, one thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Users of the call.
    pub users: usize,
    /// Candidates of each.
    pub candidates: usize,
    /// Median (ms).
    pub p50_ms: f64,
    /// 99th percentile (ms).
    pub p99_ms: f64,
}

/// A loaded graph.
pub struct RankSession {
    session: Session,
    /// Attributes of profiles; tables of codes and codes of each.
    shape: (usize, (usize, usize)),
    /// Whether a router chooses what computes.
    routed: bool,
}

type Named = (Cow<'static, str>, SessionInputValue<'static>);

impl RankSession {
    /// Opens the graph that was written of a model.
    pub(super) fn open(folder: &Path, model: &RankModel, threads: usize) -> Result<Self, RankError> {
        let environment = runtime::environment(None)?;
        let session = runtime::open_session(&environment, &folder.join(GRAPH_FILE), threads)?;
        Ok(Self { session, shape: model.shape(), routed: model.is_routed() })
    }

    /// P(click) and P(conversion | click) of every impression of some rows, in their order.
    pub(super) fn score(&mut self, rows: &[&Row]) -> Result<Vec<[f32; 2]>, RankError> {
        let inputs = self.inputs(rows)?;
        let outputs = self.session.run(inputs)?;
        let [click, conversion] = ["click", "conversion"].map(|name| outputs[name].try_extract_tensor::<f32>());
        let ((_, click), (_, conversion)) = (click?, conversion?);
        Ok(click.iter().zip(conversion).map(|(click, conversion)| [*click, *conversion]).collect())
    }

    fn inputs(&self, rows: &[&Row]) -> Result<Vec<Named>, RankError> {
        let (profile, (tables, each)) = self.shape;
        let points = rows.len();
        let mut inputs: Vec<Named> = Vec::new();
        let mut add = |name: &'static str, shape: Vec<usize>, values: Vec<i64>| -> Result<(), RankError> {
            inputs.push((name.into(), Tensor::from_array((shape, values))?.into()));
            Ok(())
        };
        let histories: Vec<&[Known]> = rows.iter().map(|row| row.history.as_slice()).collect();
        let crossed: Vec<&[Known]> = rows.iter().map(|row| row.cross.as_slice()).collect();
        let actions = filled(&histories, |(_, action)| [*action]);
        add("history_actions", vec![points, longest(&histories)], actions)?;
        for (items, length, all) in
            [("history_items", "history_length", &histories), ("cross_items", "cross_length", &crossed)]
        {
            add(items, vec![points, longest(all), ITEM_FIELDS], filled(all, |(fields, _)| *fields))?;
            add(length, vec![points], all.iter().map(|one| one.len() as i64).collect())?;
        }
        if profile > 0 {
            add("profile", vec![points, profile], ids(rows.iter().flat_map(|row| &row.profile)))?;
        }
        let word = |row: &Row, place: usize| row.words.get(place).map_or(0, |word| i64::from(*word));
        let words = rows.iter().flat_map(|row| (0..WORDS).map(|place| word(row, place))).collect();
        add("words", vec![points, WORDS], words)?;
        add("domains", vec![points], rows.iter().map(|row| i64::from(row.domain)).collect())?;
        if tables > 0 {
            let codes = rows.iter().flat_map(|row| (0..tables).map(|table| i64::from(row.code(table, each)))).collect();
            add("codes", vec![points, tables], codes)?;
        }
        let shown = rows.iter().flat_map(|row| row.shown.iter().flat_map(|one| &one.0));
        let owners: Vec<i64> =
            rows.iter().zip(0..).flat_map(|(row, point)| row.shown.iter().map(move |_| point)).collect();
        add("items", vec![owners.len(), ITEM_FIELDS], ids(shown))?;
        add("owners", vec![owners.len()], owners)?;
        Ok(inputs)
    }

    /// Greatest difference between the chances of the graph and those of the model (`expected`, of the same inputs); too great a one is an
    /// error, of a routed model more than a few of them.
    pub(super) fn compare(&mut self, expected: &[Scored], inputs: &Inputs) -> Result<f64, RankError> {
        let mut chances = Vec::with_capacity(inputs.impressions());
        for rows in inputs.rows.chunks(COMPARED_POINTS) {
            chances.extend(self.score(&rows.iter().collect::<Vec<_>>())?);
        }
        let apart = |(one, other): (&[f32; 2], &Scored)| {
            (f64::from(one[0]) - other.click).abs().max((f64::from(one[1]) - other.conversion).abs())
        };
        let all: Vec<f64> = chances.iter().zip(expected).map(apart).collect();
        let most = all.iter().copied().fold(0.0, f64::max);
        let close = all.iter().filter(|apart| **apart <= MOST_APART).count();
        let others = if self.routed { ROUTED_OTHERWISE * expected.len() as f64 } else { 0.0 };
        // A number that is none is no agreement, and no greatest difference sees it.
        let numbers = chances.iter().flatten().all(|chance| chance.is_finite());
        if numbers && all.len() == expected.len() && (all.len() - close) as f64 <= others {
            return Ok(most);
        }
        Err(RankError::Parity { most, bound: MOST_APART })
    }

    /// Users like those of `inputs`, candidates out of all that was shown.
    fn latency(&mut self, inputs: &Inputs) -> Result<Vec<Latency>, RankError> {
        let shown: Vec<(ItemFields, bool, bool)> =
            inputs.rows.iter().flat_map(|row| row.shown.iter().copied()).collect();
        SHAPES.into_iter().map(|(users, candidates)| self.timed(inputs, &shown, (users, candidates))).collect()
    }

    fn timed(
        &mut self,
        inputs: &Inputs,
        shown: &[(ItemFields, bool, bool)],
        (users, candidates): (usize, usize),
    ) -> Result<Latency, RankError> {
        let mut times = Vec::with_capacity(CALLS.1);
        for call in 0..CALLS.0 + CALLS.1 {
            let row = |place: usize| {
                let of = &inputs.rows[(call * users + place) % inputs.rows.len()];
                let from = (call * users + place) * candidates;
                let shown = (from..from + candidates).map(|one| shown[one % shown.len()]).collect();
                Row { shown, ..of.clone() }
            };
            let rows: Vec<Row> = (0..users).map(row).collect();
            let rows: Vec<&Row> = rows.iter().collect();
            let begun = Instant::now();
            self.score(&rows)?;
            if call >= CALLS.0 {
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(Latency { users, candidates, p50_ms: quantile(&times, 0.5), p99_ms: quantile(&times, 0.99) })
    }
}

/// Times calls of the graph in a trained ranker's folder, on one thread.
pub fn latency(folder: &Path, model: &RankModel, inputs: &Inputs) -> Result<Vec<Latency>, RankError> {
    RankSession::open(&folder.join(GRAPH_FOLDER), model, 1)?.latency(inputs)
}

/// At least 1.
fn longest(all: &[&[Known]]) -> usize {
    all.iter().map(|one| one.len()).max().unwrap_or(0).max(1)
}

fn ids<'a>(numbers: impl Iterator<Item = &'a u32>) -> Vec<i64> {
    numbers.map(|number| i64::from(*number)).collect()
}

/// Rows of equal length: `of` each of their items, then zeros.
fn filled<const N: usize>(all: &[&[Known]], of: impl Fn(&Known) -> [u32; N]) -> Vec<i64> {
    let length = longest(all);
    let at = |one: &[Known], place: usize| one.get(place).map_or([0; N], &of).map(i64::from);
    all.iter().flat_map(|one| (0..length).flat_map(|place| at(one, place)).collect::<Vec<_>>()).collect()
}
