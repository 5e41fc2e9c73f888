//! Points as numbers: vocabularies, and what the ranker reads of each point.
//!
//! In: a dataset, points, taiji's features where there are any. Out: [`Inputs`]. Called by `training` and `stages`. Vocabularies are
//! those of the training points; whatever they do not have is 0, as is what is absent.

use super::factors::FactRows;
use super::{Impression, Point, RankError};
use crate::data::{Dataset, UserRow};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use taiji::event::Item;

/// The item itself, three levels of category, brand, price.
pub(super) const ITEM_FIELDS: usize = 6;
/// An item that was shown less often in training is not told from others of its category.
const LEAST_SHOWN: usize = 5;
/// A word that is rarer in training is left out.
const LEAST_WORDS: usize = 5;
/// Searches looked at, newest first, and words of them.
const QUERIES: usize = 4;
/// Words looked at.
pub(super) const WORDS: usize = 16;
const PRICE_BUCKETS: usize = 10;
/// Newest engagements that are facts of their own.
pub(super) const FACT_ENGAGEMENTS: usize = 12;

/// Items of a domain that stand out, of each kind.
pub(super) const MOST_ANCHORS: usize = 16;

/// An item as the ranker reads it.
pub(super) type ItemFields = [u32; ITEM_FIELDS];

/// An item of a sequence, and what was done with it; 0 = not known.
pub(super) type Known = (ItemFields, u32);

/// A domain's most shown, most clicked, most converted items, most first: OnePiece's preference anchors.
pub(super) type Anchors = [Vec<ItemFields>; 3];

/// What taiji wrote about a user.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// When.
    pub made_ms: i64,
    /// A code a table; `None` where there are none.
    pub intra: Option<Vec<u32>>,
    /// The cross-user sequence, newest first: indices into the dataset's items.
    pub cross: Vec<usize>,
}

/// What of taiji's features there is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureShape {
    /// Tables of `intra` codes, and codes of each.
    pub codes: (usize, usize),
    /// Whether there are cross-user sequences.
    pub cross: bool,
}

/// Numbers of everything that has a name.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// In the dataset's order.
    pub(super) items: Vec<ItemFields>,
    pub(super) item_ids: Vec<String>,
    /// Numbers of each field, 0 among them.
    pub(super) item_sizes: [usize; ITEM_FIELDS],
    pub(super) actions: BTreeMap<String, u32>,
    pub(super) fields: Vec<String>,
    /// By place of the field, and value.
    pub(super) values: BTreeMap<(usize, String), u32>,
    pub(super) words: HashMap<String, u32>,
    pub(super) domains: BTreeMap<String, u32>,
    /// By number of the domain; the first is of all.
    pub(super) anchors: Vec<Anchors>,
    pub(super) features: FeatureShape,
}

/// One point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// Index into the dataset's users.
    pub user: usize,
    /// Newest first, with the number of the action.
    pub history: Vec<Known>,
    /// A number a field.
    pub profile: Vec<u32>,
    pub words: Vec<u32>,
    /// Of the request.
    pub domain: u32,
    pub intra: Option<Vec<u32>>,
    /// Newest first; nothing is said of the actions.
    pub cross: Vec<Known>,
    /// Item, clicked, converted.
    pub shown: Vec<(ItemFields, bool, bool)>,
}

/// Points as the ranker reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    pub(super) rows: Vec<Row>,
}

impl Vocabulary {
    /// Of the training points, and what of features is read.
    pub fn of(dataset: &Dataset, training: &[Point], features: FeatureShape) -> Self {
        let mut shown: HashMap<usize, usize> = HashMap::new();
        training.iter().flat_map(|point| &point.impressions).for_each(|one| *shown.entry(one.item).or_default() += 1);
        let (items, item_sizes) = item_fields(dataset, &shown);
        let (mut actions, mut known, mut counts) = (BTreeSet::new(), BTreeSet::new(), HashMap::<String, usize>::new());
        for point in training {
            let user = &dataset.users[point.user];
            actions.extend(user.engagements_before(point.cut).iter().map(|behaviour| behaviour.action.as_str()));
            known.extend(user.profile_before(point.cut.before_ms));
            words_of(user, point).for_each(|word| *counts.entry(word).or_default() += 1);
        }
        let domains: BTreeSet<&str> = training.iter().filter_map(|point| point.domain).collect();
        let fields: Vec<String> =
            known.iter().map(|(field, _)| field.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        let place = |field: &String| fields.iter().position(|other| other == field).unwrap_or(0);
        let values = known.iter().map(|(field, value)| (place(field), value.clone())).zip(1..).collect();
        let frequent: BTreeSet<String> =
            counts.into_iter().filter(|(_, count)| *count >= LEAST_WORDS).map(|(word, _)| word).collect();
        let domains: BTreeMap<String, u32> = domains.into_iter().map(str::to_owned).zip(1..).collect();
        Self {
            anchors: anchors(&items, training, &domains),
            items,
            item_ids: dataset.items.iter().map(|item| item.id.clone()).collect(),
            item_sizes,
            actions: actions.into_iter().map(str::to_owned).zip(1..).collect(),
            values,
            fields,
            words: frequent.into_iter().zip(1..).collect(),
            domains,
            features,
        }
    }

    /// Numbers of actions, profile values and words, 0 among them.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.actions.len() + 1, self.values.len() + 1, self.words.len() + 1)
    }

