//! A ranker's model: what is known of a point and of its candidates as vectors, and a body that makes logits of them.
//!
//! In: a batch. Out: logits of P(click) and P(conversion | click), and the loss. Conversions are learned from all impressions, through the
//! product of both chances (ESMM: Ma et al., SIGIR 2018); `factors` adds what each fact by itself says of a candidate, whatever the body is:
//!
//! * a Deep Interest Network (Zhou et al., KDD 2018): what a user did is weighed by an activation unit (`interest`) that sees it beside the candidate,
//!   and summed, without a softmax, a cross-user sequence likewise by a unit of its own; rectified layers behind;
//! * the same units, and a token mixer (`mixer`) behind them;
//! * a OnePiece (`onepiece`), which reads sequences, user and candidates by itself.
//!
//! Where items are shown is part of what all of them see; what was done how long ago is a number of its place.

use super::batch::{Batch, Sequences};
use super::factors::{FACTORS, FactRows, Factors};
use super::inputs::{Anchors, ITEM_FIELDS, ItemFields, Row, Vocabulary, WORDS};
use super::interest::Unit;
use super::layer::{Linear, Maker, softplus};
use super::mixer::Mixer;
use super::onepiece::{Known, OnePiece, contrast};
use super::settings::Arch;
use crate::nn::{Module, Parameter, Weight};
use candle_core::{DType, Device, Result, Tensor};

/// Widths of an item's fields: itself, three levels of category, brand, price.
const ITEM_WIDTHS: [usize; ITEM_FIELDS] = [16, 4, 8, 16, 4, 4];
pub(super) const ITEM: usize = 52;
/// Of an action, of a place, of a profile value, of a word, of a code.
pub(super) const SMALL: usize = 8;
const CODE: usize = 16;
const LAYERS: [usize; 2] = [128, 64];
/// Points scored together; candidates, where they see each other.
const SCORED_POINTS: usize = 256;
const SCORED_TOGETHER: usize = 768;
/// Places that are told apart.
pub(super) const PLACES: usize = 64;

/// What makes logits of parts of what is known of an impression.
pub(super) enum Head {
    Layers([Linear; 3]),
    Mixer(Mixer),
}

/// What makes logits of vectors.
pub(super) enum Body {
    /// What of history and cross-user sequence bears on a candidate, and a head behind it.
    Interest { history: Unit, cross: Unit, head: Box<Head> },
    /// With the anchors of all domains, one domain behind the other; there may be none.
    OnePiece { net: OnePiece, anchors: Vec<ItemFields> },
}

/// The model.
pub struct RankModel {
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
    body: Body,
    factors: Factors,
    fact_rows: FactRows,
    /// Profile attributes, tables of codes, codes of a table.
    shape: (usize, (usize, usize)),
}

impl Head {
    /// DIN's layers, for parts of these widths; by a factor wider.
    fn layers(maker: &mut Maker, widths: &[usize], factor: f64) -> Result<Self> {
        let [first, second] = LAYERS.map(|layer| ((layer as f64 * factor).round() as usize).max(1));
        let inputs = widths.iter().sum();
        Ok(Head::Layers([maker.linear(inputs, first)?, maker.linear(first, second)?, maker.linear(second, 2)?]))
    }

    fn named(&self) -> Vec<(String, &Weight, bool)> {
        match self {
            Head::Layers(layers) => {
                let layers = layers.iter().enumerate();
                layers.flat_map(|(place, layer)| layer.named(&format!("layers.{place}"))).collect()
            }
            Head::Mixer(mixer) => mixer.named(),
        }
    }

    fn logits(&self, parts: &[Tensor]) -> Result<(Tensor, Option<Tensor>)> {
        let [first, second, last] = match self {
            Head::Mixer(mixer) => return mixer.logits(parts),
            Head::Layers(layers) => layers,
        };
        let hidden = first.of(&Tensor::cat(parts, 1)?)?.relu()?;
        Ok((last.of(&second.of(&hidden)?.relu()?)?, None))
    }
}

