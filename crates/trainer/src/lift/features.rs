//! A backfill → what a ranker is given at each point.
//!
//! In: points, a backfill of them, a codebook. Out: feature lines, of the points that have something. Called by `stages`.

use super::backfill::{Entry, Moment, is_before_day};
use super::neighbours::{Members, shown_before};
use super::{Backfill, ItemVectors, LiftError};
use crate::codebook::PrefixCodebook;
use crate::data::{DEFAULT_TARGET, Dataset, day_of, next_target};
use crate::rank::{FeatureLine, Point};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use taiji::encode::Encoder;
use taiji::quantize::PqCodebook;

/// Who is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The nearest by the vector, as served.
    #[default]
    Vector,
    /// Anybody of the generation.
    Random,
    /// The nearest by what was bought, without text.
    Collaborative,
}

/// Settings of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FeatureSettings {
    /// Who is shown.
    pub neighbour: Rule,
    /// Items of the cross-user sequence.
    pub cross: usize,
    /// Share of the points whose answer is replaced by the truth: the categories of what is bought next.
    pub truth: f64,
    /// Whether every point has the features of another user's earlier point instead of its own.
    pub permute: bool,
    /// Decides what is drawn.
    pub seed: u64,
}

impl Default for FeatureSettings {
    fn default() -> Self {
        Self { neighbour: Rule::Vector, cross: 20, truth: 0.0, permute: false, seed: 7 }
    }
}

/// Vectors → codes.
#[derive(Debug, Clone, Copy)]
pub enum Codes<'a> {
    /// A code a slot, as served.
    Product(&'a PqCodebook),
    /// Prefixes of residual codes.
    Prefixes(&'a PrefixCodebook),
}

impl Codes<'_> {
    fn of(&self, vector: &[f32]) -> Result<Vec<u32>, LiftError> {
        match self {
            Codes::Product(codebook) => Ok(codebook.encode(vector)?.into_iter().map(u32::from).collect()),
            Codes::Prefixes(codebook) => Ok(codebook.encode(vector)?),
        }
    }
}

/// What features are made with.
pub struct Parts<'a> {
    /// The users.
    pub dataset: &'a Dataset,
    /// What the pipeline made of them.
    pub backfill: &'a Backfill,
    /// Without them, a feature has none.
    pub codes: Option<Codes<'a>>,
    /// Embeds the truth; needed where there is a share of it.
    pub encoder: Option<&'a dyn Encoder>,
    /// Needed by the collaborative rule.
    pub items: Option<&'a ItemVectors>,
}

/// A point's own text, as a vector.
type Own<'a> = HashMap<(usize, i64), (Entry, std::borrow::Cow<'a, [f32]>)>;

/// Lines of the points, in their order (by time).
pub fn feature_lines(
    parts: &Parts<'_>,
    points: &[Point],
    settings: &FeatureSettings,
) -> Result<Vec<FeatureLine>, LiftError> {
    check(parts, settings)?;
    let own = own_vectors(parts, points, settings)?;
    let members = generations(parts, settings)?;
    let mut lines = Vec::with_capacity(points.len());
    for point in points {
        let key = (point.user, point.cut.before_ms);
        let Some((entry, vector)) = own.get(&key) else { continue };
        let made_ms = entry.1;
        let moment = Moment::before(parts.dataset, point.user, made_ms);
        // What was made at a moment shows a neighbour of then, as that one was then.
        let neighbour = match parts.backfill.generations.as_of(made_ms) {
            Some(place) => choose(parts, settings, (members.get(place), place), (moment, made_ms), vector)?,
            None => None,
        };
        let codes = parts.codes.map(|codes| codes.of(vector)).transpose()?.unwrap_or_default();
        let shown = neighbour.map(|user| shown_before(parts.dataset, user, day_of(made_ms))).unwrap_or_default();
        lines.push(FeatureLine {
            user_id: parts.dataset.users[point.user].user_id.clone(),
            // What they were made of is older.
            generated_at_ms: made_ms - 1,
            point_ms: Some(key.1),
            sparse_ids: codes,
            item_ids: shown.into_iter().take(settings.cross).map(|behaviour| behaviour.item_id).collect(),
        });
    }
    Ok(if settings.permute { permuted(&lines, settings.seed) } else { lines })
}

/// Refuses settings that need what is not among the parts.
fn check(parts: &Parts<'_>, settings: &FeatureSettings) -> Result<(), LiftError> {
    let fail = |field, message: &str| Err(LiftError::Settings { field, message: message.to_string() });
    if settings.neighbour == Rule::Vector && parts.backfill.dim == 0 {
        return fail(
            "neighbour",
            "vector needs texts, and the backfill embedded nothing: take random or collaborative",
        );
    }
    if parts.backfill.dim > 0 && parts.codes.is_none() {
        return fail("from", "lacks a codebook, or a prefix codebook, for what the backfill embedded");
    }
    if settings.truth > 0.0 && parts.codes.is_none() {
        return fail("truth", "needs texts, and the backfill embedded nothing");
    }
    Ok(())
}

