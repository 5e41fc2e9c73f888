//! OnePiece (arXiv 2509.18091): one transformer over all that is known, and candidates that see each other.
//!
//! In: what is known of each user as tokens, candidates. Out: logits. Called by `model`; `onepiece_graph` writes the same as ONNX.
//!
//! ```text
//! user:       history · anchors (what is shown, clicked, bought most in the request's domain) · neighbour's sequence · profile, codes, searches
//! candidates: a group; each sees its user's tokens and the group
//! step 1, 2:  what came out of the candidates so far, and a vector of the step, is another block behind them, which sees all before: latent
//!             reasoning. Step 1 answers for clicks, step 2 for conversions
//! ```
//!
//! In the paper users' tokens see the candidates, too; here they do not, so that they are computed once a user. All candidates of a call are
//! compared with one another and strangers masked: a call for many users costs more than their calls one by one. The loss of the chain of targets is
//! the one of all rankers here; `contrast` adds that what was clicked stands out from its group.

use super::inputs::MOST_ANCHORS;
use super::layer::{Linear, Maker, rms, softmax};
use crate::nn::Weight;
use candle_core::{D, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Steps of reasoning: one a target.
pub(super) const STEPS: usize = 2;
/// Added to the score of what is not to be seen.
pub(super) const HIDDEN: f32 = -1e9;

/// Settings of a OnePiece.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnePieceSettings {
    /// Values of a token.
    pub width: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Width of a layer's inner net.
    pub hidden: usize,
    /// Anchors of each kind; 0 = none.
    pub anchors: usize,
    /// Whether there are steps of reasoning behind the candidates.
    pub reasoning: bool,
    /// Whether the first step answers for clicks; else the last one answers for both.
    pub progressive: bool,
    /// Weight of the loss by which what was clicked stands out from its group; 0 = none.
    pub contrast: f64,
}

impl Default for OnePieceSettings {
    fn default() -> Self {
        Self {
            width: 64,
            heads: 4,
            layers: 2,
            hidden: 128,
            anchors: 4,
            reasoning: true,
            progressive: true,
            contrast: 0.1,
        }
    }
}

impl OnePieceSettings {
    /// Refuses what cannot be built, naming the setting.
    pub(super) fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let counts = [("width", self.width), ("heads", self.heads), ("layers", self.layers), ("hidden", self.hidden)];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err((field, "must be positive".into()));
        }
        if !self.width.is_multiple_of(self.heads) {
            return Err(("width", format!("must be a multiple of heads {}, got {}", self.heads, self.width)));
        }
        if self.anchors > MOST_ANCHORS {
            return Err(("anchors", format!("must be at most {MOST_ANCHORS}, got {}", self.anchors)));
        }
        if !(0.0..=10.0).contains(&self.contrast) {
            return Err(("contrast", format!("must be from 0 to 10, got {}", self.contrast)));
        }
        Ok(())
    }
}

/// Tokens of one kind as they come in.
pub(super) struct Known {
    /// [points × length, values].
    pub values: Tensor,
    /// [points, length]: 1 where there is a token.
    pub mask: Tensor,
}

pub(super) struct Layer {
    attention_norm: Weight,
    query: Weight,
    key: Weight,
    value: Weight,
    out: Weight,
    net_norm: Weight,
    gate: Weight,
    up: Weight,
    down: Weight,
}

/// The net.
pub(super) struct OnePiece {
    pub settings: OnePieceSettings,
    /// One a kind of tokens.
    kinds: Vec<Linear>,
    candidate: Linear,
    /// [STEPS, width]; where there is reasoning.
    steps: Option<Weight>,
    pub layers: Vec<Layer>,
    norm: Weight,
    out: Linear,
}

/// Keys and values that later blocks see, [heads, rows, width of a head] each.
type Cached = Vec<(Tensor, Tensor)>;

/// Who may see whom.
struct Sight<'a> {
    /// [impressions, length, ..] of whatever is [points, length, ..].
    owners: &'a Tensor,
    /// [impressions, tokens of a user]: 0, or `HIDDEN`.
    user: Tensor,
    /// [impressions, impressions]: 0 within a group, else `HIDDEN`.
    group: Tensor,
}

