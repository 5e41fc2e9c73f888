//! One row of logits → the next token, and log-probabilities. Pure; called by `sequence`, `beam` and the scorer.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Sampling;

/// Candidates looked at before a top-p cut sorts the whole vocabulary.
const TOP_P_FIRST: usize = 1024;

/// Chooses tokens for one request. One random number a token, so that the n-th token depends on the seed, n and the
/// logits only, whatever else is in the batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Tokens of prompt and answer, for the repetition penalty: sorted, without repeats; empty without a penalty.
    seen: Vec<u32>,
}

impl Sampler {
    /// A sampler for one prompt, or what is wrong with the settings.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Result<Self, String> {
        let Sampling { temperature, top_p, repetition_penalty, .. } = sampling;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(format!("temperature {temperature} must be a number from 0 on"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(format!("top_p {top_p} must be above 0 and at most 1"));
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return Err(format!("repetition_penalty {repetition_penalty} must be above 0; 1 = none"));
        }
        let mut seen = match repetition_penalty == 1.0 {
            true => Vec::new(),
            false => prompt.to_vec(),
        };
        seen.sort_unstable();
        seen.dedup();
        Ok(Self { sampling, random: ChaCha8Rng::seed_from_u64(sampling.seed), seen })
    }

    /// The next token; `None` when the row is empty or holds a NaN or only infinities: the graph's result is unusable.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let best = maximum(logits)?;
        let token = match self.seen.is_empty() {
            true => self.draw(logits, best)?,
            false => {
                let penalised = self.penalised(logits);
                self.draw(&penalised, maximum(&penalised)?)?
            }
        };
        if self.sampling.repetition_penalty != 1.0
            && let Err(place) = self.seen.binary_search(&token)
        {
            self.seen.insert(place, token);
        }
        Some(token)
    }

    fn penalised(&self, logits: &[f32]) -> Vec<f32> {
        let mut changed = logits.to_vec();
        for &token in &self.seen {
            if let Some(logit) = changed.get_mut(token as usize) {
                let penalty = self.sampling.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        changed
    }

    /// `best`: the row's highest logit.
    fn draw(&mut self, logits: &[f32], best: f32) -> Option<u32> {
        if self.sampling.temperature == 0.0 {
            return first_at(logits, best);
        }
        let temperature = f64::from(self.sampling.temperature);
        let weight = |token: u32| ((f64::from(logits[token as usize]) - f64::from(best)) / temperature).exp();
        // One number whatever the cuts, so that the n-th token has the n-th number.
        let number: f64 = self.random.random();
        let everything = || 0..logits.len() as u32;
        if self.sampling.top_k == 0 && self.sampling.top_p >= 1.0 {
            let total: f64 = everything().map(weight).sum();
            return pick(everything(), weight, number * total);
        }
        let candidates = self.cut(logits, weight);
        let total: f64 = candidates.iter().map(|&token| weight(token)).sum();
        pick(candidates.iter().copied(), weight, number * total)
    }

    /// The tokens that top-k and top-p leave, the most likely first.
    fn cut(&self, logits: &[f32], weight: impl Fn(u32) -> f64) -> Vec<u32> {
        let limit = match self.sampling.top_k {
            0 => logits.len(),
            top_k => top_k.min(logits.len()),
        };
        if self.sampling.top_p >= 1.0 {
            return most_likely(logits, limit);
        }
        // Top-p is a share of what top-k leaves.
        let total: f64 = match limit == logits.len() {
            true => (0..logits.len() as u32).map(&weight).sum(),
            false => most_likely(logits, limit).into_iter().map(&weight).sum(),
        };
        let wanted = total * f64::from(self.sampling.top_p);
        for looked_at in [limit.min(TOP_P_FIRST), limit] {
            let mut candidates = most_likely(logits, looked_at);
            let mut sum = 0.0;
            let reached = candidates.iter().position(|&token| {
                sum += weight(token);
                sum >= wanted
            });
            if let Some(last) = reached {
                candidates.truncate(last + 1);
                return candidates;
            }
            if looked_at == limit {
                return candidates; // rounding: all of them
            }
        }
        Vec::new()
    }
}

/// The tokens with the highest logits, best first, lower ids first among equals.
fn most_likely(logits: &[f32], count: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |left: &u32, right: &u32| {
        logits[*right as usize].total_cmp(&logits[*left as usize]).then_with(|| left.cmp(right))
    };
    if count < tokens.len() && count > 0 {
        tokens.select_nth_unstable_by(count - 1, order);
    }
    tokens.truncate(count);
    tokens.sort_unstable_by(order);
    tokens
}

/// The first token at which the running sum passes `mark`.
fn pick(tokens: impl Iterator<Item = u32>, weight: impl Fn(u32) -> f64, mark: f64) -> Option<u32> {
    let mut sum = 0.0;
    let mut last = None;
    for token in tokens {
        let share = weight(token);
        if share > 0.0 {
            last = Some(token);
        }
        sum += share;
        if sum > mark {
            return Some(token);
        }
    }
    last
}

/// The token with the highest logit, the lowest id among equals. `None` when the row is empty or holds a NaN or only
/// infinities.
pub fn greedy(logits: &[f32]) -> Option<u32> {
    first_at(logits, maximum(logits)?)
}

fn first_at(logits: &[f32], best: f32) -> Option<u32> {
    logits.iter().position(|&logit| logit == best).map(|token| token as u32)
}

/// Natural-log probability of one token; `None` as for [`greedy`], or when the token is not in the row.
pub fn log_probability(logits: &[f32], token: u32) -> Option<f64> {
    let best = maximum(logits)?;
    let logit = *logits.get(token as usize)?;
    Some(f64::from(logit) - f64::from(best) - log_sum(logits, best))
}

const LANES: usize = 16;

/// Highest logit; `None` as for [`greedy`]. In lanes, so that the compiler uses vector instructions.
pub fn maximum(logits: &[f32]) -> Option<f32> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let best = lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, |best, logit| if logit > best { logit } else { best });
    let has_nan = logits.iter().fold(false, |seen, logit| seen | logit.is_nan());
    (best.is_finite() && !has_nan).then_some(best)
}

