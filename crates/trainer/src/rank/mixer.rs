//! TokenMixer-Large (arXiv 2602.06563; its forerunner is RankMixer, arXiv 2507.15551) in the place of DIN's layers.
//!
//! In: parts of what is known of an impression, each of them one token. Out: logits. Called by `model`; `mixer_graph` writes the same as ONNX.
//!
//! ```text
//! parts → tokens X [T, D] → blocks → mean over the tokens → logits
//! block: mix X (each token is cut into T pieces, piece h of all tokens makes the new token h), a net of its own for every mixed token,
//!        mix back, a net of its own for every token, + X: what is added stands for what it is added to
//! net:   experts of every token, of which a router lets the best few act, and one that always acts (SwiGLU all of them)
//! ```
//!
//! Every few blocks, what an earlier one made is added; the middle block has logits of its own, which only the loss sees. Experts are computed
//! all and those that do not act are masked: the numbers are those of a sparse net, its speed is not.

use super::layer::{Linear, Maker, rms, softmax};
use crate::nn::{Weight, tensor};
use candle_core::{D, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Settings of a token mixer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixerSettings {
    /// Width of a piece of a token; a token is as many pieces wide as there are tokens.
    pub head: usize,
    /// Blocks.
    pub blocks: usize,
    /// Width of an expert's inner layer.
    pub hidden: usize,
    /// Experts of a token beside the one that always acts, and how many of them act at once.
    pub experts: usize,
    /// See `experts`.
    pub active: usize,
    /// Whether mixed tokens are mixed back before the second net; else a block is RankMixer's, which adds mixed tokens to unmixed ones.
    pub revert: bool,
    /// Blocks between what is added and where; 0 = nothing is.
    pub residual_every: usize,
    /// Weight of the loss of the middle block's logits; 0 = there are none.
    pub auxiliary: f64,
}

impl Default for MixerSettings {
    fn default() -> Self {
        Self { head: 8, blocks: 2, hidden: 32, experts: 4, active: 2, revert: true, residual_every: 2, auxiliary: 0.2 }
    }
}

impl MixerSettings {
    /// Refuses what cannot be built, naming the setting.
    pub(super) fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let counts = [("head", self.head), ("blocks", self.blocks), ("hidden", self.hidden)];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err((field, "must be positive".into()));
        }
        let chosen = 1..=self.experts;
        if self.experts > 0 && !chosen.contains(&self.active) {
            return Err(("active", format!("must be from 1 to experts {}, got {}", self.experts, self.active)));
        }
        if self.residual_every == 1 {
            return Err(("residual_every", "must be 0 or at least 2: a block adds what it was given already".into()));
        }
        if !(0.0..=10.0).contains(&self.auxiliary) {
            return Err(("auxiliary", format!("must be from 0 to 10, got {}", self.auxiliary)));
        }
        match self.auxiliary > 0.0 && self.blocks < 2 {
            true => Err(("auxiliary", "needs two blocks or more".into())),
            false => Ok(()),
        }
    }

    /// Experts, the one that always acts among them.
    fn all_experts(&self) -> usize {
        self.experts + 1
    }
}

/// A net for each token.
pub(super) struct Experts {
    /// [tokens, 1, width].
    norm: Weight,
    /// [tokens, width, experts]; where there are any.
    router: Option<Weight>,
    /// [tokens, width, all experts × hidden], twice, and back.
    gate: Weight,
    up: Weight,
    down: Weight,
}

pub(super) struct Block {
    /// Of the mixed tokens; where they are mixed back.
    pub mixed: Option<Experts>,
    pub own: Experts,
}

/// Logits out of tokens.
struct Readout {
    /// [width].
    norm: Weight,
    out: Linear,
}

/// The net.
pub(super) struct Mixer {
    pub settings: MixerSettings,
    pub tokens: usize,
    inputs: Vec<Linear>,
    pub blocks: Vec<Block>,
    out: Readout,
    auxiliary: Option<Readout>,
}

