//! Deep Interest Network (Zhou et al., KDD 2018) with the two targets of ESMM (Ma et al., SIGIR 2018).
//!
//! In: a batch. Out: logits of P(click) and P(conversion | click), and the loss. What a user did is weighed by an activation unit that sees it
//! beside the candidate, and summed, without a softmax; a cross-user sequence likewise, by a unit of its own. Conversions are learned from all
//! impressions, through the product of both chances. Where items are shown is part of what the units and the net see; `factors` adds what each
//! fact by itself says of a candidate. Units and layers are rectified linear; what was done how long ago is a number of its place.

use super::batch::{Batch, Sequences};
use super::factors::{FACTORS, FactRows, Factors};
use super::inputs::{ITEM_FIELDS, Vocabulary, WORDS};
use crate::nn::{Module, Parameter, Weight, tensor};
use candle_core::{Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Widths of an item's fields: itself, three levels of category, brand, price.
const ITEM_WIDTHS: [usize; ITEM_FIELDS] = [16, 4, 8, 16, 4, 4];
const ITEM: usize = 52;
/// Of an action, of a place, of a profile value, of a word, of a code.
const SMALL: usize = 8;
const CODE: usize = 16;
const UNIT: usize = 32;
const LAYERS: [usize; 2] = [128, 64];
/// Places that are told apart.
pub(super) const PLACES: usize = 64;
/// Embeddings begin between minus and plus this.
const SPREAD: f32 = 0.05;

/// Weighs the items of a sequence beside a candidate.
struct Unit {
    key: Weight,
    query: Weight,
    product: Weight,
    bias: Weight,
    out: Weight,
}

struct Linear {
    weight: Weight,
    bias: Weight,
}

/// The model.
pub struct Din {
    items: [Weight; ITEM_FIELDS],
    actions: Weight,
    places: Weight,
    /// Of the request.
    domains: Weight,
    /// Where users have profiles.
    values: Option<Weight>,
    words: Weight,
    /// Of all tables, one behind the other; where there are codes.
    codes: Option<Weight>,
    history: Unit,
    cross: Unit,
    layers: [Linear; 3],
    factors: Factors,
    fact_rows: FactRows,
    /// Profile attributes, tables of codes, codes of a table.
    shape: (usize, (usize, usize)),
}

/// Draws weights; the same seed gives the same.
struct Maker(ChaCha8Rng);

impl Maker {
    fn uniform(&mut self, rows: usize, columns: usize, most: f32) -> Result<Weight> {
        let values = (0..rows * columns).map(|_| self.0.random_range(-most..most)).collect();
        Weight::new(&tensor(values, (rows, columns))?)
    }

    /// As a layer with so many inputs begins (He et al. 2015).
    fn matrix(&mut self, inputs: usize, outputs: usize, fan: usize) -> Result<Weight> {
        self.uniform(inputs, outputs, (6.0 / fan as f32).sqrt())
    }

    fn table(&mut self, rows: usize, width: usize) -> Result<Weight> {
        self.uniform(rows, width, SPREAD)
    }

    fn zeros(&mut self, count: usize) -> Result<Weight> {
        Weight::new(&tensor(vec![0.0; count], count)?)
    }

    fn unit(&mut self) -> Result<Unit> {
        let fan = 3 * ITEM + 3 * SMALL;
        Ok(Unit {
            key: self.matrix(ITEM + 2 * SMALL, UNIT, fan)?,
            query: self.matrix(ITEM + SMALL, UNIT, fan)?,
            product: self.matrix(ITEM, UNIT, fan)?,
            bias: self.zeros(UNIT)?,
            out: self.matrix(UNIT, 1, 6 * UNIT)?,
        })
    }

    fn factors(&mut self, vocabulary: &Vocabulary, rows: &FactRows) -> Result<Factors> {
        let mut field = |place: usize| self.table(vocabulary.item_sizes[place], FACTORS);
        let fields = [field(0)?, field(1)?, field(2)?, field(3)?, field(4)?, field(5)?];
        Ok(Factors { facts: self.table(rows.rows(), FACTORS)?, fields, out: self.matrix(FACTORS, 2, FACTORS)? })
    }

    fn linear(&mut self, inputs: usize, outputs: usize) -> Result<Linear> {
        Ok(Linear { weight: self.matrix(inputs, outputs, inputs)?, bias: self.zeros(outputs)? })
    }
}

impl Din {
    /// A new one for the numbers of a vocabulary. `width`: factor of the layers' widths.
    pub fn random(vocabulary: &Vocabulary, width: f64, seed: u64) -> Result<Self> {
        let mut maker = Maker(ChaCha8Rng::seed_from_u64(seed));
        let (actions, values, words) = vocabulary.sizes();
        let (profile, (tables, codes)) = (vocabulary.profile_fields(), vocabulary.features.codes);
        let mut field = |place: usize| maker.table(vocabulary.item_sizes[place], ITEM_WIDTHS[place]);
        let items = [field(0)?, field(1)?, field(2)?, field(3)?, field(4)?, field(5)?];
        let inputs = 4 * ITEM + profile * SMALL + 2 * SMALL + tables * CODE + 2 + FACTORS;
        let fact_rows = FactRows::of(vocabulary);
        let [first, second] = LAYERS.map(|layer| ((layer as f64 * width).round() as usize).max(1));
        Ok(Self {
            items,
            actions: maker.table(actions, SMALL)?,
            places: maker.table(PLACES, SMALL)?,
            domains: maker.table(fact_rows.domains, SMALL)?,
            values: (profile > 0).then(|| maker.table(values, SMALL)).transpose()?,
            words: maker.table(words, SMALL)?,
            codes: (tables > 0).then(|| maker.table(tables * (codes + 1), CODE)).transpose()?,
            history: maker.unit()?,
            cross: maker.unit()?,
            layers: [maker.linear(inputs, first)?, maker.linear(first, second)?, maker.linear(second, 2)?],
            factors: maker.factors(vocabulary, &fact_rows)?,
            fact_rows,
            shape: (profile, (tables, codes)),
        })
    }

    /// Tables of codes, and codes of each.
    pub(super) fn codes(&self) -> (usize, usize) {
        self.shape.1
    }

    /// Rows of the facts' table.
    pub(super) fn fact_rows(&self) -> FactRows {
        self.fact_rows
    }

    /// Profile attributes; then as [`codes`](Self::codes).
    pub(super) fn shape(&self) -> (usize, (usize, usize)) {
        self.shape
    }

    /// [impressions, 2]: logits of P(click), and of P(conversion | click).
    pub(super) fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let (profile, (tables, _)) = self.shape;
        let candidate = self.item(&batch.items)?;
        let domains = self.domains.index_select(&batch.domains, 0)?;
        let asked = Tensor::cat(&[&candidate, &domains.index_select(&batch.owners, 0)?], 1)?;
        let liked = self.attend(&self.history, &batch.history, (&candidate, &asked), batch)?;
        let crossed = self.attend(&self.cross, &batch.cross, (&candidate, &asked), batch)?;
        let mut user = vec![batch.present.clone(), domains];
        if let Some(values) = &self.values {
            user.push(values.index_select(&batch.profile, 0)?.reshape((batch.points, profile * SMALL))?);
        }
        if let Some(codes) = &self.codes {
            user.push(codes.index_select(&batch.codes, 0)?.reshape((batch.points, tables * CODE))?);
        }
        let words = self.words.index_select(&batch.words, 0)?.reshape((batch.points, WORDS, SMALL))?;
        user.push(words.broadcast_mul(&batch.word_weights)?.sum(1)?);
        let user = Tensor::cat(&user, 1)?.index_select(&batch.owners, 0)?;
        let product = (&candidate * &liked)?;
        let pairs = self.factors.pairs(batch)?;
        let mut hidden = Tensor::cat(&[&candidate, &liked, &product, &crossed, &user, &pairs], 1)?;
        for (place, layer) in self.layers.iter().enumerate() {
            hidden = hidden.matmul(&layer.weight)?.broadcast_add(&layer.bias)?;
            if place < 2 {
                hidden = hidden.relu()?;
            }
        }
        hidden + pairs.matmul(&self.factors.out)?
    }

    /// Mean over the impressions of the cross-entropy of clicks plus that of clicks that converted.
    pub(super) fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let logits = self.logits(batch)?;
        let (click, conversion) = (logits.narrow(1, 0, 1)?.squeeze(1)?, logits.narrow(1, 1, 1)?.squeeze(1)?);
        let clicks = (softplus(&click)? - (&click * &batch.clicked)?)?;
        // log P(click and conversion) = log σ(a) + log σ(b).
        let both = (softplus(&click.neg()?)? + softplus(&conversion.neg()?)?)?.neg()?;
        let neither = ((1.0 + 1e-6) - both.exp()?)?.log()?;
        let came = &batch.converted;
        let missed = (1.0 - came)?;
        let conversions = ((came * both)? + (missed * neither)?)?.neg()?;
        (clicks + conversions)?.mean_all()
    }

    /// [.., ITEM].
    fn item(&self, fields: &[Tensor; ITEM_FIELDS]) -> Result<Tensor> {
        let parts: Vec<Tensor> =
            self.items.iter().zip(fields).map(|(table, ids)| table.index_select(ids, 0)).collect::<Result<_>>()?;
        Tensor::cat(&parts, 1)
    }

    /// What of a sequence bears on each candidate, [impressions, ITEM]. `asked`: the candidate, and where it is shown.
    fn attend(
        &self,
        unit: &Unit,
        all: &Sequences,
        (candidate, asked): (&Tensor, &Tensor),
        batch: &Batch,
    ) -> Result<Tensor> {
        let (points, length, shown) = (batch.points, all.length, candidate.dim(0)?);
        let items = self.item(&all.fields)?;
        let marks = [self.actions.index_select(&all.actions, 0)?, self.places.index_select(&all.places, 0)?];
        let known = Tensor::cat(&[&items, &marks[0], &marks[1]], 1)?;
        // The unit's first layer sees item, candidate and their product; its parts are added, each made as rarely as it can be.
        let keys = known.matmul(&unit.key)?.reshape((points, length, UNIT))?.index_select(&batch.owners, 0)?;
        let items = items.reshape((points, length, ITEM))?.index_select(&batch.owners, 0)?;
        let product = items.broadcast_mul(&candidate.unsqueeze(1)?)?.reshape((shown * length, ITEM))?;
        let product = product.matmul(&unit.product)?.reshape((shown, length, UNIT))?;
        let query = asked.matmul(&unit.query)?.broadcast_add(&unit.bias)?.unsqueeze(1)?;
        let hidden = (keys + product)?.broadcast_add(&query)?.relu()?.reshape((shown * length, UNIT))?;
        let weights = hidden.matmul(&unit.out)?.reshape((shown, length))?;
        let weights = (weights * all.mask.index_select(&batch.owners, 0)?)?;
        weights.unsqueeze(1)?.matmul(&items.contiguous()?)?.squeeze(1)
    }
}