/// Widths of the parts that a head is given: candidate, what of the history and of the cross-user sequence bears on it, the product of
/// candidate and history; the user's profile, codes where there are any, searches; pairs.
fn widths(profile: usize, tables: usize) -> Vec<usize> {
    let codes = (tables > 0).then_some(tables * CODE);
    [ITEM; 4].into_iter().chain([about_width(profile)]).chain(codes).chain([SMALL, FACTORS]).collect()
}

/// Rows of a table of factors, a field each.
fn factors(maker: &mut Maker, vocabulary: &Vocabulary, rows: &FactRows) -> Result<Factors> {
    let mut field = |place: usize| maker.table(vocabulary.item_sizes[place], FACTORS);
    let fields = [field(0)?, field(1)?, field(2)?, field(3)?, field(4)?, field(5)?];
    Ok(Factors { facts: maker.table(rows.rows(), FACTORS)?, fields, out: maker.matrix(FACTORS, 2, FACTORS)? })
}

/// As many anchors of each kind in each domain; where there are fewer, nothing in particular.
fn anchor_rows(anchors: &[Anchors], each: usize) -> Vec<ItemFields> {
    let of = |kind: &Vec<ItemFields>| {
        (0..each).map(|place| kind.get(place).copied().unwrap_or_default()).collect::<Vec<_>>()
    };
    anchors.iter().flatten().flat_map(of).collect()
}

impl Body {
    fn random(maker: &mut Maker, arch: &Arch, vocabulary: &Vocabulary) -> Result<Self> {
        let (profile, (tables, _)) = (vocabulary.profile_fields(), vocabulary.features.codes);
        let widths = widths(profile, tables);
        let settings = match arch {
            Arch::Din { width } => return Body::interest(maker, |maker| Head::layers(maker, &widths, *width)),
            Arch::Tokenmixer(settings) => {
                return Body::interest(maker, |maker| Ok(Head::Mixer(Mixer::random(maker, &widths, settings)?)));
            }
            Arch::OnePiece(settings) => settings,
        };
        let anchored = (settings.anchors > 0).then_some(ITEM + SMALL);
        let codes = (tables > 0).then_some(tables * CODE);
        let kinds = [ITEM + 2 * SMALL, ITEM + 2 * SMALL].into_iter().chain(anchored).chain([about_width(profile)]);
        let kinds: Vec<usize> = kinds.chain(codes).chain([SMALL]).collect();
        let anchors = anchor_rows(&vocabulary.anchors, settings.anchors);
        let net = OnePiece::random(maker, &kinds, ITEM + SMALL + FACTORS, settings)?;
        Ok(Body::OnePiece { net, anchors })
    }

    fn interest(maker: &mut Maker, head: impl FnOnce(&mut Maker) -> Result<Head>) -> Result<Self> {
        Ok(Body::Interest { history: Unit::random(maker)?, cross: Unit::random(maker)?, head: Box::new(head(maker)?) })
    }
}

/// Of presence, request and profile.
fn about_width(profile: usize) -> usize {
    2 + SMALL + profile * SMALL
}