/// Vectors of the points' texts, or of the truth in their place.
fn own_vectors<'a>(parts: &Parts<'a>, points: &[Point], settings: &FeatureSettings) -> Result<Own<'a>, LiftError> {
    let mut own: Own = HashMap::with_capacity(points.len());
    let mut known: HashMap<String, Vec<f32>> = HashMap::new();
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    for point in points {
        // Drawn for every point, so that a larger share keeps the points of a smaller one.
        let drawn: f64 = random.random();
        let key = (point.user, point.cut.before_ms);
        let Some(&entry) = parts.backfill.points.get(&key) else { continue };
        let told = if drawn < settings.truth { truth(parts.dataset, point) } else { None };
        let vector = match told {
            None => parts.backfill.vector(entry.2).into(),
            Some(text) => embed(parts, &mut known, text)?.into(),
        };
        own.insert(key, (entry, vector));
    }
    Ok(own)
}

/// Categories of what is bought next, as an answer would name them.
fn truth(dataset: &Dataset, point: &Point) -> Option<String> {
    let user = &dataset.users[point.user];
    let item = next_target(dataset, user, DEFAULT_TARGET, point.cut)?;
    Some(dataset.items[item].categories.join(" > "))
}

fn embed(parts: &Parts<'_>, known: &mut HashMap<String, Vec<f32>>, text: String) -> Result<Vec<f32>, LiftError> {
    if let Some(vector) = known.get(&text) {
        return Ok(vector.clone());
    }
    let message = "needs an encoder: name one in from".to_string();
    let encoder = parts.encoder.ok_or(LiftError::Settings { field: "truth", message })?;
    let vector = encoder.encode(&[&text])?.into_iter().next().unwrap_or_default();
    known.insert(text, vector.clone());
    Ok(vector)
}

/// The index of every generation, by the rule's own vectors; none where nobody is searched for.
fn generations(parts: &Parts<'_>, settings: &FeatureSettings) -> Result<Vec<Members>, LiftError> {
    let (backfill, dataset) = (parts.backfill, parts.dataset);
    if settings.neighbour == Rule::Random {
        return Ok(vec![]);
    }
    if settings.neighbour == Rule::Vector {
        let of = |entries: &Vec<Entry>| {
            Members::new(dataset, entries.iter().map(|entry| (entry.0, backfill.vector(entry.2))), backfill.dim)
        };
        return backfill.members.iter().map(of).collect();
    }
    let items = collaborative(parts)?;
    let of = |entries: &Vec<Entry>| {
        let vectors: Vec<(usize, Vec<f32>)> = entries
            .iter()
            .filter_map(|&(user, as_of_ms, _)| {
                Some((user, items.user(&engaged(dataset, Moment::before(dataset, user, as_of_ms)))?))
            })
            .collect();
        Members::new(dataset, vectors.iter().map(|(user, vector)| (*user, vector.as_slice())), items.dim)
    };
    backfill.members.iter().map(of).collect()
}

fn collaborative<'a>(parts: &Parts<'a>) -> Result<&'a ItemVectors, LiftError> {
    let message = "collaborative needs vectors of items: name a stage of kind collaborative in from".to_string();
    parts.items.ok_or(LiftError::Settings { field: "neighbour", message })
}

/// Items of a user up to a moment, oldest first.
fn engaged(dataset: &Dataset, moment: Moment) -> Vec<usize> {
    let all = dataset.users[moment.user].engagements_before(moment.cut);
    all.iter().filter_map(|behaviour| behaviour.item).collect()
}

/// The neighbour of a point in a generation.
fn choose(
    parts: &Parts<'_>,
    settings: &FeatureSettings,
    (members, generation): (Option<&Members>, usize),
    (moment, point_ms): (Moment, i64),
    vector: &[f32],
) -> Result<Option<usize>, LiftError> {
    let entries = &parts.backfill.members[generation];
    // The data say so; whoever makes them otherwise is told.
    if let Some(late) = entries.iter().find(|entry| !is_before_day(entry.1, point_ms)) {
        let message = format!("generation {generation} of {} is not before the day of {point_ms}", late.1);
        return Err(LiftError::Backfill { path: "backfill.jsonl".into(), message });
    }
    let nearest = |vector: &[f32]| match members {
        Some(members) => members.nearest(parts.dataset, moment, point_ms, vector),
        None => Ok(None),
    };
    match settings.neighbour {
        Rule::Vector => nearest(vector),
        Rule::Collaborative => match collaborative(parts)?.user(&engaged(parts.dataset, moment)) {
            Some(vector) => nearest(&vector),
            None => Ok(None),
        },
        Rule::Random => {
            let others: Vec<usize> =
                entries.iter().map(|entry| entry.0).filter(|other| *other != moment.user).collect();
            let mut random = ChaCha8Rng::seed_from_u64(settings.seed ^ point_ms as u64);
            random.set_stream(moment.user as u64);
            Ok((!others.is_empty()).then(|| others[random.random_range(0..others.len())]))
        }
    }
}

/// Every line with the codes and items of an earlier line of somebody else; where there is none, without any.
fn permuted(lines: &[FeatureLine], seed: u64) -> Vec<FeatureLine> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut all = Vec::with_capacity(lines.len());
    for (place, line) in lines.iter().enumerate() {
        // Lines are in the order of time: what lies before was made before. A few draws find another user's, if there is one.
        let drawn = (0..16).filter(|_| place > 0).map(|_| &lines[random.random_range(0..place)]);
        let other = { drawn }.find(|other| other.user_id != line.user_id);
        let (sparse_ids, item_ids) =
            other.map(|other| (other.sparse_ids.clone(), other.item_ids.clone())).unwrap_or_default();
        all.push(FeatureLine { sparse_ids, item_ids, ..line.clone() });
    }
    all
}
