//! What holds for all rewards.

use super::*;
use proptest::prelude::*;

const GROUP: usize = 4;
const START: [f64; 2] = [0.4, 0.1];
const GAINS: [f64; 2] = [0.02, 0.3];
const DEVIATIONS: [f64; 2] = [0.2, 0.05];

fn products() -> Products {
    Products::of_halves(&[vec![1.0, 0.2], vec![-0.3, 0.5]], &[vec![0.8, -0.1], vec![0.1, 0.7]])
}

/// Two rewards of five prompts, in hundredths, so that some groups do not differ.
fn rewards() -> impl Strategy<Value = Vec<Vec<f64>>> {
    let values = || prop::collection::vec((0u8..=8).prop_map(|value| f64::from(value) / 100.0 + 0.3), 5 * GROUP);
    (values(), values()).prop_map(|(first, second)| vec![first, second])
}

/// Advantages of two steps of a rule.
fn advantages(rule: &mut dyn Weighting, rewards: &[Vec<f64>], start: &[f64]) -> Vec<f64> {
    let gains = gains(rewards, start);
    let batch = Batch::new(&NAMES, rewards, &gains, GROUP).unwrap();
    let first = rule.combine(&batch, Some(&products())).unwrap();
    let second = rule.combine(&batch, Some(&products())).unwrap();
    first.advantages.into_iter().chain(second.advantages).collect()
}

fn named(name: &str, deviations: &[f64]) -> Box<dyn Weighting> {
    every_rule(deviations).into_iter().find(|(own, _)| *own == name).unwrap().1
}

proptest! {
    #[test]
    fn advantages_have_deviation_one_or_none_and_weights_lie_in_the_simplex(rewards in rewards()) {
        let batch = Batch::new(&NAMES, &rewards, &GAINS, GROUP).unwrap();
        for (name, mut rule) in every_rule(&DEVIATIONS) {
            for _ in 0..12 {
                let Combined { advantages, weights } = rule.combine(&batch, Some(&products())).unwrap();
                prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{name}: {weights:?}");
                prop_assert!(weights.iter().all(|weight| *weight >= 0.0), "{name}: {weights:?}");
                if ["popo-guarded", "popo-reversed", "nash"].contains(&name) {
                    prop_assert!(weights.iter().all(|weight| (0.1 - 1e-9..=0.9 + 1e-9).contains(weight)), "{name}: {weights:?}");
                }
                // The filter's own are those it kept.
                let of: Vec<f64> = match name {
                    "gd2po" => continue,
                    _ => advantages,
                };
                let deviation = deviation_of(&of);
                prop_assert!(deviation == 0.0 || (deviation - 1.0).abs() < 1e-9, "{name}: {deviation}");
            }
        }
    }

    #[test]
    fn gdpo_calibrated_sum_and_nash_do_not_see_a_rewards_scale(
        rewards in rewards(),
        scale in prop::sample::select(vec![0.2, 5.0, 1e-4, 1e3]),
    ) {
        let louder: Vec<f64> = rewards[1].iter().map(|reward| reward * scale).collect();
        let scaled = vec![rewards[0].clone(), louder];
        for name in ["gdpo", "calibrated", "nash", "popo-guarded", "min-norm", "gd2po"] {
            let own = advantages(&mut *named(name, &DEVIATIONS), &rewards, &START);
            let after = advantages(&mut *named(name, &[DEVIATIONS[0], DEVIATIONS[1] * scale]), &scaled, &[START[0], START[1] * scale]);
            for (one, other) in own.iter().zip(&after) {
                prop_assert!((one - other).abs() < 1e-8, "{name}: {one} {other}");
            }
        }
    }

    #[test]
    fn a_reward_that_does_not_differ_in_a_group_has_no_part_in_it(mut rewards in rewards(), value in 0.0f64..1.0) {
        rewards[1][..GROUP].fill(value);
        rewards[0][..GROUP].copy_from_slice(&[0.1, 0.2, 0.3, 0.4]);
        let batch = Batch::new(&NAMES, &rewards, &GAINS, GROUP).unwrap();
        prop_assert!(batch.normalised(1)[..GROUP].iter().chain(&batch.centred(1)[..GROUP]).all(|one| *one == 0.0));
        prop_assert!(batch.share_without_deviation(1) >= 0.2);
        // The other one's part is whole: nothing of the group is masked.
        let alone = batch.normalised(0)[..GROUP].to_vec();
        for name in ["gdpo", "calibrated", "nash", "sum", "dvao"] {
            let combined = named(name, &DEVIATIONS).combine(&batch, None).unwrap();
            let factor = combined.advantages[0] / alone[0];
            prop_assert!(factor > 0.0);
            for (found, own) in combined.advantages[..GROUP].iter().zip(&alone) {
                prop_assert!((found - factor * own).abs() < 1e-9, "{name}");
            }
        }
    }

    #[test]
    fn limited_shares_keep_to_their_floor_and_their_order(values in prop::collection::vec(0.0f64..10.0, 2..6), part in 0.0f64..1.0) {
        let floor = part / values.len() as f64;
        let shares = limited(&values, floor);
        prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
        prop_assert!(shares.iter().all(|share| *share >= floor - 1e-12), "{shares:?}");
        for one in 0..values.len() {
            for other in 0..values.len() {
                prop_assert!(values[one] <= values[other] || shares[one] >= shares[other] - 1e-12, "{values:?} {shares:?}");
            }
        }
    }
}

