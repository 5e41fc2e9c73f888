//! The frozen table, and what is said of pairs that it does not have.
//!
//! In: users and a ranker, or a folder. Out: [`Simulator`]. `simulator.safetensors` has `offsets` u64 [users + 1], `items` u32 [pairs] and
//! `ctcvr` f32 [pairs], a user's pairs by item; `simulator.json` whom and what the numbers stand for.

use super::candidates::Shelves;
use super::{Level, SimulateError, SimulatorSettings};
use crate::data::{Cut, Dataset};
use crate::nn::FileError;
use crate::nn::tensor_file::{write_atomically, write_json};
use crate::rank::{Impression, Inputs, Point, Ranker, score};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use taiji::event::Item;

const TABLE_FILE: &str = "simulator.safetensors";
const NAMES_FILE: &str = "simulator.json";
/// Users scored together.
const SCORED_USERS: usize = 8;

/// Whom to simulate: a user (index into the dataset's) at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Index.
    pub user: usize,
    /// What is known.
    pub cut: Cut,
}

/// What a simulator says of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// P(click and conversion).
    pub ctcvr: f64,
    /// How it is known.
    pub level: Level,
}

/// Chances of pairs, and means for the others.
#[derive(Debug)]
pub struct Simulator {
    names: Names,
    /// User id → row.
    rows: HashMap<String, usize>,
    offsets: Vec<usize>,
    items: Vec<u32>,
    ctcvr: Vec<f32>,
    /// Of every item of the catalogue: number of its second, and of its third level of category; `None` where it has none.
    paths: Vec<[Option<u32>; 2]>,
    /// Mean of everybody's pairs, by number of the third level.
    third_levels: HashMap<u32, f64>,
    mean: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    settings: SimulatorSettings,
    users: Vec<String>,
    items: Vec<String>,
    /// Share of all pairs of user and item that are in the table.
    coverage: f64,
}

impl Simulator {
    /// Scores the pairs of all users. `users`: at least one. Runs on the caller's threads; the same bytes whatever their number.
    pub fn build(
        dataset: &Dataset,
        users: &[User],
        ranker: &Ranker,
        settings: &SimulatorSettings,
    ) -> Result<Self, SimulateError> {
        settings.check()?;
        if users.is_empty() {
            return Err(SimulateError::NoUsers);
        }
        if ranker.model.sees_groups() {
            return Err(SimulateError::Groups);
        }
        let shelves = Shelves::new(dataset);
        let score_users = |users: &[User]| -> Result<Vec<Vec<(u32, f32)>>, SimulateError> {
            let shown = |user: &User| {
                let items = shelves.candidates(user.user, user.cut, settings);
                items.into_iter().map(|item| Impression { item, clicked: false, converted: false }).collect()
            };
            // The session goes on where the newest engagement was: what a prompt shows, too.
            let domain = |user: &User| {
                dataset.users[user.user].engagements_before(user.cut).last().and_then(|newest| newest.domain)
            };
            let point =
                |user: &User| Point { user: user.user, cut: user.cut, domain: domain(user), impressions: shown(user) };
            let points: Vec<Point> = users.iter().map(point).collect();
            // What taiji writes is made by the model that is rewarded here: a ranker that reads it would be asked about itself.
            let inputs = Inputs::encode(dataset, &ranker.vocabulary, &points, |_| None, ranker.limits)?;
            let mut scored = score(&ranker.model, &inputs)?.into_iter();
            let row = |point: &Point| {
                let chances = scored.by_ref().map(|scored| (scored.click * scored.conversion) as f32);
                point.impressions.iter().map(|impression| impression.item as u32).zip(chances).collect()
            };
            Ok(points.iter().map(row).collect())
        };
        let parts: Vec<_> = users.par_chunks(SCORED_USERS).map(score_users).collect::<Result<_, _>>()?;
        Ok(Self::frozen(dataset, users, parts.into_iter().flatten().collect(), settings))
    }

    /// Every pair with the chance that `chance` knows of it (user of the dataset, item): a reward without a ranker's errors, where
    /// somebody knows the truth.
    pub fn of_truth(
        dataset: &Dataset,
        users: &[User],
        settings: &SimulatorSettings,
        chance: impl Fn(usize, usize) -> Option<f64> + Sync,
    ) -> Result<Self, SimulateError> {
        settings.check()?;
        if users.is_empty() {
            return Err(SimulateError::NoUsers);
        }
        let row = |user: &User| -> Vec<(u32, f32)> {
            let pair = |item| Some((item as u32, chance(user.user, item)? as f32));
            (0..dataset.items.len()).filter_map(pair).collect()
        };
        Ok(Self::frozen(dataset, users, users.par_iter().map(row).collect(), settings))
    }