    /// Profile attributes.
    pub(super) fn profile_fields(&self) -> usize {
        self.fields.len()
    }

    fn row(&self, dataset: &Dataset, point: &Point, features: Option<&Features>, limits: (usize, usize)) -> Row {
        let user = &dataset.users[point.user];
        let engaged = user.engagements_before(point.cut).iter().rev();
        let history = engaged.filter_map(|behaviour| {
            let action = self.actions.get(&behaviour.action).copied().unwrap_or(0);
            Some((self.items[behaviour.item?], action))
        });
        let profile: HashMap<String, String> = user.profile_before(point.cut.before_ms).into_iter().collect();
        let value = |(place, field): (usize, &String)| -> u32 {
            let of = profile.get(field).and_then(|value| self.values.get(&(place, value.clone())));
            of.copied().unwrap_or(0)
        };
        let cross = features.map(|features| features.cross.as_slice()).unwrap_or_default();
        Row {
            user: point.user,
            history: history.take(limits.0).collect(),
            profile: self.fields.iter().enumerate().map(value).collect(),
            words: words_of(user, point).filter_map(|word| self.words.get(&word).copied()).take(WORDS).collect(),
            domain: point.domain.and_then(|domain| self.domains.get(domain).copied()).unwrap_or(0),
            intra: features.and_then(|features| features.intra.clone()),
            cross: cross.iter().take(limits.1).map(|&item| (self.items[item], 0)).collect(),
            shown: point.impressions.iter().map(|one| (self.items[one.item], one.clicked, one.converted)).collect(),
        }
    }
}

impl Row {
    /// Number of the code of a table with `each` codes: one more than the code; 0 where there is none.
    pub(super) fn code(&self, table: usize, each: usize) -> u32 {
        let code = self.intra.as_ref().and_then(|codes| codes.get(table).copied());
        code.filter(|code| (*code as usize) < each).map_or(0, |code| code + 1)
    }

    /// Rows of the facts that are known: a place a profile attribute, word, newest engagement, code, and newest item of the cross-user
    /// sequence. `there`: whether the codes are to be seen, and the sequence.
    pub(super) fn facts(&self, layout: &FactRows, there: (bool, bool)) -> Vec<Option<u32>> {
        let row = |fact: usize| (fact * layout.domains) as u32 + self.domain;
        let value = |number: &u32| (*number > 0).then(|| row(*number as usize));
        let word = |place: usize| self.words.get(place).map(|word| row(layout.words + *word as usize));
        let engagement = |place: usize| {
            let (fields, action) = self.history.get(place)?;
            Some(row(layout.engagements + fields[3] as usize * layout.actions + *action as usize))
        };
        let (tables, each) = layout.tables;
        let code = |table: usize| {
            let number = if there.0 { self.code(table, each) } else { 0 };
            (number > 0).then(|| row(layout.codes + table * (each + 1) + number as usize))
        };
        let crossed = |place: usize| {
            let (fields, _) = self.cross.get(place).filter(|_| there.1)?;
            Some(row(layout.cross? + fields[3] as usize))
        };
        let profile = self.profile.iter().map(value);
        let engaged = (0..FACT_ENGAGEMENTS).map(engagement);
        let crossed = (0..FACT_ENGAGEMENTS).filter(|_| layout.cross.is_some()).map(crossed);
        profile.chain((0..WORDS).map(word)).chain(engaged).chain((0..tables).map(code)).chain(crossed).collect()
    }

    /// Feeds everything that the ranker reads of the point to a hash.
    pub(super) fn digest(&self, hash: &mut Sha256) {
        let mut numbers = |all: &mut dyn Iterator<Item = u32>| {
            let all: Vec<u32> = all.collect();
            hash.update((all.len() as u64).to_le_bytes());
            all.iter().for_each(|number| hash.update(number.to_le_bytes()));
        };
        for sequence in [&self.history, &self.cross] {
            numbers(&mut sequence.iter().flat_map(|(fields, action)| fields.iter().copied().chain([*action])));
        }
        numbers(&mut self.profile.iter().chain(&self.words).copied().chain([self.domain]));
        numbers(&mut self.intra.iter().flatten().copied().chain([u32::from(self.intra.is_some())]));
        let label = |clicked: bool, converted: bool| u32::from(clicked) + 2 * u32::from(converted);
        let shown = self.shown.iter();
        numbers(&mut shown.flat_map(|one| one.0.iter().copied().chain([label(one.1, one.2)])));
    }
}