#[test]
fn rounding_of_equal_rewards_is_no_advantage() {
    let rounded: Vec<f64> = [0.7f32, 0.7, 0.7 + 6e-8, 0.7].iter().map(|value| f64::from(*value)).collect();
    let rewards = vec![rounded, vec![0.1, 0.2, 0.3, 0.4]];
    let batch = Batch::new(&NAMES, &rewards, &GAINS, GROUP).unwrap();
    assert_eq!(batch.normalised(0), [0.0; 4]);
    assert_eq!((batch.share_without_deviation(0), batch.share_without_deviation(1)), (1.0, 0.0));
}

#[test]
fn what_cannot_be_combined_is_named() {
    let good = vec![vec![0.1, 0.2, 0.3, 0.4], vec![0.4, 0.3, 0.2, 0.1]];
    let refused = |rewards: &[Vec<f64>], group| Batch::new(&NAMES, rewards, &GAINS, group).unwrap_err().to_string();
    let mut poisoned = good.clone();
    poisoned[1][2] = f64::NAN;
    assert!(refused(&poisoned, 4).starts_with("reward ctcvr of roll-out 2 is NaN"));
    assert!(refused(&good, 3).contains("4 values are no groups of 3"));
    assert!(refused(&good, 1).contains("a group needs two roll-outs"));
    assert!(refused(&good[..1], 4).contains("names of rewards"));
    let batch = Batch::new(&NAMES, &good, &GAINS, 4).unwrap();
    assert_eq!(MinNorm::default().combine(&batch, None), Err(WeightingError::NoProducts));
    let mut broken = products();
    broken.across[0][1] = f64::INFINITY;
    let mut popo = GuardedPopo::new(&HALF, Guards::default()).unwrap();
    assert_eq!(popo.combine(&batch, Some(&broken)), Err(WeightingError::Gradient { step: 1 }));
    assert!(Sum::new(&[0.5, 0.6]).is_err() && Nash::new(&HALF, &[0.1, 0.0]).is_err());
    assert!(GuardedPopo::new(&HALF, Guards { floor: 0.6, ..Guards::default() }).is_err());
    assert!(Gdpo::new(&[1.0]).unwrap().combine(&batch, None).is_err());
}

#[test]
fn telemetry_says_which_reward_the_advantage_follows() {
    let rewards = vec![vec![0.1, 0.2, 0.3, 0.4], vec![0.4, 0.3, 0.2, 0.1]];
    let batch = Batch::new(&NAMES, &rewards, &GAINS, 4).unwrap();
    let found = telemetry(&batch, &batch.normalised(0));
    assert!((found.correlations[0] - 1.0).abs() < 1e-12 && (found.correlations[1] + 1.0).abs() < 1e-12);
    assert!(found.covariances[0] > 0.0 && found.covariances[1] < 0.0);
    assert_eq!((found.conflicts, found.without_deviation), (1.0, vec![0.0, 0.0]));
    // Pure noise: nothing is left across halves, all of the norm is floor.
    let noise = Products::of_halves(&[vec![1.0, 0.0], vec![0.0, 1.0]], &[vec![0.0, 0.0], vec![0.0, 0.0]]);
    assert_eq!(noise.residual(&HALF), (0.0, 0.5));
}
