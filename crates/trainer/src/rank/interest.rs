//! DIN's activation unit (Zhou et al., KDD 2018): what of a sequence bears on a candidate.
//!
//! In: a sequence's items, candidates. Out: a vector a candidate. Called by `model`.

use super::batch::{Batch, Sequences};
use super::layer::Maker;
use super::model::{ITEM, SMALL};
use crate::nn::Weight;
use candle_core::{Result, Tensor};

const UNIT: usize = 32;

/// Weighs the items of a sequence beside a candidate.
pub(super) struct Unit {
    key: Weight,
    query: Weight,
    product: Weight,
    bias: Weight,
    out: Weight,
}

impl Unit {
    pub fn random(maker: &mut Maker) -> Result<Self> {
        let fan = 3 * ITEM + 3 * SMALL;
        Ok(Self {
            key: maker.matrix(ITEM + 2 * SMALL, UNIT, fan)?,
            query: maker.matrix(ITEM + SMALL, UNIT, fan)?,
            product: maker.matrix(ITEM, UNIT, fan)?,
            bias: maker.zeros(UNIT)?,
            out: maker.matrix(UNIT, 1, 6 * UNIT)?,
        })
    }

    /// What of a sequence bears on each candidate, [impressions, ITEM]. `items`, `known`: [points × length, ..], of the items alone, and with
    /// action and place; `asked`: the candidate, and where it is shown.
    pub fn attend(
        &self,
        all: &Sequences,
        (items, known): (&Tensor, &Tensor),
        (candidate, asked): (&Tensor, &Tensor),
        batch: &Batch,
    ) -> Result<Tensor> {
        let (points, length, shown) = (batch.points, all.length, candidate.dim(0)?);
        // The unit's first layer sees item, candidate and their product; its parts are added, each made as rarely as it can be.
        let keys = known.matmul(&self.key)?.reshape((points, length, UNIT))?.index_select(&batch.owners, 0)?;
        let items = items.reshape((points, length, ITEM))?.index_select(&batch.owners, 0)?;
        let product = items.broadcast_mul(&candidate.unsqueeze(1)?)?.reshape((shown * length, ITEM))?;
        let product = product.matmul(&self.product)?.reshape((shown, length, UNIT))?;
        let query = asked.matmul(&self.query)?.broadcast_add(&self.bias)?.unsqueeze(1)?;
        let hidden = (keys + product)?.broadcast_add(&query)?.relu()?.reshape((shown * length, UNIT))?;
        let weights = hidden.matmul(&self.out)?.reshape((shown, length))?;
        let weights = (weights * all.mask.index_select(&batch.owners, 0)?)?;
        weights.unsqueeze(1)?.matmul(&items.contiguous()?)?.squeeze(1)
    }

    /// Every weight with its name; matrices decay.
    pub fn named(&self, name: &str) -> Vec<(String, &Weight, bool)> {
        let parts = [("key", &self.key), ("query", &self.query), ("product", &self.product), ("out", &self.out)];
        let matrices = parts.map(|(part, weight)| (format!("{name}.{part}.weight"), weight, true));
        matrices.into_iter().chain([(format!("{name}.bias"), &self.bias, false)]).collect()
    }
}