impl Mixer {
    /// For parts of these widths.
    pub fn random(maker: &mut Maker, widths: &[usize], settings: &MixerSettings) -> Result<Self> {
        let tokens = widths.len();
        let width = tokens * settings.head;
        let inputs = widths.iter().map(|part| maker.linear(*part, width)).collect::<Result<_>>()?;
        let mut blocks = Vec::with_capacity(settings.blocks);
        for _ in 0..settings.blocks {
            let mixed = if settings.revert { Some(Experts::random(maker, tokens, settings)?) } else { None };
            blocks.push(Block { mixed, own: Experts::random(maker, tokens, settings)? });
        }
        let auxiliary = if settings.auxiliary > 0.0 { Some(Readout::random(maker, width)?) } else { None };
        let out = Readout::random(maker, width)?;
        Ok(Self { settings: settings.clone(), tokens, inputs, blocks, out, auxiliary })
    }

    /// [impressions, 2], and the middle block's where it has any. `parts`: [impressions, its width] each.
    pub fn logits(&self, parts: &[Tensor]) -> Result<(Tensor, Option<Tensor>)> {
        let tokens = self.inputs.iter().zip(parts).map(|(linear, part)| linear.of(part)).collect::<Result<Vec<_>>>()?;
        let mut made = vec![Tensor::stack(&tokens, 0)?];
        let mut auxiliary = None;
        for (place, block) in self.blocks.iter().enumerate() {
            let mut next = self.block(block, &made[place])?;
            if let Some(earlier) = self.earlier(place) {
                next = (next + &made[earlier])?;
            }
            if let Some(readout) = self.auxiliary.as_ref().filter(|_| place + 1 == self.blocks.len().div_ceil(2)) {
                auxiliary = Some(readout.of(&next)?);
            }
            made.push(next);
        }
        Ok((self.out.of(&made[self.blocks.len()])?, auxiliary))
    }

    /// After how many blocks what is added behind a block was made.
    pub fn earlier(&self, place: usize) -> Option<usize> {
        let every = self.settings.residual_every;
        (every > 0 && (place + 1).is_multiple_of(every)).then(|| place + 1 - every)
    }

    fn block(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let mixed = self.mix(x)?;
        let Some(net) = &block.mixed else {
            let joined = block.own.normed(&(mixed + x)?)?;
            return &joined + block.own.net(&joined, &self.settings)?;
        };
        let mixed = (&mixed + net.net(&net.normed(&mixed)?, &self.settings)?)?;
        let back = self.mix(&mixed)?;
        x + block.own.net(&block.own.normed(&back)?, &self.settings)?
    }

    /// Piece h of all tokens becomes token h; done twice, all is as it was.
    fn mix(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, shown, width) = x.dims3()?;
        let pieces = x.reshape((tokens, shown, tokens, self.settings.head))?;
        pieces.permute((2, 1, 0, 3))?.contiguous()?.reshape((tokens, shown, width))
    }

    /// Every weight with its name; matrices decay.
    pub fn named(&self) -> Vec<(String, &Weight, bool)> {
        let mut all = Vec::new();
        for (place, linear) in self.inputs.iter().enumerate() {
            all.extend(linear.named(&format!("mixer.inputs.{place}")));
        }
        for (place, block) in self.blocks.iter().enumerate() {
            let nets = [("mixed", block.mixed.as_ref()), ("own", Some(&block.own))];
            for (name, net) in nets.into_iter().filter_map(|(name, net)| Some((name, net?))) {
                all.extend(net.named(&format!("mixer.{place}.{name}")));
            }
        }
        for (name, readout) in [("auxiliary", self.auxiliary.as_ref()), ("out", Some(&self.out))] {
            let Some(readout) = readout else { continue };
            all.push((format!("mixer.{name}.norm"), &readout.norm, false));
            all.extend(readout.out.named(&format!("mixer.{name}")));
        }
        all
    }
}

