//! Known values, and every derivative against central differences.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

const CLIP: Clip = Clip { low: 0.2, high: 0.28 };

/// Derivatives of `objective` at `point` by central differences.
fn slopes(point: &[f64], value: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let shift = 1e-5;
    (0..point.len())
        .map(|row| {
            let at = |delta: f64| {
                let mut moved = point.to_vec();
                moved[row] += delta;
                value(&moved)
            };
            (at(shift) - at(-shift)) / (2.0 * shift)
        })
        .collect()
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() < 1e-6 * (1.0 + y.abs()), "{a:?} against {b:?}");
    }
}

fn check(objective: &dyn Objective, point: &[f64]) {
    let value = |point: &[f64]| objective.evaluate(point).unwrap().value;
    close(&objective.evaluate(point).unwrap().derivatives, &slopes(point, value));
}

#[test]
fn cross_entropy_keeps_the_scale_of_its_weights() {
    let likelihoods = [-1.0, -3.0];
    let at = |weights: [f32; 3], normaliser| {
        let objective = CrossEntropy::sum(&weights, normaliser).unwrap();
        check(&objective, &likelihoods);
        objective.evaluate(&likelihoods).unwrap()
    };
    let one = at([0.5, 0.0, -1.0], 4.0);
    assert_eq!(one, Evaluation { value: -0.625, derivatives: vec![-0.125, 0.25] });
    let ten = at([5.0, 0.0, -10.0], 4.0);
    assert_eq!(ten.derivatives, [-1.25, 2.5]);
    let mean = CrossEntropy::mean(&[0.5, 0.0, 1.5]).unwrap().evaluate(&likelihoods).unwrap();
    assert_eq!(mean, Evaluation { value: 2.5, derivatives: vec![-0.25, -0.75] });
}

#[test]
fn what_makes_no_objective_is_refused_by_name() {
    let message = |error: ObjectiveError| error.to_string();
    assert!(message(CrossEntropy::mean(&[1.0, -1.0]).unwrap_err()).contains("weights must not be negative"));
    assert!(message(CrossEntropy::mean(&[0.0]).unwrap_err()).contains("normaliser must be positive"));
    assert!(message(CrossEntropy::sum(&[1.0], f64::NAN).unwrap_err()).contains("normaliser"));
    let plain = CrossEntropy::mean(&[1.0]).unwrap();
    assert!(message(plain.evaluate(&[-1.0, -1.0]).unwrap_err()).contains("weights is made for 1 rows"));
    assert!(message(plain.smoothed(1.0).unwrap_err()).contains("label_smoothing"));
    assert!(message(response_weights(&[3], 0.0).unwrap_err()).contains("normaliser"));
    let dpo = |rejected, reference| SoftmaxDpo {
        beta: 1.0,
        preferences: vec![Preference { chosen: 0..1, rejected }],
        reference: vec![0.0; reference],
        normaliser: 1.0,
    };
    assert!(message(dpo(vec![], 2).evaluate(&[0.0, 0.0]).unwrap_err()).contains("need a rejected answer"));
    let outside = dpo(std::iter::once(1..3).collect(), 2).evaluate(&[0.0, 0.0]).unwrap_err();
    assert!(message(outside).contains("1..3"));
}

#[test]
fn the_clip_stops_gains_only() {
    // (log ratio, advantage) → (value, derivative).
    let at = |log_ratio: f64, advantage: f64| clipped_surrogate(log_ratio, advantage, CLIP);
    close(&[at(0.0, 3.0).0, at(0.0, 3.0).1], &[-3.0, -3.0]);
    // Above 1.28 a good token gains no more, a bad one loses on.
    assert_eq!(at(1.5f64.ln(), 2.0), (-2.56, 0.0));
    close(&[at(1.5f64.ln(), -2.0).0, at(1.5f64.ln(), -2.0).1], &[3.0, 3.0]);
    // Clip-higher: 1.25 is above 1 + low and still free.
    close(&[at(1.25f64.ln(), 2.0).1], &[-2.5]);
    // Below 0.8 a bad token gains no more, a good one is pulled back.
    assert_eq!(at(0.5f64.ln(), -2.0), (1.6, 0.0));
    close(&[at(0.5f64.ln(), 2.0).1], &[-1.0]);
}