impl OnePiece {
    /// For kinds of tokens, and candidates, of these widths.
    pub fn random(maker: &mut Maker, kinds: &[usize], candidate: usize, settings: &OnePieceSettings) -> Result<Self> {
        let width = settings.width;
        Ok(Self {
            kinds: kinds.iter().map(|one| maker.linear(*one, width)).collect::<Result<_>>()?,
            candidate: maker.linear(candidate, width)?,
            steps: if settings.reasoning { Some(maker.table(STEPS, width)?) } else { None },
            layers: (0..settings.layers).map(|_| Layer::random(maker, settings)).collect::<Result<_>>()?,
            norm: maker.ones(width)?,
            out: maker.linear(width, 2)?,
            settings: settings.clone(),
        })
    }

    /// [impressions, 2]. `candidates`: [impressions, values]; `owners`: [impressions], the point of each.
    pub fn logits(&self, known: &[Known], candidates: &Tensor, owners: &Tensor) -> Result<Tensor> {
        let points = known[0].mask.dim(0)?;
        let token = |(linear, one): (&Linear, &Known)| -> Result<Tensor> {
            linear.of(&one.values)?.reshape((points, one.mask.dim(1)?, self.settings.width))
        };
        let tokens: Vec<Tensor> = self.kinds.iter().zip(known).map(token).collect::<Result<_>>()?;
        let masks: Vec<&Tensor> = known.iter().map(|one| &one.mask).collect();
        // [points, tokens]: 0 where there is a token.
        let hidden = ((1.0 - Tensor::cat(&masks, 1)?)? * f64::from(HIDDEN))?;
        let sight = Sight { owners, user: hidden.index_select(owners, 0)?, group: apart(owners)? };
        let mut user = Tensor::cat(&tokens, 1)?;
        let mut block = self.candidate.of(candidates)?;
        let (mut users, mut caches): (Vec<(Tensor, Tensor)>, Vec<Cached>) = (vec![], vec![vec![]; self.layers.len()]);
        for layer in &self.layers {
            let (next, keys) = layer.of_user(&user, &hidden, self.settings.heads)?;
            users.push(keys);
            user = next;
        }
        block = self.through(&block, &users, &mut caches, &sight)?;
        let mut answers = vec![];
        for step in 0..self.steps.as_ref().map_or(0, |_| STEPS) {
            let mark = self.steps.as_ref().map(|steps| steps.narrow(0, step, 1)).transpose()?;
            let marked = mark.map_or(Ok(block.clone()), |mark| block.broadcast_add(&mark))?;
            block = self.through(&marked, &users, &mut caches, &sight)?;
            answers.push(self.read(&block)?);
        }
        let last = self.read(&block)?;
        match answers.first().filter(|_| self.settings.progressive) {
            Some(first) => Tensor::cat(&[&first.narrow(1, 0, 1)?, &last.narrow(1, 1, 1)?], 1),
            None => Ok(last),
        }
    }

    fn read(&self, block: &Tensor) -> Result<Tensor> {
        self.out.of(&rms(block)?.broadcast_mul(&self.norm)?)
    }

    /// A block of candidates through all layers, each of which remembers its keys and values.
    fn through(
        &self,
        block: &Tensor,
        users: &[(Tensor, Tensor)],
        caches: &mut [Cached],
        sight: &Sight<'_>,
    ) -> Result<Tensor> {
        let mut block = block.clone();
        for ((layer, user), cache) in self.layers.iter().zip(users).zip(caches) {
            block = layer.of_candidates(&block, user, cache, sight, self.settings.heads)?;
        }
        Ok(block)
    }

    /// Every weight with its name; matrices decay.
    pub fn named(&self) -> Vec<(String, &Weight, bool)> {
        let mut all = Vec::new();
        for (place, linear) in self.kinds.iter().enumerate() {
            all.extend(linear.named(&format!("onepiece.kinds.{place}")));
        }
        all.extend(self.candidate.named("onepiece.candidate"));
        all.extend(self.steps.iter().map(|steps| ("onepiece.steps".to_owned(), steps, true)));
        for (place, layer) in self.layers.iter().enumerate() {
            all.extend(layer.named(&format!("onepiece.{place}")));
        }
        all.push(("onepiece.norm".to_owned(), &self.norm, false));
        all.extend(self.out.named("onepiece.out"));
        all
    }
}