impl RankModel {
    /// A new one for the numbers of a vocabulary.
    pub fn random(vocabulary: &Vocabulary, arch: &Arch, seed: u64) -> Result<Self> {
        let mut maker = Maker::seeded(seed);
        let (actions, values, words) = vocabulary.sizes();
        let (profile, (tables, codes)) = (vocabulary.profile_fields(), vocabulary.features.codes);
        let mut field = |place: usize| maker.table(vocabulary.item_sizes[place], ITEM_WIDTHS[place]);
        let items = [field(0)?, field(1)?, field(2)?, field(3)?, field(4)?, field(5)?];
        let fact_rows = FactRows::of(vocabulary);
        Ok(Self {
            items,
            actions: maker.table(actions, SMALL)?,
            places: maker.table(PLACES, SMALL)?,
            domains: maker.table(fact_rows.domains, SMALL)?,
            values: (profile > 0).then(|| maker.table(values, SMALL)).transpose()?,
            words: maker.table(words, SMALL)?,
            codes: (tables > 0).then(|| maker.table(tables * (codes + 1), CODE)).transpose()?,
            body: Body::random(&mut maker, arch, vocabulary)?,
            factors: factors(&mut maker, vocabulary, &fact_rows)?,
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

    /// Rows in pieces that are scored together. A OnePiece compares all candidates of a piece with one another: there it is these that count.
    pub(super) fn pieces<'a>(&self, rows: &'a [Row]) -> Vec<&'a [Row]> {
        if let Body::Interest { .. } = &self.body {
            return rows.chunks(SCORED_POINTS).collect();
        }
        let (mut pieces, mut rest) = (Vec::new(), rows);
        while !rest.is_empty() {
            let mut shown = 0;
            let fits = |row: &&Row| {
                shown += row.shown.len();
                shown <= SCORED_TOGETHER
            };
            let (piece, others) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            pieces.push(piece);
            rest = others;
        }
        pieces
    }

    /// Whether what is said of a candidate depends on those beside it.
    pub(crate) fn sees_groups(&self) -> bool {
        matches!(&self.body, Body::OnePiece { .. })
    }

    /// Whether a router chooses what computes.
    pub(super) fn is_routed(&self) -> bool {
        let Body::Interest { head, .. } = &self.body else { return false };
        matches!(head.as_ref(), Head::Mixer(mixer) if mixer.settings.experts > 0)
    }

    /// What makes logits of vectors.
    pub(super) fn body(&self) -> &Body {
        &self.body
    }

    /// [impressions, 2]: logits of P(click), and of P(conversion | click).
    pub(super) fn logits(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.all_logits(batch)?.0)
    }

    /// The same, and those that only the loss sees.
    fn all_logits(&self, batch: &Batch) -> Result<(Tensor, Option<Tensor>)> {
        let candidate = self.item(&batch.items)?;
        let domains = self.domains.index_select(&batch.domains, 0)?;
        let asked = Tensor::cat(&[&candidate, &domains.index_select(&batch.owners, 0)?], 1)?;
        let pairs = self.factors.pairs(batch)?;
        let (logits, auxiliary) = match &self.body {
            Body::Interest { history, cross, head } => {
                let attended = |unit: &Unit, all: &Sequences| {
                    let (items, known) = self.sequence(all)?;
                    unit.attend(all, (&items, &known), (&candidate, &asked), batch)
                };
                let (liked, crossed) = (attended(history, &batch.history)?, attended(cross, &batch.cross)?);
                let product = (&candidate * &liked)?;
                let mut parts = vec![candidate.clone(), liked, product, crossed];
                for part in self.user(batch, domains)? {
                    parts.push(part.index_select(&batch.owners, 0)?);
                }
                parts.push(pairs.clone());
                head.logits(&parts)?
            }
            Body::OnePiece { net, anchors } => {
                let candidates = Tensor::cat(&[&asked, &pairs], 1)?;
                (net.logits(&self.known(batch, domains, anchors)?, &candidates, &batch.owners)?, None)
            }
        };
        Ok(((logits + pairs.matmul(&self.factors.out)?)?, auxiliary))
    }

    /// Of each point: presence, request and profile; codes where there are any; searches.
    fn user(&self, batch: &Batch, domains: Tensor) -> Result<Vec<Tensor>> {
        let (profile, (tables, _)) = self.shape;
        let mut about = vec![batch.present.clone(), domains];
        if let Some(values) = &self.values {
            about.push(values.index_select(&batch.profile, 0)?.reshape((batch.points, profile * SMALL))?);
        }
        let mut user = vec![Tensor::cat(&about, 1)?];
        if let Some(codes) = &self.codes {
            user.push(codes.index_select(&batch.codes, 0)?.reshape((batch.points, tables * CODE))?);
        }
        let words = self.words.index_select(&batch.words, 0)?.reshape((batch.points, WORDS, SMALL))?;
        user.push(words.broadcast_mul(&batch.word_weights)?.sum(1)?);
        Ok(user)
    }

