//! The policy objective of PPO, GRPO and what came after it, on tokens, with a divergence from a reference policy.
//!
//! Sources: arXiv 1707.06347 eq. 7 (clip), 2402.03300 eq. 3 (GRPO), 2503.14476 (DAPO: an upper bound of its own, one weight a token),
//! 2503.20783 (Dr. GRPO: a constant normaliser), 2507.18071 (GSPO: one ratio a response), 2506.13585 (CISPO: the ratio is cut, the gradient is
//! not), and fengyao.notion.site/off-policy-rl (importance weights between sampler and trainer). Rows are the tokens of responses, one
//! response after the other.

use super::divergence::KlEstimator;
use super::{Evaluation, Objective, ObjectiveError, check_normaliser, same_rows};

/// The ratio of new to old probability counts between 1 - low and 1 + high.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// Room below 1.
    pub low: f64,
    /// Room above 1; more of it than below ("clip-higher") lets rare tokens rise.
    pub high: f64,
}

/// What becomes of ratio ρ and advantage A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Surrogate {
    /// -min(ρ·A, clip(ρ)·A).
    Clipped(Clip),
    /// -min(ρ, most)·A·log-likelihood, the ratio held constant: no token loses its gradient (CISPO).
    Truncated {
        /// Highest ratio.
        most: f64,
    },
}

/// Of what the ratio is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RatioLevel {
    /// Of each token.
    Token,
    /// Of the response: e^(mean of its tokens' log ratios).
    Response,
}

/// How log-likelihoods of another engine, which sampled, are made up for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Correction {
    /// Each token counts min(trainer/sampler, cap).
    TokenTruncated(f64),
    /// A token whose trainer/sampler is above the cap does not count, else it counts that.
    TokenMasked(f64),
    /// Each response counts min(Π trainer/sampler, cap).
    ResponseTruncated(f64),
    /// A response whose Π trainer/sampler is above the cap does not count, else it counts that.
    ResponseMasked(f64),
}

impl Correction {
    /// Factor of every row from log(trainer) - log(sampler) of every row, and before it was cut.
    pub fn factors(self, log_ratios: &[f64], lengths: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let of_response = |rows: &[f64]| vec![rows.iter().sum::<f64>().exp(); rows.len()];
        let raw: Vec<f64> = match self {
            Self::TokenTruncated(_) | Self::TokenMasked(_) => log_ratios.iter().map(|ratio| ratio.exp()).collect(),
            Self::ResponseTruncated(_) | Self::ResponseMasked(_) => {
                responses(log_ratios, lengths).flat_map(of_response).collect()
            }
        };
        let cut = |ratio: &f64| match self {
            Self::TokenTruncated(cap) | Self::ResponseTruncated(cap) => ratio.min(cap),
            Self::TokenMasked(cap) | Self::ResponseMasked(cap) if *ratio > cap => 0.0,
            Self::TokenMasked(_) | Self::ResponseMasked(_) => *ratio,
        };
        (raw.iter().map(cut).collect(), raw)
    }
}

/// The rows of each response.
fn responses<'a>(rows: &'a [f64], lengths: &'a [usize]) -> impl Iterator<Item = &'a [f64]> {
    let mut start = 0;
    lengths.iter().map(move |length| {
        start += length;
        &rows[start - length..start]
    })
}

/// What the divergence of a token, drawn by the old policy, is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KlRatio {
    /// Nothing (GRPO as published).
    One,
    /// ρ, held constant: with k2 the gradient is then that of KL(policy ‖ reference) off policy, too (arXiv 2506.09477).
    Held,
    /// ρ with its gradient (TRL's `use_bias_correction_kl`).
    Live,
}

/// A divergence from a reference policy, added to an objective.
#[derive(Debug, Clone)]
pub struct KlPenalty {
    /// Factor of the divergence.
    pub strength: f64,
    /// Estimator.
    pub estimator: KlEstimator,
    /// What it is multiplied with.
    pub ratio: KlRatio,
    /// The reference's log-likelihood of every row.
    pub reference: Vec<f64>,
}

/// What another engine said of the tokens that it sampled.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// Its log-likelihood of every row.
    pub log_likelihoods: Vec<f64>,
    /// How that is made up for.
    pub correction: Correction,
}