impl Layer {
    fn random(maker: &mut Maker, settings: &OnePieceSettings) -> Result<Self> {
        let (width, hidden) = (settings.width, settings.hidden);
        // Half as far apart as rectified layers begin: nothing is cut off.
        let square = |maker: &mut Maker| maker.matrix(width, width, 4 * width);
        Ok(Self {
            attention_norm: maker.ones(width)?,
            query: square(maker)?,
            key: square(maker)?,
            value: square(maker)?,
            out: square(maker)?,
            net_norm: maker.ones(width)?,
            gate: maker.matrix(width, hidden, 2 * width)?,
            up: maker.matrix(width, hidden, 2 * width)?,
            down: maker.matrix(hidden, width, 2 * hidden)?,
        })
    }

    /// Users' tokens, and the keys and values by which candidates see them: [points, tokens, heads, width of a head].
    fn of_user(&self, x: &Tensor, hidden: &Tensor, heads: usize) -> Result<(Tensor, (Tensor, Tensor))> {
        let (points, tokens, width) = x.dims3()?;
        let flat = x.reshape((points * tokens, width))?;
        let normed = rms(&flat)?.broadcast_mul(&self.attention_norm)?;
        let split = |weight: &Weight| normed.matmul(weight)?.reshape((points, tokens, heads, width / heads));
        let (query, key, value) =
            ((split(&self.query)? * scale(width, heads))?, split(&self.key)?, split(&self.value)?);
        let first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
        let scores = first(&query)?.matmul(&first(&key)?.transpose(2, 3)?.contiguous()?)?;
        let scores = scores.broadcast_add(&hidden.reshape((points, 1, 1, tokens))?)?;
        let seen = softmax(&scores)?.matmul(&first(&value)?)?.transpose(1, 2)?.contiguous()?;
        let flat = (flat + seen.reshape((points * tokens, width))?.matmul(&self.out)?)?;
        Ok((self.net(&flat)?.reshape((points, tokens, width))?, (key, value)))
    }

    /// A block of candidates, [impressions, width].
    fn of_candidates(
        &self,
        x: &Tensor,
        (user_keys, user_values): &(Tensor, Tensor),
        cache: &mut Cached,
        sight: &Sight<'_>,
        heads: usize,
    ) -> Result<Tensor> {
        let (shown, width) = x.dims2()?;
        let normed = rms(x)?.broadcast_mul(&self.attention_norm)?;
        let split = |weight: &Weight| normed.matmul(weight)?.reshape((shown, heads, width / heads));
        let query = (split(&self.query)? * scale(width, heads))?;
        let first = |x: Tensor| x.transpose(0, 1)?.contiguous();
        cache.push((first(split(&self.key)?)?, first(split(&self.value)?)?));
        let (keys, values): (Vec<&Tensor>, Vec<&Tensor>) = cache.iter().map(|(key, value)| (key, value)).unzip();
        let (keys, values) = (Tensor::cat(&keys, 1)?, Tensor::cat(&values, 1)?);
        // Of the user's tokens: [impressions, heads, 1, tokens].
        let own = |x: &Tensor| x.index_select(sight.owners, 0)?.transpose(1, 2)?.contiguous();
        let (user_keys, user_values) = (own(user_keys)?, own(user_values)?);
        let tokens = user_keys.dim(2)?;
        let to_user = query.unsqueeze(2)?.matmul(&user_keys.transpose(2, 3)?.contiguous()?)?;
        let to_user = to_user.squeeze(2)?.broadcast_add(&sight.user.unsqueeze(1)?)?;
        // Of the group and the blocks before: [heads, impressions, blocks × impressions].
        let to_group = first(query)?.matmul(&keys.transpose(1, 2)?.contiguous()?)?;
        let blocks = vec![&sight.group; cache.len()];
        let to_group =
            to_group.broadcast_add(&Tensor::cat(&blocks, 1)?.unsqueeze(0)?)?.transpose(0, 1)?.contiguous()?;
        let weights = softmax(&Tensor::cat(&[&to_user, &to_group], 2)?)?;
        let of_user = weights.narrow(D::Minus1, 0, tokens)?.contiguous()?.unsqueeze(2)?.matmul(&user_values)?;
        let of_group = weights.narrow(D::Minus1, tokens, cache.len() * shown)?.transpose(0, 1)?.contiguous()?;
        let of_group = of_group.matmul(&values)?.transpose(0, 1)?.contiguous()?;
        let seen = (of_user.reshape((shown, width))? + of_group.reshape((shown, width))?)?;
        self.net(&(x + seen.matmul(&self.out)?)?)
    }