    fn frozen(dataset: &Dataset, users: &[User], rows: Vec<Vec<(u32, f32)>>, settings: &SimulatorSettings) -> Self {
        let mut offsets = vec![0];
        rows.iter().for_each(|row| offsets.push(offsets.last().copied().unwrap_or(0) + row.len()));
        let pairs: Vec<(u32, f32)> = rows.into_iter().flatten().collect();
        let names = Names {
            settings: settings.clone(),
            users: users.iter().map(|user| dataset.users[user.user].user_id.clone()).collect(),
            items: dataset.items.iter().map(|item| item.id.clone()).collect(),
            coverage: pairs.len() as f64 / (users.len() * dataset.items.len()) as f64,
        };
        let (items, ctcvr) = pairs.into_iter().unzip();
        Self::of(names, offsets, items, ctcvr, &dataset.items)
    }

    fn of(names: Names, offsets: Vec<usize>, items: Vec<u32>, ctcvr: Vec<f32>, catalogue: &[Item]) -> Self {
        let paths = paths(catalogue);
        let mut sums: HashMap<u32, (f64, usize)> = HashMap::new();
        for (item, chance) in items.iter().zip(&ctcvr) {
            let Some(third) = paths.get(*item as usize).and_then(|path| path[1]) else { continue };
            let sum = sums.entry(third).or_default();
            *sum = (sum.0 + f64::from(*chance), sum.1 + 1);
        }
        Self {
            rows: names.users.iter().cloned().zip(0..).collect(),
            third_levels: sums.into_iter().map(|(third, (sum, count))| (third, sum / count as f64)).collect(),
            mean: ctcvr.iter().map(|chance| f64::from(*chance)).sum::<f64>() / ctcvr.len().max(1) as f64,
            names,
            offsets,
            items,
            ctcvr,
            paths,
        }
    }

    /// Writes both files into a folder.
    pub fn write(&self, folder: &Path) -> Result<(), SimulateError> {
        let path = folder.join(TABLE_FILE);
        let wrong = |error: safetensors::SafeTensorError| FileError::content(&path, error);
        let offsets: Vec<u8> = self.offsets.iter().flat_map(|offset| (*offset as u64).to_le_bytes()).collect();
        let items: Vec<u8> = self.items.iter().flat_map(|item| item.to_le_bytes()).collect();
        let ctcvr: Vec<u8> = self.ctcvr.iter().flat_map(|chance| chance.to_le_bytes()).collect();
        let (rows, pairs) = (vec![self.offsets.len()], vec![self.items.len()]);
        let views = [
            ("offsets", TensorView::new(Dtype::U64, rows, &offsets).map_err(wrong)?),
            ("items", TensorView::new(Dtype::U32, pairs.clone(), &items).map_err(wrong)?),
            ("ctcvr", TensorView::new(Dtype::F32, pairs, &ctcvr).map_err(wrong)?),
        ];
        write_atomically(&path, &safetensors::serialize(views, None).map_err(wrong)?)?;
        Ok(write_json(&folder.join(NAMES_FILE), &self.names)?)
    }