impl Experts {
    fn random(maker: &mut Maker, tokens: usize, settings: &MixerSettings) -> Result<Self> {
        let width = tokens * settings.head;
        let inner = settings.all_experts() * settings.hidden;
        let mut matrices = |inputs: usize, outputs: usize, fan: usize| -> Result<Weight> {
            let flat = maker.matrix(tokens * inputs, outputs, fan)?;
            Weight::new(&flat.var().reshape((tokens, inputs, outputs))?)
        };
        Ok(Self {
            router: if settings.experts > 0 { Some(matrices(width, settings.experts, width)?) } else { None },
            gate: matrices(width, inner, width)?,
            up: matrices(width, inner, width)?,
            // Several experts add up.
            down: matrices(inner, width, inner)?,
            norm: Weight::new(&tensor(vec![1.0; tokens * width], (tokens, 1, width))?)?,
        })
    }

    /// Whether a router decides which of them act.
    pub fn routed(&self) -> bool {
        self.router.is_some()
    }

    /// Root mean square 1, times what was learned.
    fn normed(&self, x: &Tensor) -> Result<Tensor> {
        rms(x)?.broadcast_mul(&self.norm)
    }

    /// [tokens, impressions, width], of tokens that were normed.
    fn net(&self, x: &Tensor, settings: &MixerSettings) -> Result<Tensor> {
        let gate = x.matmul(&self.gate)?;
        let mut inner = (gate.silu()? * x.matmul(&self.up)?)?;
        if let Some(router) = &self.router {
            inner = (inner * acting(&x.matmul(router)?, settings)?)?;
        }
        inner.matmul(&self.down)
    }

    fn named(&self, name: &str) -> Vec<(String, &Weight, bool)> {
        let parts = [
            ("norm", Some(&self.norm), false),
            ("router", self.router.as_ref(), true),
            ("gate", Some(&self.gate), true),
            ("up", Some(&self.up), true),
            ("down", Some(&self.down), true),
        ];
        parts.into_iter().filter_map(|(part, weight, decay)| Some((format!("{name}.{part}"), weight?, decay))).collect()
    }
}

impl Readout {
    fn random(maker: &mut Maker, width: usize) -> Result<Self> {
        Ok(Self { norm: maker.ones(width)?, out: maker.linear(width, 2)? })
    }

    /// [impressions, 2] of [tokens, impressions, width].
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        self.out.of(&rms(x)?.broadcast_mul(&self.norm)?.mean(0)?)
    }
}

/// What each inner value counts, [tokens, impressions, all experts × hidden]: as much as its expert acts, of the expert that always acts 1.
/// Chances of the experts that act are multiplied by the number of experts: an even router gives each of them 1.
fn acting(router: &Tensor, settings: &MixerSettings) -> Result<Tensor> {
    let (tokens, shown, experts) = router.dims3()?;
    let chances = softmax(router)?;
    let (sorted, _) = chances.detach().contiguous()?.sort_last_dim(false)?;
    let least = sorted.narrow(D::Minus1, settings.active - 1, 1)?;
    let acts = chances.detach().broadcast_ge(&least)?.to_dtype(chances.dtype())?;
    let counts = ((chances * acts)? * experts as f64)?.reshape((tokens * shown, experts))?;
    let (spread, always) = spreads(settings);
    let inner = always.len();
    let counts = counts.matmul(&tensor(spread, (experts, inner))?)?.broadcast_add(&tensor(always, inner)?)?;
    counts.reshape((tokens, shown, inner))
}