/// log(1 + e^x), without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

impl Module for Din {
    fn parameters(&self) -> Vec<Parameter> {
        self.named()
            .into_iter()
            .map(|(name, weight, decay)| Parameter { name, var: weight.var().clone(), decay })
            .collect()
    }

    fn freeze(&self, frozen: &dyn Fn(&str) -> bool) {
        self.named().into_iter().for_each(|(name, weight, _)| weight.freeze(frozen(&name)));
    }
}

impl Din {
    /// Every weight with its name; matrices decay.
    fn named(&self) -> Vec<(String, &Weight, bool)> {
        let mut all: Vec<(String, &Weight, bool)> = Vec::new();
        all.extend(self.items.iter().enumerate().map(|(place, table)| (format!("items.{place}.weight"), table, true)));
        all.extend(
            self.factors
                .fields
                .iter()
                .enumerate()
                .map(|(place, table)| (format!("factors.{place}.weight"), table, true)),
        );
        let tables = [
            ("actions", Some(&self.actions)),
            ("places", Some(&self.places)),
            ("values", self.values.as_ref()),
            ("words", Some(&self.words)),
            ("domains", Some(&self.domains)),
            ("facts", Some(&self.factors.facts)),
            ("pairs", Some(&self.factors.out)),
            ("codes", self.codes.as_ref()),
        ];
        let present = tables.into_iter().filter_map(|(name, table)| Some((format!("{name}.weight"), table?, true)));
        all.extend(present);
        for (name, unit) in [("history", &self.history), ("cross", &self.cross)] {
            let parts = [("key", &unit.key), ("query", &unit.query), ("product", &unit.product), ("out", &unit.out)];
            all.extend(parts.map(|(part, weight)| (format!("{name}.{part}.weight"), weight, true)));
            all.push((format!("{name}.bias"), &unit.bias, false));
        }
        for (place, layer) in self.layers.iter().enumerate() {
            all.push((format!("layers.{place}.weight"), &layer.weight, true));
            all.push((format!("layers.{place}.bias"), &layer.bias, false));
        }
        all
    }
}