    /// Reads a folder. `catalogue` is that of the answers: all of its items must have been there when the table was made.
    pub fn load(folder: &Path, catalogue: &[Item]) -> Result<Self, SimulateError> {
        let path = folder.join(NAMES_FILE);
        let bytes = std::fs::read(&path).map_err(FileError::io(&path))?;
        let mut names: Names = serde_json::from_slice(&bytes).map_err(|error| FileError::content(&path, error))?;
        let places: HashMap<&str, u32> = catalogue.iter().map(|item| item.id.as_str()).zip(0..).collect();
        let known: std::collections::HashSet<&str> = names.items.iter().map(String::as_str).collect();
        let mut unknown = catalogue.iter().filter(|item| !known.contains(item.id.as_str()));
        if let Some(example) = unknown.next() {
            return Err(SimulateError::Older { count: 1 + unknown.count(), example: example.id.clone() });
        }
        let Table { offsets, items, ctcvr } = Table::read(&folder.join(TABLE_FILE), &names)?;
        // Items that have left the catalogue cannot be answers; their pairs go.
        let mut kept = (vec![0], Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        for row in offsets.windows(2) {
            let of = |place: usize| Some((*places.get(names.items[items[place] as usize].as_str())?, ctcvr[place]));
            let mut pairs: Vec<(u32, f32)> = (row[0]..row[1]).filter_map(of).collect();
            pairs.sort_by_key(|(item, _)| *item);
            pairs.into_iter().for_each(|(item, chance)| {
                kept.1.push(item);
                kept.2.push(chance);
            });
            kept.0.push(kept.1.len());
        }
        names.items = catalogue.iter().map(|item| item.id.clone()).collect();
        Ok(Self::of(names, kept.0, kept.1, kept.2, catalogue))
    }

    /// Row of a user; `None`: was not simulated.
    pub fn row(&self, user_id: &str) -> Option<usize> {
        self.rows.get(user_id).copied()
    }

    /// Users and pairs of the table, and the share of all pairs that it has.
    pub fn size(&self) -> (usize, usize, f64) {
        (self.names.users.len(), self.items.len(), self.names.coverage)
    }

    /// Percentiles (0 to 1) of the table's chances.
    pub fn percentiles<const N: usize>(&self, shares: [f64; N]) -> [f64; N] {
        let mut sorted = self.ctcvr.clone();
        sorted.sort_by(f32::total_cmp);
        let last = sorted.len().saturating_sub(1);
        shares.map(|share| {
            sorted.get((share * last as f64).round() as usize).map_or(f64::NAN, |chance| f64::from(*chance))
        })
    }

    /// The chance of an item (its place in the catalogue) for the user of a row.
    pub fn look_up(&self, row: usize, item: usize) -> Known {
        let pairs = self.offsets[row]..self.offsets[row + 1];
        let (items, chances) = (&self.items[pairs.clone()], &self.ctcvr[pairs]);
        if let Ok(place) = items.binary_search(&(item as u32)) {
            return Known { ctcvr: f64::from(chances[place]), level: Level::Pair };
        }
        let path = self.paths.get(item).copied().unwrap_or_default();
        let among = |depth: usize| {
            let wanted = path[depth]?;
            let alike =
                items.iter().zip(chances).filter(|(other, _)| self.paths[**other as usize][depth] == Some(wanted));
            let (sum, count) = alike.fold((0.0, 0), |(sum, count), (_, chance)| (sum + f64::from(*chance), count + 1));
            (count > 0).then(|| sum / f64::from(count))
        };
        let everybody = || path[1].and_then(|third| self.third_levels.get(&third).copied());
        let levels: [(Level, &dyn Fn() -> Option<f64>); 3] =
            [(Level::UserL3, &|| among(1)), (Level::UserL2, &|| among(0)), (Level::L3, &everybody)];
        let found = levels.iter().find_map(|(level, mean)| Some(Known { ctcvr: mean()?, level: *level }));
        found.unwrap_or(Known { ctcvr: self.mean, level: Level::Mean })
    }
}

struct Table {
    offsets: Vec<usize>,
    items: Vec<u32>,
    ctcvr: Vec<f32>,
}

impl Table {
    fn read(path: &Path, names: &Names) -> Result<Self, FileError> {
        let bytes = std::fs::read(path).map_err(FileError::io(path))?;
        let parsed = SafeTensors::deserialize(&bytes).map_err(|error| FileError::content(path, error))?;
        let tensor = |name: &str, dtype: Dtype| {
            let view = parsed.tensor(name).map_err(|error| FileError::content(path, error))?;
            match view.dtype() == dtype {
                true => Ok(view.data().to_vec()),
                false => Err(FileError::content(path, format!("{name} is {:?}, {dtype:?} is wanted", view.dtype()))),
            }
        };
        let table = Self {
            offsets: tensor("offsets", Dtype::U64)?
                .as_chunks()
                .0
                .iter()
                .map(|word| u64::from_le_bytes(*word) as usize)
                .collect(),
            items: tensor("items", Dtype::U32)?.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect(),
            ctcvr: tensor("ctcvr", Dtype::F32)?.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
        };
        let whole = table.offsets.len() == names.users.len() + 1
            && table.offsets.first() == Some(&0)
            && table.offsets.is_sorted()
            && table.offsets.last() == Some(&table.items.len())
            && table.ctcvr.len() == table.items.len()
            && table.items.iter().all(|item| (*item as usize) < names.items.len())
            && table.ctcvr.iter().all(|chance| (0.0..=1.0).contains(chance));
        match whole {
            true => Ok(table),
            false => Err(FileError::content(path, format!("does not fit {NAMES_FILE}: make the simulator anew"))),
        }
    }
}

/// Numbers of second and third levels of category, as paths from the first.
fn paths(catalogue: &[Item]) -> Vec<[Option<u32>; 2]> {
    let mut numbers: HashMap<&[String], u32> = HashMap::new();
    let mut all = Vec::with_capacity(catalogue.len());
    for item in catalogue {
        let mut number = |depth: usize| {
            let next = numbers.len() as u32;
            Some(*numbers.entry(item.categories.get(..depth)?).or_insert(next))
        };
        all.push([number(2), number(3)]);
    }
    all
}