/// [experts, all experts × hidden]: 1 where an inner value is of an expert; [all experts × hidden]: 1 where it is of the one that always acts.
pub(super) fn spreads(settings: &MixerSettings) -> (Vec<f32>, Vec<f32>) {
    let (experts, inner) = (settings.experts, settings.all_experts() * settings.hidden);
    let of = |expert: usize| (0..inner).map(move |place| if place / settings.hidden == expert { 1.0 } else { 0.0 });
    ((0..experts).flat_map(of).collect(), of(experts).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const SHOWN: usize = 5;

    fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
    }

    /// Of four parts, with all that it can have.
    fn mixer() -> (Mixer, Vec<Tensor>) {
        let widths = [6, 3, 9, 2];
        let settings = MixerSettings { head: 4, hidden: 8, ..MixerSettings::default() };
        let mixer = Mixer::random(&mut Maker::seeded(3), &widths, &settings).unwrap();
        let part =
            |(place, width): (usize, &usize)| tensor(values(SHOWN * width, place as u64), (SHOWN, *width)).unwrap();
        (mixer, widths.iter().enumerate().map(part).collect())
    }

    fn apart(one: &Tensor, other: &Tensor) -> f32 {
        (one - other).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn mixing_puts_piece_h_of_all_tokens_into_token_h_and_twice_is_as_before() {
        let (mixer, _) = mixer();
        let (tokens, width) = (4, 16);
        let x = tensor(values(tokens * SHOWN * width, 9), (tokens, SHOWN, width)).unwrap();
        let mixed = mixer.mix(&x).unwrap();
        let (before, after) = (x.to_vec3::<f32>().unwrap(), mixed.to_vec3::<f32>().unwrap());
        for (head, token, shown) in [(0, 1, 0), (3, 2, 4), (2, 0, 1)] {
            assert_eq!(after[head][shown][token * 4..][..4], before[token][shown][head * 4..][..4]);
        }
        assert_eq!(apart(&mixer.mix(&mixed).unwrap(), &x), 0.0);
    }

    /// Reverting, residuals between blocks, experts that a router chooses, logits in the middle: without each of them others come out.
    #[test]
    fn every_named_part_changes_what_comes_out() {
        let (mut mixer, parts) = mixer();
        let (whole, middle) = mixer.logits(&parts).unwrap();
        assert_eq!(whole.dims(), [SHOWN, 2]);
        assert!(apart(&whole, &middle.unwrap()) > 1e-3);
        let all = mixer.settings.clone();
        mixer.settings.residual_every = 0;
        assert!(apart(&whole, &mixer.logits(&parts).unwrap().0) > 1e-3, "residuals between blocks");
        mixer.settings = MixerSettings { active: 1, ..all.clone() };
        assert!(apart(&whole, &mixer.logits(&parts).unwrap().0) > 1e-4, "experts that act");
        mixer.settings = all;
        assert_eq!(apart(&whole, &mixer.logits(&parts).unwrap().0), 0.0);
        mixer.blocks.iter_mut().for_each(|block| block.mixed = None);
        assert!(apart(&whole, &mixer.logits(&parts).unwrap().0) > 1e-3, "reverting");
    }

    #[test]
    fn the_best_experts_act_by_their_chances_and_one_always() {
        let settings = MixerSettings { experts: 3, active: 2, hidden: 2, ..MixerSettings::default() };
        let router = tensor(vec![1.0, 3.0, 2.0, 0.0, 0.0, -9.0], (1, 2, 3)).unwrap();
        let counts = acting(&router, &settings).unwrap().to_vec3::<f32>().unwrap();
        let chance = |score: f32| score.exp() / (1f32.exp() + 2f32.exp() + 3f32.exp());
        let expected = [0.0, 0.0, 3.0 * chance(3.0), 3.0 * chance(3.0), 3.0 * chance(2.0), 3.0 * chance(2.0), 1.0, 1.0];
        assert!(counts[0][0].iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-5), "{:?}", counts[0][0]);
        assert!((counts[0][1][0] - 1.5).abs() < 1e-3 && counts[0][1][4] == 0.0, "{:?}", counts[0][1]);
    }

    #[test]
    fn settings_that_cannot_be_built_are_named() {
        let base = MixerSettings::default();
        for (settings, field) in [
            (MixerSettings { head: 0, ..base.clone() }, "head"),
            (MixerSettings { active: 5, ..base.clone() }, "active"),
            (MixerSettings { residual_every: 1, ..base.clone() }, "residual_every"),
            (MixerSettings { auxiliary: -1.0, ..base.clone() }, "auxiliary"),
            (MixerSettings { blocks: 1, ..base.clone() }, "auxiliary"),
        ] {
            assert_eq!(settings.check().unwrap_err().0, field);
        }
        assert!(MixerSettings { experts: 0, auxiliary: 0.0, blocks: 1, ..base }.check().is_ok());
    }
}