/// ln(sum(exp(logit - best))) over the whole row; a token's log-probability is its logit minus best minus this.
pub fn log_sum(logits: &[f32], best: f32) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    let mut total = 0.0_f64;
    // Partial sums stay short in f32, long ones are kept in f64.
    for block in logits.chunks(4096) {
        let (chunks, rest) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &logit) in lanes.iter_mut().zip(chunk) {
                *lane += exponential(logit - best);
            }
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        total += rest.iter().map(|&logit| f64::from(exponential(logit - best))).sum::<f64>();
        lanes = [0.0; LANES];
    }
    total.ln()
}

/// exp(x) for x <= 0, relative error below 1e-6, without a branch or a call: the library's exp costs more than a small
/// model's whole step. exp(x) = 2^n * e^r with |r| <= ln2 / 2, e^r by its Taylor series.
fn exponential(x: f32) -> f32 {
    let clamped = if x < -87.0 { -87.0 } else { x };
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let whole = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let rest = clamped - whole * std::f32::consts::LN_2;
    let series = 1.0
        + rest * (1.0 + rest * (0.5 + rest * (1.0 / 6.0 + rest * (1.0 / 24.0 + rest * (1.0 / 120.0 + rest / 720.0)))));
    let power = f32::from_bits((((whole as i32) + 127) as u32) << 23);
    series * power
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_plain_arithmetic(logits in prop::collection::vec(-60.0_f32..60.0, 1..300)) {
            let token = greedy(&logits).unwrap();
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(logits.iter().position(|&logit| logit == best).unwrap() as u32, token);
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit - best).exp()).sum();
            prop_assert!((log_probability(&logits, token).unwrap() + sum.ln()).abs() < 1e-5);
        }

        #[test]
        fn cuts_leave_only_the_most_likely(
            logits in prop::collection::vec(-8.0_f32..8.0, 2..2500), top_k in 0_usize..40, top_p in 0.05_f32..1.0,
            seed in any::<u64>(),
        ) {
            let sampling = Sampling { temperature: 1.0, top_k, top_p, seed, ..Sampling::GREEDY };
            let token = Sampler::new(sampling, &[]).unwrap().choose(&logits).unwrap();
            // Plain arithmetic: rank, and the probability of what stands before it among the top k.
            let ranked = most_likely(&logits, logits.len());
            let kept = &ranked[..if top_k == 0 { ranked.len() } else { top_k.min(ranked.len()) }];
            let weights: Vec<f64> = kept.iter().map(|&token| f64::from(logits[token as usize]).exp()).collect();
            let total: f64 = weights.iter().sum();
            let rank = kept.iter().position(|&kept| kept == token);
            prop_assert!(rank.is_some(), "outside the top k");
            let before: f64 = weights[..rank.unwrap()].iter().sum::<f64>() / total;
            prop_assert!(before < f64::from(top_p) + 1e-6, "{before}");
        }

        #[test]
        fn the_same_seed_draws_the_same(logits in prop::collection::vec(-4.0_f32..4.0, 2..60), seed in any::<u64>()) {
            let sampling = Sampling { temperature: 0.7, seed, ..Sampling::GREEDY };
            let draw = || {
                let mut sampler = Sampler::new(sampling, &[]).unwrap();
                (0..20).map(|_| sampler.choose(&logits).unwrap()).collect::<Vec<u32>>()
            };
            prop_assert_eq!(draw(), draw());
        }
    }

    #[test]
    fn shares_follow_the_probabilities() {
        // Probabilities 1/2, 1/4, 1/8, 1/8 at temperature 1; at temperature 1/2 they are squared: 16:4:1:1.
        let logits = [8.0_f32.ln(), 4.0_f32.ln(), 2.0_f32.ln(), 2.0_f32.ln()];
        for (temperature, wanted) in
            [(1.0, [0.5, 0.25, 0.125, 0.125]), (0.5, [16.0 / 22.0, 4.0 / 22.0, 1.0 / 22.0, 1.0 / 22.0])]
        {
            let sampling = Sampling { temperature, seed: 5, ..Sampling::GREEDY };
            let mut sampler = Sampler::new(sampling, &[]).unwrap();
            let mut counts = [0_u32; 4];
            (0..40_000).for_each(|_| counts[sampler.choose(&logits).unwrap() as usize] += 1);
            for (count, share) in counts.iter().zip(wanted) {
                assert!((f64::from(*count) / 40_000.0 - share).abs() < 0.01, "{counts:?}");
            }
        }
    }

    #[test]
    fn a_penalty_pushes_seen_tokens_down() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
        let mut sampler = Sampler::new(sampling, &[0]).unwrap();
        // 3.0 was in the prompt and counts as 1.5; then 2.0 was written and counts as 1.0; then 1.5 wins.
        let chosen: Vec<u32> = (0..3).map(|_| sampler.choose(&[3.0, 2.0, 1.2, -1.0]).unwrap()).collect();
        assert_eq!(chosen, [1, 0, 0]);
        // A negative logit is multiplied: it must not rise.
        assert_eq!(Sampler::new(sampling, &[1]).unwrap().choose(&[-1.5, -1.0]), Some(0));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |sampling| Sampler::new(sampling, &[]).unwrap_err();
        assert!(refused(Sampling { temperature: -1.0, ..Sampling::GREEDY }).contains("temperature"));
        assert!(refused(Sampling { top_p: 0.0, ..Sampling::GREEDY }).contains("top_p"));
        assert!(refused(Sampling { repetition_penalty: f32::NAN, ..Sampling::GREEDY }).contains("repetition_penalty"));
    }

    #[test]
    fn ties_go_to_the_lowest_id_and_nan_is_refused() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0]).unwrap(), 1);
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, ..Sampling::GREEDY }, &[]).unwrap();
        for row in [&[0.0, f32::NAN][..], &[], &[f32::NEG_INFINITY]] {
            assert!(greedy(row).is_none() && sampler.choose(row).is_none());
        }
        assert!(log_probability(&[0.0], 1).is_none());
    }
}
