//! Against NumPy, SciPy and statsmodels (`reference`), by properties, and by simulation (`coverage`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod coverage;
mod declaration;
mod reference;

use super::*;
use proptest::prelude::*;

proptest! {
    /// Pairing, shifting and scaling do to an interval what they do to the figures.
    #[test]
    fn an_interval_moves_with_its_figures(
        values in prop::collection::vec(-1.0f64..1.0, 12), shift in -3.0f64..3.0, scale in 0.1f64..10.0,
    ) {
        let sample = Sample::new(3, 1, 4, &values).unwrap();
        let moved: Vec<f64> = values.iter().map(|value| value * scale + shift).collect();
        let moved = Sample::new(3, 1, 4, &moved).unwrap();
        let (one, other) = (interval(&sample, 0.9).unwrap(), interval(&moved, 0.9).unwrap());
        prop_assert_eq!(one.method, Method::SeedsAndUsers);
        prop_assert!((one.low * scale + shift - other.low).abs() < 1e-9 && (one.high * scale + shift - other.high).abs() < 1e-9);
        let flat = Sample::new(3, 1, 4, &[shift; 12]).unwrap();
        let paired = interval(&moved.minus(&flat).unwrap(), 0.9).unwrap();
        prop_assert!((paired.estimate - one.estimate * scale).abs() < 1e-9);
        prop_assert!(interval(&sample, 0.99).unwrap().high >= one.high);
    }

    /// A p-value is the level at which the interval touches the value tested.
    #[test]
    fn p_values_and_intervals_agree(values in prop::collection::vec(-1.0f64..1.3, 12), level in 0.5f64..0.99) {
        let found = interval(&Sample::new(3, 1, 4, &values).unwrap(), level).unwrap();
        // Within a hair of the level both answers are right.
        prop_assume!((found.p - (1.0 - level)).abs() > 1e-6);
        prop_assert_eq!(found.covers(0.0), found.p > 1.0 - level, "{:?}", found);
        let one_sided = non_inferiority(&Sample::new(3, 1, 4, &values).unwrap(), 0.2, (1.0 - level) / 2.0).unwrap();
        prop_assert!((one_sided.low - found.low).abs() < 1e-9);
        prop_assert_eq!(one_sided.shown, one_sided.low > -0.2);
    }

    #[test]
    fn holm_is_never_below_p_nor_above_bonferroni_and_keeps_the_order(p in prop::collection::vec(0.0f64..1.0, 1..9)) {
        let adjusted = holm(&p);
        for (one, own) in p.iter().zip(&adjusted) {
            prop_assert!(own >= one && *own <= (one * p.len() as f64).min(1.0));
            for (other, theirs) in p.iter().zip(&adjusted) {
                prop_assert!(one > other || own <= theirs);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Bounds fall where alpha is spent late, all alpha is spent at the end, and a stricter alpha has higher bounds.
    #[test]
    fn looks_spend_all_of_alpha_and_no_more(mut cuts in prop::collection::btree_set(2u32..98, 0..4), alpha in 0.005f64..0.2) {
        cuts.insert(100);
        let fractions: Vec<f64> = cuts.iter().map(|cut| f64::from(*cut) / 100.0).collect();
        for spending in [Spending::Pocock, Spending::OBrienFleming] {
            let found = looks(spending, alpha, &fractions).unwrap();
            let strict = looks(spending, alpha / 2.0, &fractions).unwrap();
            prop_assert!((found.last().unwrap().spent - alpha).abs() < 1e-9);
            prop_assert!(found.iter().all(|look| look.spent_here >= 0.0 && look.nominal <= alpha + 1e-9));
            prop_assert!(found.iter().all(|look| look.nominal >= look.spent_here - 1e-7), "{:?}", found);
            prop_assert!(found.iter().zip(&strict).all(|(wide, narrow)| wide.bound <= narrow.bound));
        }
    }
}

#[test]
fn looks_a_hundredth_apart_are_taken_whatever_their_difference_is_in_binary() {
    // 0.11 - 0.1 is 0.00999….
    assert!(looks(Spending::Pocock, 0.05, &[0.1, 0.11, 1.0]).is_ok());
    assert!(looks(Spending::Pocock, 0.05, &[0.1, 0.105, 1.0]).is_err());
}

#[test]
fn what_has_no_answer_is_refused_by_name() {
    let refused = |result: Result<Interval, StatsError>, part: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    assert!(Sample::new(2, 1, 3, &[0.0; 5]).unwrap_err().to_string().contains("2 seeds × 1 runs × 3 users"));
    assert!(Sample::of_users(&[]).is_err());
    let broken = Sample::new(2, 1, 2, &[0.0, 1.0, 2.0, f64::NAN]).unwrap_err();
    assert_eq!(broken, StatsError::NotFinite { seed: 1, user: 1 });
    refused(interval(&Sample::of_seeds(&[1.0]).unwrap(), 0.95), "more of either");
    refused(interval(&Sample::of_seeds(&[1.0, 2.0]).unwrap(), 1.0), "level 1");
    let (three, two) = (Sample::of_users(&[1.0, 2.0, 4.0]).unwrap(), Sample::of_users(&[1.0, 2.0]).unwrap());
    assert!(three.minus(&two).unwrap_err().to_string().contains("same seeds and users"));
    let around_zero = Sample::of_users(&[1.0, -1.0, 0.5, -0.4]).unwrap();
    let gains = Sample::of_users(&[1.0, 2.0, 1.5, 1.2]).unwrap();
    refused(ratio_of_means(&gains, &around_zero, 0.95, Resampling::default()), "may be 0");
    assert!(ratio_of_means(&gains, &gains, 0.95, Resampling::default()).unwrap().estimate == 1.0);
    assert!(non_inferiority(&gains, 0.0, 0.025).unwrap_err().to_string().contains("margin"));
    for wrong in [&[0.5, 0.4, 1.0][..], &[0.5], &[0.999, 1.0], &[]] {
        assert!(looks(Spending::Pocock, 0.05, wrong).unwrap_err().to_string().contains("looks must rise"), "{wrong:?}");
    }
}

#[test]
fn constants_have_no_width_and_runs_of_a_seed_are_no_seeds() {
    let flat = interval(&Sample::new(2, 1, 3, &[0.25; 6]).unwrap(), 0.95).unwrap();
    assert_eq!((flat.low, flat.high, flat.p), (0.25, 0.25, 0.0));
    let none = interval(&Sample::of_users(&[0.0; 4]).unwrap(), 0.95).unwrap();
    assert_eq!((none.low, none.high, none.p), (0.0, 0.0, 1.0));
    // [seed][run][user]: 2 × 2 × 2.
    let nested = Sample::new(2, 2, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
    assert_eq!((nested.seeds(), nested.users(), nested.seed_means()), (2, 2, vec![2.5, 6.5]));
    assert_eq!(nested, Sample::new(2, 1, 2, &[2.0, 3.0, 6.0, 7.0]).unwrap());
}

#[test]
fn a_draw_is_the_same_with_one_thread_and_with_many() {
    let sample = Sample::new(3, 1, 50, &(0..150).map(|place| f64::from(place % 7)).collect::<Vec<_>>()).unwrap();
    let draw = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| resampled_means(&sample, Resampling { draws: 64, seed: 5 }))
    };
    assert_eq!(draw(1), draw(3));
    assert_ne!(draw(1), resampled_means(&sample, Resampling { draws: 64, seed: 6 }));
}