    /// Rows and what a net makes of them.
    fn net(&self, x: &Tensor) -> Result<Tensor> {
        let normed = rms(x)?.broadcast_mul(&self.net_norm)?;
        let inner = (normed.matmul(&self.gate)?.silu()? * normed.matmul(&self.up)?)?;
        x + inner.matmul(&self.down)?
    }

    fn named(&self, name: &str) -> Vec<(String, &Weight, bool)> {
        let parts = [
            ("attention_norm", &self.attention_norm, false),
            ("query", &self.query, true),
            ("key", &self.key, true),
            ("value", &self.value, true),
            ("out", &self.out, true),
            ("net_norm", &self.net_norm, false),
            ("gate", &self.gate, true),
            ("up", &self.up, true),
            ("down", &self.down, true),
        ];
        parts.map(|(part, weight, decay)| (format!("{name}.{part}"), weight, decay)).into_iter().collect()
    }
}

/// Queries are multiplied by this.
fn scale(width: usize, heads: usize) -> f64 {
    ((width / heads) as f64).sqrt().recip()
}

/// [impressions, impressions]: 0 where both are of one point, else `HIDDEN`.
fn apart(owners: &Tensor) -> Result<Tensor> {
    let others = owners.unsqueeze(1)?.broadcast_ne(&owners.unsqueeze(0)?)?;
    others.to_dtype(candle_core::DType::F32)? * f64::from(HIDDEN)
}

