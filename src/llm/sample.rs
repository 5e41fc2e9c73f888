//! One row of logits → the greedy token and its log-probability. Pure; called by `batch` and the scorer.

/// The token with the highest logit, the lowest id among equals, and its natural-log probability. `None` when the row
/// is empty or holds a NaN or only infinities: the graph's result is unusable then.
pub fn greedy(logits: &[f32]) -> Option<(u32, f64)> {
    let best = maximum(logits)?;
    let token = logits.iter().position(|&logit| logit == best)?;
    Some((token as u32, -log_sum(logits, best)))
}

/// Natural-log probability of one token; `None` as for [`greedy`], or when the token is not in the row.
pub fn log_probability(logits: &[f32], token: u32) -> Option<f64> {
    let best = maximum(logits)?;
    let logit = *logits.get(token as usize)?;
    Some(f64::from(logit) - f64::from(best) - log_sum(logits, best))
}

const LANES: usize = 16;

/// Highest value in lanes, so that the compiler uses vector instructions.
pub(super) fn maximum(logits: &[f32]) -> Option<f32> {
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

/// ln(sum(exp(logit - best))).
pub(super) fn log_sum(logits: &[f32], best: f32) -> f64 {
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
            let (token, logprob) = greedy(&logits).unwrap();
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(logits.iter().position(|&logit| logit == best).unwrap() as u32, token);
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit - best).exp()).sum();
            prop_assert!((logprob + sum.ln()).abs() < 1e-5);
            prop_assert!((log_probability(&logits, token).unwrap() - logprob).abs() < 1e-12);
        }
    }

    #[test]
    fn ties_go_to_the_lowest_id_and_nan_is_refused() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0]).unwrap().0, 1);
        assert!(greedy(&[0.0, f32::NAN]).is_none());
        assert!(greedy(&[]).is_none());
        assert!(log_probability(&[0.0], 1).is_none());
    }
}
