//! What is known of a user, each fact by itself, against what is shown: the pairs of a factorisation machine (Rendle, ICDM 2010) over facts ×
//! fields of the candidate, where a fact counts differently in each domain of the request.
//!
//! In: a batch. Out: a vector an impression, whose places add to the logits and are read by the net behind them (He and Chua, SIGIR 2017). A net
//! alone has to find every such pair in the products of a few wide layers. Called by `model`.

use super::batch::Batch;
use super::inputs::{ITEM_FIELDS, Vocabulary};
use crate::nn::Weight;
use candle_core::{Result, Tensor};

/// Numbers of a fact, and of a field.
pub(super) const FACTORS: usize = 32;

/// Facts and fields of candidates as vectors.
pub(super) struct Factors {
    /// A row a fact and domain.
    pub facts: Weight,
    /// By number, one a field of the item.
    pub fields: [Weight; ITEM_FIELDS],
    /// What a place of the product adds to each of the two logits: one for both targets' pairs, since conversions are rare.
    pub out: Weight,
}

/// Where each kind of fact begins among the rows, and how many there are in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FactRows {
    /// First row of words; those of profile values begin at 0.
    pub words: usize,
    /// First row of (third level of category, action) of engagements.
    pub engagements: usize,
    /// Numbers of actions.
    pub actions: usize,
    /// Numbers of domains, 0 among them.
    pub domains: usize,
    /// First row of codes: one a table and number, 0 among them.
    pub codes: usize,
    /// Tables of codes, and codes of each.
    pub tables: (usize, usize),
    /// First row of the third level of category of items of a cross-user sequence; `None` where there are no such sequences.
    pub cross: Option<usize>,
    /// Facts.
    pub facts: usize,
}

impl FactRows {
    pub fn of(vocabulary: &Vocabulary) -> Self {
        let (actions, values, words) = vocabulary.sizes();
        let engagements = values + words;
        let domains = vocabulary.domains.len() + 1;
        let leaves = vocabulary.item_sizes[3];
        let codes = engagements + leaves * actions;
        let tables = vocabulary.features.codes;
        let behind = codes + tables.0 * (tables.1 + 1);
        let cross = vocabulary.features.cross.then_some(behind);
        let facts = behind + cross.map_or(0, |_| leaves);
        Self { words: values, engagements, actions, domains, codes, tables, cross, facts }
    }

    /// Rows of the table.
    pub fn rows(&self) -> usize {
        self.facts * self.domains
    }
}

impl Factors {
    /// [impressions, FACTORS].
    pub fn pairs(&self, batch: &Batch) -> Result<Tensor> {
        let facts = self.facts.index_select(&batch.facts, 0)?.reshape((batch.points, batch.fact_count, FACTORS))?;
        let user = facts.broadcast_mul(&batch.fact_mask)?.sum(1)?.index_select(&batch.owners, 0)?;
        let mut shown = self.fields[0].index_select(&batch.items[0], 0)?;
        for (table, ids) in self.fields.iter().zip(&batch.items).skip(1) {
            shown = (shown + table.index_select(ids, 0)?)?;
        }
        user * shown
    }
}