#[test]
fn divergences_are_zero_at_the_reference_and_bounded_far_away() {
    assert_eq!((k2(-1.5, -1.5), k3(-1.5, -1.5)), ((0.0, 0.0), (0.0, -0.0)));
    close(&[k2(-1.0, -3.0).0, k2(-1.0, -3.0).1], &[2.0, 2.0]);
    let ratio = (-2.0f64).exp();
    close(&[k3(-1.0, -3.0).0, k3(-1.0, -3.0).1], &[ratio + 1.0, 1.0 - ratio]);
    // Unbounded it would be 59,862 here.
    let (value, slope) = k3(-12.0, -1.0);
    let steepest = 5.0f64.exp() - 1.0;
    close(&[value, slope], &[steepest - 5.0 + 6.0 * steepest, -steepest]);
}

#[test]
fn softmax_dpo_starts_at_ln_2_and_ln_21_and_has_the_published_weights() {
    assert!((softmax_dpo(0.1, -4.0, &[-4.0]).value - std::f64::consts::LN_2).abs() < 1e-12);
    let start = softmax_dpo(0.1, 2.0, &[2.0; 20]);
    assert!((start.value - 3.044522).abs() < 5e-7, "{}", start.value);
    close(&[start.chosen], &[-0.1 * 20.0 / 21.0]);
    close(&start.rejected, &[0.1 / 21.0; 20]);

    let (beta, chosen, rejected) = (0.7, 0.4, [0.1, -2.0, 1.3]);
    let term = softmax_dpo(beta, chosen, &rejected);
    let exponents: Vec<f64> = rejected.iter().map(|margin: &f64| (beta * (margin - chosen)).exp()).collect();
    let sum: f64 = exponents.iter().sum();
    let sigma = sum / (1.0 + sum);
    close(&[term.value, term.chosen], &[(1.0 + sum).ln(), -beta * sigma]);
    close(&term.rejected, &exponents.iter().map(|exponent| beta * sigma * exponent / sum).collect::<Vec<_>>());
    // No overflow at either end.
    let (far, near) = (softmax_dpo(1.0, -1e4, &[0.0]), softmax_dpo(1.0, 1e4, &[0.0]));
    assert_eq!((far.value, far.chosen, near.value, near.chosen), (1e4, -1.0, 0.0, -0.0));
}

#[test]
fn responses_weigh_the_same_whatever_their_length() {
    let weights = response_weights(&[1, 4], 2.0).unwrap();
    assert_eq!(weights, [0.5, 0.125, 0.125, 0.125, 0.125]);
}

/// `count` log-likelihoods.
fn likelihoods(count: usize) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-6.0..-0.1f64, count)
}

/// The same, made up for a sampler that says otherwise by token, and by response with one ratio each and no bound in sight.
fn other_forms(bare: &GroupPolicy) -> [GroupPolicy; 2] {
    let log_likelihoods = (0..bare.weights.len()).map(|row| -2.0 - (row as f64).sin()).collect();
    let sampled = Sampled { log_likelihoods, correction: Correction::TokenTruncated(1.5) };
    let free = Surrogate::Clipped(Clip { low: 0.99, high: 99.0 });
    [
        GroupPolicy { sampled: Some(sampled), ..bare.clone() },
        GroupPolicy { level: RatioLevel::Response, surrogate: free, ..bare.clone() },
    ]
}

#[test]
fn a_cut_ratio_keeps_its_gradient_and_a_sampler_is_made_up_for() {
    let policy = GroupPolicy {
        weights: vec![0.5; 3],
        advantages: vec![2.0, 2.0, -1.0],
        lengths: vec![1, 2],
        old: Some(vec![-2.0, -1.0, -1.0]),
        sampled: None,
        surrogate: Surrogate::Truncated { most: 1.2 },
        level: RatioLevel::Token,
        penalty: None,
    };
    let point = [-1.0, -1.0, -1.5];
    let ratio = (-0.5f64).exp();
    let found = policy.evaluate(&point).unwrap();
    close(&found.derivatives, &[-1.2, -1.0, 0.5 * ratio]);
    close(&[found.value], &[0.5 * (2.4 + 2.0 - 1.5 * ratio)]);
    // What is counted as cut: of CISPO only a ratio above the highest, of a clip both sides.
    let cuts = |surrogate: Surrogate| [(0.5, 1.0), (0.5, -1.0), (-0.5, -1.0)].map(|(log, of)| surrogate.cuts(log, of));
    assert_eq!(cuts(policy.surrogate), [[false, true], [false, false], [false, false]]);
    assert_eq!(cuts(Surrogate::Clipped(CLIP)), [[false, true], [false, false], [true, false]]);
    // Sampler against trainer: e^0.5 of one token, e^(-1 + 0.25) of a response of two.
    let gaps = [0.5, -1.0, 0.25];
    let (cut, raw) = Correction::TokenTruncated(1.1).factors(&gaps, &[1, 2]);
    close(&raw, &[0.5f64.exp(), (-1.0f64).exp(), 0.25f64.exp()]);
    close(&cut, &[1.1, (-1.0f64).exp(), 1.1]);
    close(&Correction::TokenMasked(1.1).factors(&gaps, &[1, 2]).0, &[0.0, (-1.0f64).exp(), 0.0]);
    let whole = (-0.75f64).exp();
    close(&Correction::ResponseTruncated(1.1).factors(&gaps, &[1, 2]).0, &[1.1, whole, whole]);
    close(&Correction::ResponseMasked(1.1).factors(&gaps, &[1, 2]).0, &[0.0, whole, whole]);
}