/// Mean over what was clicked of −log of its share in its group by the logits of P(click) [impressions]: set-wise contrast.
pub(super) fn contrast(click: &Tensor, clicked: &Tensor, owners: &Tensor) -> Result<Tensor> {
    let shown = click.dim(0)?;
    let group = click.unsqueeze(0)?.broadcast_add(&apart(owners)?)?;
    let most = group.detach().max_keepdim(1)?;
    let total = (group.broadcast_sub(&most)?.exp()?.sum_keepdim(1)?.log()? + most)?.reshape(shown)?;
    let count = clicked.sum_all()?.maximum(&Tensor::ones((), candle_core::DType::F32, &Device::Cpu)?)?;
    ((total - click)? * clicked)?.sum_all()? / count
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::nn::tensor;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn values(rows: usize, width: usize, seed: u64) -> Tensor {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        tensor((0..rows * width).map(|_| random.random_range(-1.0..1.0)).collect(), (rows, width)).unwrap()
    }

    /// Two users with three and two tokens of one kind and one of another; three candidates of the first and one of the second.
    fn asked() -> (OnePiece, Vec<Known>, Tensor, Tensor) {
        let net = OnePiece::random(&mut Maker::seeded(3), &[5, 4], 6, &OnePieceSettings::default()).unwrap();
        let mask = tensor(vec![1.0, 1.0, 1.0, 1.0, 1.0, 0.0], (2, 3)).unwrap();
        let known = vec![
            Known { values: values(6, 5, 1), mask },
            Known { values: values(2, 4, 2), mask: tensor(vec![1.0; 2], (2, 1)).unwrap() },
        ];
        let owners = Tensor::new(&[0u32, 0, 0, 1], &Device::Cpu).unwrap();
        (net, known, values(4, 6, 3), owners)
    }

    fn rows(logits: &Tensor) -> Vec<Vec<f32>> {
        logits.to_vec2().unwrap()
    }

    fn apart(one: &[Vec<f32>], other: &[Vec<f32>]) -> f32 {
        one.iter().flatten().zip(other.iter().flatten()).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn candidates_see_their_user_and_their_group_and_nobody_else() {
        let (net, known, candidates, owners) = asked();
        let whole = rows(&net.logits(&known, &candidates, &owners).unwrap());
        // Another candidate of the second user moves the second user's logits only.
        let mut other = candidates.to_vec2::<f32>().unwrap();
        other[3][0] += 1.0;
        let moved = rows(&net.logits(&known, &Tensor::new(other, &Device::Cpu).unwrap(), &owners).unwrap());
        assert!(apart(&whole[..3], &moved[..3]) < 1e-6 && apart(&whole[3..], &moved[3..]) > 1e-3);
        // Without the third candidate, what is said of the first two is other.
        let two = net.logits(&known, &candidates.narrow(0, 0, 2).unwrap(), &owners.narrow(0, 0, 2).unwrap()).unwrap();
        assert!(apart(&whole[..2], &rows(&two)) > 1e-4);
        // What is masked is not seen; what is not, is.
        let mut tokens = known[0].values.to_vec2::<f32>().unwrap();
        tokens[5][0] += 1.0;
        let with = |tokens: &Vec<Vec<f32>>| {
            let first =
                Known { values: Tensor::new(tokens.clone(), &Device::Cpu).unwrap(), mask: known[0].mask.clone() };
            let second = Known { values: known[1].values.clone(), mask: known[1].mask.clone() };
            rows(&net.logits(&[first, second], &candidates, &owners).unwrap())
        };
        assert!(apart(&whole, &with(&tokens)) < 1e-6);
        tokens[4][0] += 1.0;
        assert!(apart(&whole[3..], &with(&tokens)[3..]) > 1e-4);
    }

    #[test]
    fn steps_of_reasoning_and_the_chain_of_targets_change_what_comes_out() {
        let (mut net, known, candidates, owners) = asked();
        let whole = rows(&net.logits(&known, &candidates, &owners).unwrap());
        net.settings.progressive = false;
        let last = rows(&net.logits(&known, &candidates, &owners).unwrap());
        let column = |all: &[Vec<f32>], place: usize| all.iter().map(|row| vec![row[place]]).collect::<Vec<_>>();
        assert!(apart(&column(&whole, 0), &column(&last, 0)) > 1e-4, "clicks are answered for by the first step");
        assert_eq!(apart(&column(&whole, 1), &column(&last, 1)), 0.0);
        net.steps = None;
        assert!(apart(&last, &rows(&net.logits(&known, &candidates, &owners).unwrap())) > 1e-3, "reasoning");
    }

    #[test]
    fn contrast_is_the_share_of_what_was_clicked_in_its_group() {
        let click = tensor(vec![1.0, 2.0, -1.0, 5.0], 4).unwrap();
        let clicked = tensor(vec![0.0, 1.0, 0.0, 1.0], 4).unwrap();
        let owners = Tensor::new(&[0u32, 0, 0, 1], &Device::Cpu).unwrap();
        let found = contrast(&click, &clicked, &owners).unwrap().to_scalar::<f32>().unwrap();
        let share = 2f32.exp() / (1f32.exp() + 2f32.exp() + (-1f32).exp());
        // Who is alone in a group stands out without any effort.
        assert!((found + share.ln() / 2.0).abs() < 1e-5, "{found}");
        let none = contrast(&click, &clicked.zeros_like().unwrap(), &owners).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(none, 0.0);
    }

    #[test]
    fn settings_that_cannot_be_built_are_named() {
        let base = OnePieceSettings::default();
        for (settings, field) in [
            (OnePieceSettings { layers: 0, ..base.clone() }, "layers"),
            (OnePieceSettings { heads: 3, ..base.clone() }, "width"),
            (OnePieceSettings { anchors: 17, ..base.clone() }, "anchors"),
            (OnePieceSettings { contrast: f64::NAN, ..base.clone() }, "contrast"),
        ] {
            assert_eq!(settings.check().unwrap_err().0, field);
        }
        assert!(base.check().is_ok());
    }
}
