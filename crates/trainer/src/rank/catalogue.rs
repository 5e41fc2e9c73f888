//! The whole catalogue ranked at a point: where does what was clicked stand?
//!
//! In: a trained model, test points and their rows. Out: NDCG@10 a point. Called by `stages`. Figures among drawn items depend on how they are
//! drawn (Krichene and Rendle, KDD 2020). A model that was taught among items drawn by their popularity has left it out of its chances:
//! ranking all items, it is put back in.

use super::batch::Batch;
use super::inputs::{ItemFields, Row};
use super::{Inputs, Point, RankError, RankModel, Vocabulary};
use crate::evaluate::{ndcg, rank_by_score};
use std::collections::HashMap;

/// Items scored together.
const SCORED_ITEMS: usize = 1024;
const LIST: usize = 10;

/// NDCG@10 of the clicked items of a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PointNdcg {
    /// Index into the dataset's users.
    pub user: usize,
    /// Each clicked item among all items of the catalogue, mean.
    pub catalogue: f64,
    /// The same among the items of the point's own impressions.
    pub shown: f64,
}

/// ln(1 + clicks) of each item of the catalogue among some points.
pub fn popularity(points: &[Point], items: usize) -> Vec<f64> {
    let mut clicks = vec![0.0_f64; items];
    let clicked = points.iter().flat_map(|point| &point.impressions).filter(|one| one.clicked);
    clicked.for_each(|one| clicks[one.item] += 1.0);
    clicks.into_iter().map(f64::ln_1p).collect()
}

/// Of at most `count` points with a click, evenly over `points`, whose rows `inputs` are. By the logit of P(click), and among all items with
/// `prior` (one an item) added; equals count half.
pub fn catalogue_ndcg(
    model: &RankModel,
    vocabulary: &Vocabulary,
    points: &[Point],
    inputs: &Inputs,
    (count, prior): (usize, Option<&[f64]>),
) -> Result<Vec<PointNdcg>, RankError> {
    // Items that the model cannot tell apart are scored once.
    let mut distinct: Vec<ItemFields> = Vec::new();
    let mut known: HashMap<ItemFields, usize> = HashMap::new();
    let mut place_of = |fields: &ItemFields| {
        *known.entry(*fields).or_insert_with(|| {
            distinct.push(*fields);
            distinct.len() - 1
        })
    };
    let places: Vec<usize> = vocabulary.items.iter().map(&mut place_of).collect();
    let clicked = points.iter().zip(&inputs.rows).filter(|(point, _)| point.impressions.iter().any(|one| one.clicked));
    let clicked: Vec<(&Point, &Row)> = clicked.collect();
    let taken = count.min(clicked.len());
    let of = |place: usize| {
        let (point, row) = clicked[place * clicked.len() / taken];
        let logits = logits(model, row, &distinct)?;
        let own: Vec<f64> = point.impressions.iter().map(|one| logits[places[one.item]]).collect();
        let prior = |item: usize| prior.map_or(0.0, |prior| prior[item]);
        let scores: Vec<f64> = places.iter().enumerate().map(|(item, place)| logits[*place] + prior(item)).collect();
        let hits = || point.impressions.iter().enumerate().filter(|(_, one)| one.clicked);
        let mean = |worth: &dyn Fn(usize, usize) -> f64| {
            hits().map(|(place, one)| worth(place, one.item)).sum::<f64>() / hits().count() as f64
        };
        Ok(PointNdcg {
            user: point.user,
            catalogue: mean(&|_, item| ndcg(rank_by_score(&scores, item), LIST)),
            shown: mean(&|place, _| ndcg(rank_by_score(&own, place), LIST)),
        })
    };
    (0..taken).map(of).collect()
}

/// Logits of P(click) of items for one row.
fn logits(model: &RankModel, row: &Row, items: &[ItemFields]) -> Result<Vec<f64>, RankError> {
    let mut all = Vec::with_capacity(items.len());
    for part in items.chunks(SCORED_ITEMS) {
        let asked = Row { shown: part.iter().map(|fields| (*fields, false, false)).collect(), ..row.clone() };
        let logits = model.logits(&Batch::of(&[&asked], model, None)?)?.to_vec2::<f32>()?;
        all.extend(logits.into_iter().map(|logits| f64::from(logits[0])));
    }
    Ok(all)
}
