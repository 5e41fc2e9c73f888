//! Rows of several points as columns of equal length, for one call of the model.
//!
//! In: rows. Out: a [`Batch`]. Called by `training`.

use super::inputs::{ITEM_FIELDS, ItemFields, Known, Row, WORDS};
use super::model::RankModel;
use candle_core::{Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A sequence of items a point, filled up at the end.
pub(super) struct Sequences {
    /// [points × length] a field.
    pub fields: [Tensor; ITEM_FIELDS],
    /// [points × length]: number of the action, and place from the newest.
    pub actions: Tensor,
    pub places: Tensor,
    /// [points, length]: 1 where there is an item.
    pub mask: Tensor,
    pub length: usize,
}

/// Columns of some points and of all their impressions.
pub(super) struct Batch {
    pub points: usize,
    pub history: Sequences,
    pub cross: Sequences,
    /// [points × fields].
    pub profile: Tensor,
    /// [points × WORDS], and [points, WORDS, 1]: 1 / words where there is one.
    pub words: Tensor,
    pub word_weights: Tensor,
    /// [points]: domain of the request.
    pub domains: Tensor,
    /// [points × fact_count]: rows of [`Factors`](super::factors::Factors); [points, fact_count, 1]: 1 where there is a fact.
    pub facts: Tensor,
    pub fact_mask: Tensor,
    pub fact_count: usize,
    /// [points × tables], numbers over all tables; 0 of a table = absent.
    pub codes: Tensor,
    /// [points, 2]: whether there are codes, and whether there is a cross-user sequence.
    pub present: Tensor,
    /// [impressions] a field.
    pub items: [Tensor; ITEM_FIELDS],
    /// [impressions]: the point of each.
    pub owners: Tensor,
    /// [impressions]: 1 where it came to a click; to a conversion.
    pub clicked: Tensor,
    pub converted: Tensor,
}

/// Leaves features out at random: which, depends on the seed and the step alone.
pub(super) struct FeatureDropout {
    pub rate: f64,
    pub seed: u64,
    pub step: u64,
}

fn ids(values: Vec<u32>) -> Result<Tensor> {
    let count = values.len();
    Tensor::from_vec(values, count, &Device::Cpu)
}

fn floats(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

fn columns<'a>(items: impl Iterator<Item = &'a ItemFields> + Clone) -> Result<[Tensor; ITEM_FIELDS]> {
    let column = |field: usize| ids(items.clone().map(|one| one[field]).collect());
    Ok([column(0)?, column(1)?, column(2)?, column(3)?, column(4)?, column(5)?])
}

impl Sequences {
    /// At least one place long, so that nothing is empty.
    fn of(all: &[&[Known]]) -> Result<Self> {
        let length = all.iter().map(|one| one.len()).max().unwrap_or(0).max(1);
        let none = ([0; ITEM_FIELDS], 0);
        let filled: Vec<Known> =
            all.iter().flat_map(|one| (0..length).map(|place| one.get(place).copied().unwrap_or(none))).collect();
        let mask = all.iter().flat_map(|one| (0..length).map(|place| f32::from(u8::from(place < one.len())))).collect();
        let places = (0..all.len()).flat_map(|_| 0..length as u32).collect();
        Ok(Self {
            fields: columns(filled.iter().map(|(fields, _)| fields))?,
            actions: ids(filled.iter().map(|(_, action)| *action).collect())?,
            places: ids(places)?,
            mask: floats(mask, (all.len(), length))?,
            length,
        })
    }
}

impl Batch {
    /// For a model: its codes and facts.
    pub fn of(rows: &[&Row], model: &RankModel, dropout: Option<&FeatureDropout>) -> Result<Self> {
        let (codes, layout) = (model.codes(), model.fact_rows());
        let mut random = dropout.map(|dropout| {
            let mut random = ChaCha8Rng::seed_from_u64(dropout.seed);
            random.set_stream(dropout.step + 1);
            (random, dropout.rate)
        });
        let mut kept = || random.as_mut().is_none_or(|(random, rate)| !random.random_bool(*rate));
        let kept: Vec<[bool; 2]> = rows.iter().map(|_| [kept(), kept()]).collect();
        let coded = |row: &Row| (0..codes.0).any(|table| row.code(table, codes.1) > 0);
        let with = |row: &&Row, kept: &[bool; 2]| (kept[0] && coded(row), kept[1] && !row.cross.is_empty());
        let there: Vec<(bool, bool)> = rows.iter().zip(&kept).map(|(row, kept)| with(row, kept)).collect();
        let histories: Vec<&[Known]> = rows.iter().map(|row| row.history.as_slice()).collect();
        let crossed = rows.iter().zip(&there).map(|(row, (_, has))| if *has { row.cross.as_slice() } else { &[] });
        let crossed: Vec<&[Known]> = crossed.collect();
        let weight = |row: &Row, place: usize| if place < row.words.len() { 1.0 / row.words.len() as f32 } else { 0.0 };
        let shown = || rows.iter().flat_map(|row| &row.shown);
        let owners = rows.iter().zip(0..).flat_map(|(row, point)| row.shown.iter().map(move |_| point)).collect();
        let (tables, each) = codes;
        let code = |row: &Row, has: bool, table: usize| -> u32 {
            (table * (each + 1)) as u32 + if has { row.code(table, each) } else { 0 }
        };
        let all_codes =
            rows.iter().zip(&there).flat_map(|(row, (has, _))| (0..tables).map(move |table| code(row, *has, table)));
        let word = |row: &Row, place: usize| row.words.get(place).copied().unwrap_or(0);
        let facts: Vec<Vec<Option<u32>>> =
            rows.iter().zip(&there).map(|(row, there)| row.facts(&layout, *there)).collect();
        let fact_count = facts.first().map_or(0, Vec::len);
        let there_is = |fact: &Option<u32>| f32::from(u8::from(fact.is_some()));
        Ok(Self {
            points: rows.len(),
            history: Sequences::of(&histories)?,
            cross: Sequences::of(&crossed)?,
            profile: ids(rows.iter().flat_map(|row| row.profile.iter().copied()).collect())?,
            words: ids(rows.iter().flat_map(|row| (0..WORDS).map(|place| word(row, place))).collect())?,
            word_weights: floats(
                rows.iter().flat_map(|row| (0..WORDS).map(|place| weight(row, place))).collect(),
                (rows.len(), WORDS, 1),
            )?,
            domains: ids(rows.iter().map(|row| row.domain).collect())?,
            facts: ids(facts.iter().flatten().map(|fact| fact.unwrap_or(0)).collect())?,
            fact_mask: floats(facts.iter().flatten().map(there_is).collect(), (rows.len(), fact_count, 1))?,
            fact_count,
            codes: ids(all_codes.collect())?,
            present: floats(
                there.iter().flat_map(|(codes, cross)| [codes, cross].map(|has| f32::from(u8::from(*has)))).collect(),
                (rows.len(), 2),
            )?,
            items: columns(shown().map(|(item, _, _)| item))?,
            owners: ids(owners)?,
            clicked: floats(shown().map(|one| f32::from(u8::from(one.1))).collect(), shown().count())?,
            converted: floats(shown().map(|one| f32::from(u8::from(one.2))).collect(), shown().count())?,
        })
    }
}