/// Σ weight·( factor·surrogate(ρ, A) + strength·kl ), ρ = e^(log-likelihood - old) of a token or a response; `factor` makes up for the
/// sampler's engine.
#[derive(Debug, Clone)]
pub struct GroupPolicy {
    /// Factor of every row, all normalisation included; see [`Normaliser`].
    pub weights: Vec<f64>,
    /// Advantage A of every row.
    pub advantages: Vec<f64>,
    /// Rows of each response.
    pub lengths: Vec<usize>,
    /// Log-likelihoods under the policy that sampled; `None`: it is the present one, and every ratio is 1.
    pub old: Option<Vec<f64>>,
    /// Of another engine, where that is to be made up for.
    pub sampled: Option<Sampled>,
    /// Form.
    pub surrogate: Surrogate,
    /// Of what the ratio is.
    pub level: RatioLevel,
    /// Divergence, if any.
    pub penalty: Option<KlPenalty>,
}

/// -min(ρ·A, clip(ρ)·A) and its derivative with respect to log ρ: -ρ·A, or 0 where the clip holds.
pub fn clipped_surrogate(log_ratio: f64, advantage: f64, clip: Clip) -> (f64, f64) {
    let ratio = log_ratio.exp();
    let free = ratio * advantage;
    let clipped = ratio.clamp(1.0 - clip.low, 1.0 + clip.high) * advantage;
    if clipped < free { (-clipped, 0.0) } else { (-free, -free) }
}

impl Surrogate {
    /// Whether the bound below 1, or that above, takes a token's gradient; of CISPO, as TRL counts, whether the ratio of a token that is
    /// to become likelier is cut.
    pub fn cuts(self, log_ratio: f64, advantage: f64) -> [bool; 2] {
        let ratio = log_ratio.exp();
        match self {
            Self::Clipped(clip) => {
                [ratio < 1.0 - clip.low && advantage < 0.0, ratio > 1.0 + clip.high && advantage > 0.0]
            }
            Self::Truncated { most } => [false, ratio > most && advantage > 0.0],
        }
    }

    /// Value and derivative with respect to log ρ; `policy` is the log-likelihood that CISPO multiplies.
    fn at(self, log_ratio: f64, policy: f64, advantage: f64) -> (f64, f64) {
        match self {
            Self::Clipped(clip) => clipped_surrogate(log_ratio, advantage, clip),
            Self::Truncated { most } => {
                let factor = log_ratio.exp().min(most) * advantage;
                (-factor * policy, -factor)
            }
        }
    }
}

/// What a sum over tokens is divided by. Responses that are masked are in none of these numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Normaliser {
    /// Every response counts the same, each of its tokens 1/length (GRPO).
    Responses,
    /// Every token of the batch counts the same (DAPO).
    Tokens,
    /// Every token counts 1/`longest`, all divided by the number of responses (Dr. GRPO): no length is favoured.
    Longest {
        /// Most tokens of a response.
        longest: usize,
    },
}

impl Normaliser {
    /// Weight of every row before the division, and the divisor; divisors of the parts of a batch add up to the whole's. Masked responses
    /// (`false`) weigh 0.
    pub fn weights(self, lengths: &[usize], counted: &[bool]) -> (Vec<f64>, f64) {
        let mut divisor = 0.0;
        let mut weights = Vec::with_capacity(lengths.iter().sum());
        for (length, counted) in lengths.iter().zip(counted) {
            let (weight, part) = match (*counted, self) {
                (false, _) => (0.0, 0.0),
                (true, Self::Responses) => (1.0 / *length as f64, 1.0),
                (true, Self::Tokens) => (1.0, *length as f64),
                (true, Self::Longest { longest }) => (1.0, longest as f64),
            };
            divisor += part;
            weights.extend(std::iter::repeat_n(weight, *length));
        }
        (weights, divisor)
    }
}

/// Weights of GRPO: every response counts the same, every token of it 1/length; all divided by `normaliser`, which is the
/// number of responses. One weight per row, in the order of the lengths.
pub fn response_weights(lengths: &[usize], normaliser: f64) -> Result<Vec<f64>, ObjectiveError> {
    let normaliser = check_normaliser(normaliser)?;
    let (weights, _) = Normaliser::Responses.weights(lengths, &vec![true; lengths.len()]);
    Ok(weights.into_iter().map(|weight| weight / normaliser).collect())
}