#[test]
fn a_masked_response_leaves_the_divisor() {
    let weights = |normaliser: Normaliser| normaliser.weights(&[1, 3, 2], &[true, false, true]);
    assert_eq!(weights(Normaliser::Responses), (vec![1.0, 0.0, 0.0, 0.0, 0.5, 0.5], 2.0));
    assert_eq!(weights(Normaliser::Tokens), (vec![1.0, 0.0, 0.0, 0.0, 1.0, 1.0], 3.0));
    assert_eq!(weights(Normaliser::Longest { longest: 8 }), (vec![1.0, 0.0, 0.0, 0.0, 1.0, 1.0], 16.0));
}

proptest! {
    #[test]
    fn clipped_policy_matches_central_differences(
        point in likelihoods(7), shifts in prop::collection::vec(-0.6..0.6f64, 7),
        reference in likelihoods(7), advantages in prop::collection::vec(-2.0..2.0f64, 7), k3 in any::<bool>(),
    ) {
        let old: Vec<f64> = point.iter().zip(&shifts).map(|(value, shift)| value - shift).collect();
        // At the bounds themselves there is no derivative.
        let at_bound = |shift: &f64| (shift.exp() - 0.8).abs() < 1e-3 || (shift.exp() - 1.28).abs() < 1e-3;
        prop_assume!(!shifts.iter().any(at_bound));
        let weights = response_weights(&[3, 4], 2.0).unwrap();
        let bare = GroupPolicy {
            weights,
            advantages,
            lengths: vec![3, 4],
            old: Some(old),
            sampled: None,
            surrogate: Surrogate::Clipped(CLIP),
            level: RatioLevel::Token,
            penalty: None,
        };
        check(&bare, &point);
        other_forms(&bare).iter().for_each(|form| check(form, &point));

        let estimator = if k3 { KlEstimator::K3 } else { KlEstimator::K2 };
        let penalty = KlPenalty { strength: 0.3, estimator, ratio: KlRatio::Held, reference: reference.clone() };
        let live = KlPenalty { ratio: KlRatio::Live, ..penalty.clone() };
        check(&GroupPolicy { penalty: Some(live.clone()), ..bare.clone() }, &point);
        let whole = GroupPolicy { penalty: Some(penalty), ..bare.clone() };
        // The ratio before the divergence is a constant of the step.
        let held: Vec<f64> = shifts.iter().zip(&bare.weights).map(|(shift, weight)| 0.3 * weight * shift.exp()).collect();
        let value = |moved: &[f64]| {
            let divergence = moved.iter().zip(&reference).map(|(policy, base)| estimator.at(*policy, *base).0);
            bare.evaluate(moved).unwrap().value + divergence.zip(&held).map(|(value, factor)| value * factor).sum::<f64>()
        };
        let found = whole.evaluate(&point).unwrap();
        close(&[found.value], &[value(&point)]);
        close(&found.derivatives, &slopes(&point, value));
    }

    #[test]
    fn softmax_dpo_matches_central_differences(point in likelihoods(9), reference in likelihoods(9), beta in 0.05..2.0f64) {
        let preferences = vec![
            Preference { chosen: 0..2, rejected: vec![2..3, 3..5] },
            Preference { chosen: 5..6, rejected: std::iter::once(7..9).collect() },
        ];
        check(&SoftmaxDpo { beta, preferences, reference, normaliser: 2.0 }, &point);
    }
}