    /// A user's tokens, kind by kind.
    fn known(&self, batch: &Batch, domains: Tensor, anchors: &[ItemFields]) -> Result<Vec<Known>> {
        let mut all = Vec::new();
        for sequence in [&batch.history, &batch.cross] {
            all.push(Known { values: self.sequence(sequence)?.1, mask: sequence.mask.clone() });
        }
        let one = |values: Tensor| Ok::<_, candle_core::Error>(Known { mask: ones(batch.points, 1)?, values });
        if !anchors.is_empty() {
            let each = anchors.len() / self.fact_rows.domains;
            let field = |field: usize| {
                let ids = anchors.iter().map(|row| row[field]).collect();
                let table = Tensor::from_vec(ids, (self.fact_rows.domains, each), &Device::Cpu)?;
                table.index_select(&batch.domains, 0)?.flatten_all()
            };
            let items = self.item(&(0..ITEM_FIELDS).map(field).collect::<Result<Vec<_>>>()?)?;
            // Kind and rank of an anchor are its place.
            let places = (0..batch.points).flat_map(|_| 0..each as u32).collect();
            let places = Tensor::from_vec(places, batch.points * each, &Device::Cpu)?;
            let values = Tensor::cat(&[&items, &self.places.index_select(&places, 0)?], 1)?;
            all.push(Known { values, mask: ones(batch.points, each)? });
        }
        for part in self.user(batch, domains)? {
            all.push(one(part)?);
        }
        Ok(all)
    }

    /// Items of a sequence, [points × length, ITEM], and these with action and place.
    fn sequence(&self, all: &Sequences) -> Result<(Tensor, Tensor)> {
        let items = self.item(&all.fields)?;
        let marks = [self.actions.index_select(&all.actions, 0)?, self.places.index_select(&all.places, 0)?];
        let known = Tensor::cat(&[&items, &marks[0], &marks[1]], 1)?;
        Ok((items, known))
    }

    /// [.., ITEM].
    fn item(&self, fields: &[Tensor]) -> Result<Tensor> {
        let parts: Vec<Tensor> =
            self.items.iter().zip(fields).map(|(table, ids)| table.index_select(ids, 0)).collect::<Result<_>>()?;
        Tensor::cat(&parts, 1)
    }

    /// Mean over the impressions of the cross-entropy of clicks plus that of clicks that converted; `training`: and what a body adds to learn by.
    pub(super) fn loss(&self, batch: &Batch, training: bool) -> Result<Tensor> {
        let (logits, auxiliary) = self.all_logits(batch)?;
        let loss = cross_entropy(&logits, batch)?;
        match (auxiliary, &self.body) {
            _ if !training => Ok(loss),
            (Some(logits), Body::Interest { head, .. }) => match head.as_ref() {
                Head::Mixer(mixer) => loss + (cross_entropy(&logits, batch)? * mixer.settings.auxiliary)?,
                Head::Layers(_) => Ok(loss),
            },
            (_, Body::OnePiece { net, .. }) if net.settings.contrast > 0.0 => {
                let click = logits.narrow(1, 0, 1)?.squeeze(1)?;
                loss + (contrast(&click, &batch.clicked, &batch.owners)? * net.settings.contrast)?
            }
            _ => Ok(loss),
        }
    }
}

fn ones(points: usize, length: usize) -> Result<Tensor> {
    Tensor::ones((points, length), DType::F32, &Device::Cpu)
}

/// Mean over the impressions of the cross-entropy of clicks plus that of clicks that converted.
fn cross_entropy(logits: &Tensor, batch: &Batch) -> Result<Tensor> {
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

impl Module for RankModel {
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

impl RankModel {
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
        match &self.body {
            Body::Interest { history, cross, head } => {
                all.extend(history.named("history"));
                all.extend(cross.named("cross"));
                all.extend(head.named());
            }
            Body::OnePiece { net, .. } => all.extend(net.named()),
        }
        all
    }
}
