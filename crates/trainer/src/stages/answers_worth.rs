//! What answers are worth in a generated world, and how different they are: the true objectives of an alignment.
//!
//! In: held-out users and what was written for them. Out: similarity (cosine of the answer and of what was bought, by the encoder that serves)
//! and the true chance of click and conversion of the item named, user by user; entropy of the items and share of different codes over all
//! users. An answer that names no item has chance 0.

use super::codebook::CODEBOOK;
use super::served;
use super::simulator_judge::Truth;
use super::synth::world_of;
use crate::data::{Dataset, TestCase};
use crate::evaluate::{PerUser, Values};
use crate::reward::Semantic;
use crate::simulate::CategoryGrounder;
use crate::stage::{Artefact, Inputs, StageError};
use crate::synth::World;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use taiji::encode::Encoder;
use taiji::prompt::{ParsedAnswer, answer_text};
use taiji::quantize::PqCodebook;

/// Texts encoded at once.
const CHUNK: usize = 128;

/// By metric, user by user.
type ByUser = BTreeMap<String, PerUser>;
/// Of all users together.
type Figures = BTreeMap<String, f64>;

/// What judges.
pub(super) struct Worth {
    world: World,
    grounder: CategoryGrounder,
    encoder: Arc<dyn Encoder>,
    codebook: Option<PqCodebook>,
    max_title_chars: usize,
}

impl Worth {
    /// Where an encoder is among the inputs.
    pub(super) fn of(
        inputs: &Inputs,
        dataset: &Dataset,
        max_title_chars: usize,
        threads: Option<usize>,
    ) -> Result<Option<Self>, StageError> {
        if inputs.optional(Artefact::Encoder).is_none() {
            return Ok(None);
        }
        let codebook = inputs.optional(Artefact::Codebook);
        Ok(Some(Self {
            world: world_of(inputs.one(Artefact::Data)?)?,
            grounder: CategoryGrounder::new(&dataset.items),
            encoder: Arc::new(served::encoder(inputs, threads)?),
            codebook: codebook.map(|folder| PqCodebook::load(&folder.join(CODEBOOK))).transpose()?,
            max_title_chars,
        }))
    }

    /// By metric, user by user, and figures of all of them. The chance is in percent, for rows keep thousandths.
    pub(super) fn metrics(
        &self,
        cases: &[TestCase],
        written: &[ParsedAnswer],
    ) -> Result<(ByUser, Figures), StageError> {
        let truth = Truth::of(&self.world);
        let items: Vec<Option<usize>> = written.iter().map(|one| self.grounder.ground(&one.answer)).collect();
        let chance = |(case, item): (&TestCase, &Option<usize>)| {
            let known = item.map(|item| truth.ctcvr(&case.user_id, item));
            match known {
                None => Ok(0.0),
                Some(Some(chance)) => Ok(100.0 * chance),
                Some(None) => {
                    let message = format!("user {} is not of the world that the data are made of", case.user_id);
                    Err(StageError::Refused { message })
                }
            }
        };
        let chances: Vec<f64> = cases.iter().zip(&items).map(chance).collect::<Result<_, _>>()?;
        let pair = |(case, written): (&TestCase, &ParsedAnswer)| {
            let truth =
                case.target.as_ref().map(|item| answer_text(&item.categories, &item.title, self.max_title_chars));
            (written.answer.clone(), truth.unwrap_or_default())
        };
        let pairs: Vec<(String, String)> = cases.iter().zip(written).map(pair).collect();
        let mut semantic = Semantic::new(self.encoder.clone(), self.max_title_chars);
        let similar = semantic.cosines(&pairs)?;
        // As the rewards have it: without the exact format an answer is worth nothing.
        let gated = |values: Vec<f64>| -> Vec<f64> {
            values.into_iter().zip(written).map(|(value, one)| if one.format_ok { value } else { 0.0 }).collect()
        };
        let metrics = [("similarity", gated(similar)), ("ctcvr_percent", gated(chances))];
        let metrics = metrics.map(|(name, values)| (name.to_string(), PerUser::Values(Values::new(&values))));
        Ok((metrics.into(), self.figures(written, &items)?))
    }

    fn figures(&self, written: &[ParsedAnswer], items: &[Option<usize>]) -> Result<Figures, StageError> {
        let count = items.len().max(1) as f64;
        let mut counts: HashMap<usize, f64> = HashMap::new();
        items.iter().flatten().for_each(|item| *counts.entry(*item).or_default() += 1.0);
        let grounded: f64 = counts.values().sum();
        // In a fixed order, so that the sum is the same each time.
        let mut shares: Vec<f64> = counts.values().map(|count| count / grounded).collect();
        shares.sort_by(f64::total_cmp);
        let entropy: f64 = shares.iter().map(|share| -share * share.ln()).sum();
        let mut figures = BTreeMap::from([
            ("item_entropy".to_string(), entropy),
            ("distinct_items".to_string(), counts.len() as f64),
            ("grounded".to_string(), grounded / count),
        ]);
        if let Some(codebook) = &self.codebook {
            let mut codes: HashSet<Vec<u16>> = HashSet::new();
            for chunk in written.chunks(CHUNK) {
                let texts: Vec<String> = chunk.iter().map(ParsedAnswer::embedding_text).collect();
                for vector in self.encoder.encode(&texts.iter().map(String::as_str).collect::<Vec<_>>())? {
                    codes.insert(codebook.encode(&vector)?);
                }
            }
            figures.insert("distinct_codes".to_string(), codes.len() as f64 / count);
        }
        Ok(figures)
    }

    /// Place of the item of highest true chance for each user; 0 for who is not of this world, whom [`Self::metrics`] refuses.
    pub(super) fn best_items(&self, cases: &[TestCase]) -> Vec<usize> {
        let truth = Truth::of(&self.world);
        let best = |case: &TestCase| {
            let chances = (0..self.world.items.len()).map(|item| truth.ctcvr(&case.user_id, item).unwrap_or(0.0));
            let highest =
                chances.enumerate().max_by(|left, right| left.1.total_cmp(&right.1).then(right.0.cmp(&left.0)));
            highest.map_or(0, |(item, _)| item)
        };
        cases.iter().map(best).collect()
    }
}