impl GroupPolicy {
    fn check(&self, log_likelihoods: &[f64]) -> Result<(), ObjectiveError> {
        let columns = [
            ("weights", Some(&self.weights)),
            ("advantages", Some(&self.advantages)),
            ("old", self.old.as_ref()),
            ("sampled", self.sampled.as_ref().map(|sampled| &sampled.log_likelihoods)),
            ("reference", self.penalty.as_ref().map(|penalty| &penalty.reference)),
        ];
        for (field, column) in columns {
            column.map_or(Ok(()), |column| same_rows(field, column, log_likelihoods))?;
        }
        let expected = self.lengths.iter().sum();
        match expected == log_likelihoods.len() {
            true => Ok(()),
            false => Err(ObjectiveError::Rows { field: "lengths", expected, found: log_likelihoods.len() }),
        }
    }

    /// log ρ of every row; at the level of responses the same for all rows of one.
    pub fn log_ratios(&self, log_likelihoods: &[f64]) -> Vec<f64> {
        let Some(old) = &self.old else { return vec![0.0; log_likelihoods.len()] };
        let of_tokens: Vec<f64> = log_likelihoods.iter().zip(old).map(|(policy, old)| policy - old).collect();
        if self.level == RatioLevel::Token {
            return of_tokens;
        }
        let mean = |rows: &[f64]| vec![rows.iter().sum::<f64>() / rows.len() as f64; rows.len()];
        responses(&of_tokens, &self.lengths).flat_map(mean).collect()
    }

    /// What makes up for the sampler's engine: factor of every row, and before it was cut. All 1 where nothing does.
    pub fn corrections(&self, log_likelihoods: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let Some(Sampled { log_likelihoods: sampled, correction }) = &self.sampled else {
            return (vec![1.0; log_likelihoods.len()], vec![1.0; log_likelihoods.len()]);
        };
        let old = self.old.as_deref().unwrap_or(log_likelihoods);
        let gaps: Vec<f64> = old.iter().zip(sampled).map(|(old, sampled)| old - sampled).collect();
        correction.factors(&gaps, &self.lengths)
    }
}

impl Objective for GroupPolicy {
    fn evaluate(&self, log_likelihoods: &[f64]) -> Result<Evaluation, ObjectiveError> {
        self.check(log_likelihoods)?;
        let ratios = self.log_ratios(log_likelihoods);
        let (factors, _) = self.corrections(log_likelihoods);
        let mut total = 0.0;
        let mut derivatives = vec![0.0; log_likelihoods.len()];
        let mut start = 0;
        for length in &self.lengths {
            let rows = start..start + length;
            start = rows.end;
            let mut by_ratio = 0.0;
            for row in rows.clone() {
                let (value, by_policy, slope) = self.of_row(row, log_likelihoods[row], ratios[row], factors[row]);
                total += self.weights[row] * value;
                derivatives[row] += self.weights[row] * by_policy;
                match self.level {
                    RatioLevel::Token => derivatives[row] += self.weights[row] * slope,
                    RatioLevel::Response => by_ratio += self.weights[row] * slope / *length as f64,
                }
            }
            derivatives[rows].iter_mut().for_each(|derivative| *derivative += by_ratio);
        }
        Ok(Evaluation { value: total, derivatives })
    }
}

impl GroupPolicy {
    /// Value of a row, its derivative by the row's own log-likelihood and that by log ρ.
    fn of_row(&self, row: usize, policy: f64, log_ratio: f64, factor: f64) -> (f64, f64, f64) {
        let (surrogate, slope) = self.surrogate.at(log_ratio, policy, self.advantages[row]);
        let (mut value, mut by_policy, mut by_ratio) = match self.surrogate {
            Surrogate::Clipped(_) => (factor * surrogate, 0.0, factor * slope),
            // The ratio is a constant there.
            Surrogate::Truncated { .. } => (factor * surrogate, factor * slope, 0.0),
        };
        if let Some(penalty) = &self.penalty {
            let ratio = if penalty.ratio == KlRatio::One { 1.0 } else { log_ratio.exp() };
            let (divergence, pull) = penalty.estimator.at(policy, penalty.reference[row]);
            value += penalty.strength * ratio * divergence;
            by_policy += penalty.strength * ratio * pull;
            if penalty.ratio == KlRatio::Live {
                by_ratio += penalty.strength * ratio * divergence;
            }
        }
        (value, by_policy, by_ratio)
    }
}