impl Inputs {
    /// `features` of a point, as they were before its impressions: later ones are refused. `limits`: engagements and items of a
    /// cross-user sequence looked at.
    pub fn encode<'a>(
        dataset: &Dataset,
        vocabulary: &Vocabulary,
        points: &[Point],
        features: impl Fn(&Point) -> Option<&'a Features>,
        limits: (usize, usize),
    ) -> Result<Self, RankError> {
        let encode = |point: &Point| {
            let found = features(point);
            if let Some(late) = found.filter(|features| features.made_ms >= point.cut.before_ms) {
                let (user, shown_ms) = (dataset.users[point.user].user_id.clone(), point.cut.before_ms);
                return Err(RankError::FromTheFuture { user, made_ms: late.made_ms, shown_ms });
            }
            Ok(vocabulary.row(dataset, point, found, limits))
        };
        Ok(Self { rows: points.iter().map(encode).collect::<Result<_, _>>()? })
    }

    /// Impressions of all points.
    pub fn impressions(&self) -> usize {
        self.rows.iter().map(|row| row.shown.len()).sum()
    }
}

/// Words of the newest searches before a point, newest search first.
fn words_of<'a>(user: &'a UserRow, point: &Point) -> impl Iterator<Item = String> + use<'a> {
    let before_ms = point.cut.before_ms;
    let queries = user.queries.iter().rev().filter(move |(ts_ms, _)| *ts_ms < before_ms).take(QUERIES);
    queries.flat_map(|(_, query)| {
        let words = query.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect::<Vec<_>>()
    })
}

/// Of the training impressions of each domain, those of all first; of items that count equally, the one that is earlier in the catalogue.
fn anchors(items: &[ItemFields], training: &[Point], domains: &BTreeMap<String, u32>) -> Vec<Anchors> {
    // How often an item was shown, clicked, converted.
    let mut often = vec![vec![[0usize; 3]; items.len()]; domains.len() + 1];
    for point in training {
        let own = point.domain.and_then(|domain| domains.get(domain)).map(|domain| *domain as usize);
        for domain in [0].into_iter().chain(own) {
            for Impression { item, clicked, converted } in &point.impressions {
                let counts = often[domain][*item].iter_mut();
                counts.zip([true, *clicked, *converted]).for_each(|(count, came)| *count += usize::from(came));
            }
        }
    }
    let most = |counts: &[[usize; 3]], kind: usize| -> Vec<ItemFields> {
        let mut known: Vec<usize> = (0..items.len()).filter(|item| counts[*item][kind] > 0).collect();
        known.sort_by_key(|item| std::cmp::Reverse(counts[*item][kind]));
        known.into_iter().take(MOST_ANCHORS).map(|item| items[item]).collect()
    };
    often.iter().map(|counts| [0, 1, 2].map(|kind| most(counts, kind))).collect()
}

fn item_fields(dataset: &Dataset, shown: &HashMap<usize, usize>) -> (Vec<ItemFields>, [usize; ITEM_FIELDS]) {
    let mut prices: Vec<f64> = dataset.items.iter().filter_map(|item| item.price).collect();
    prices.sort_by(f64::total_cmp);
    let bucket = |price: f64| {
        let below = prices.partition_point(|other| *other < price);
        1 + (below * PRICE_BUCKETS / prices.len().max(1)).min(PRICE_BUCKETS - 1) as u32
    };
    // A number is given at first sight, in the order of the catalogue.
    let mut names: [HashMap<String, u32>; ITEM_FIELDS] = Default::default();
    let mut number = |field: usize, name: Option<&String>| -> u32 {
        let Some(name) = name else { return 0 };
        let next = names[field].len() as u32 + 1;
        *names[field].entry(name.clone()).or_insert(next)
    };
    let mut of = |(place, item): (usize, &Item)| -> ItemFields {
        let known = shown.get(&place).is_some_and(|count| *count >= LEAST_SHOWN);
        [
            number(0, known.then_some(&item.id)),
            number(1, item.categories.first()),
            number(2, item.categories.get(1)),
            number(3, item.categories.get(2)),
            number(4, item.brand.as_ref()),
            item.price.map_or(0, bucket),
        ]
    };
    let fields: Vec<ItemFields> = dataset.items.iter().enumerate().map(&mut of).collect();
    let size = |field: usize| fields.iter().map(|one| one[field] as usize + 1).max().unwrap_or(1);
    let sizes = std::array::from_fn(size);
    (fields, sizes)
}
