//! The lab in short: the declaration and the arms agree, what is chosen is reproduced, and gains are what they are called.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::cell::CELLS;
use super::figures::{Kind, measured};
use super::gains::{Gains, Metric};
use super::*;
use crate::stats::Experiment;

const SIZE: Size = Size { trained: 80, judged: 80, steps: 60 };

fn experiment() -> Experiment {
    Experiment::read(&testkit::in_repository("docs/experiments/pareto.toml")).unwrap()
}

#[test]
fn the_declaration_names_all_arms_and_nothing_else() {
    let declared = experiment();
    let arms: Vec<&str> = ARMS.iter().map(|arm| arm.name).collect();
    assert_eq!(declared.arms, arms);
    assert_eq!(declared.seeds as u64, Plan::DECLARED.fresh);
    for contrast in &declared.contrasts {
        assert!(Metric::ALL.iter().any(|metric| metric.name() == contrast.metric), "{}", contrast.metric);
    }
    let mut order: Vec<usize> = ARMS
        .iter()
        .filter_map(|arm| match arm.role {
            Role::Candidate(order) => Some(order),
            _ => None,
        })
        .collect();
    order.sort_unstable();
    assert_eq!(order, (0..order.len()).collect::<Vec<usize>>());
}

#[test]
fn a_short_lab_ends_with_tables_row_and_pictures() {
    // The cells of little conflict: the others need longer runs before each objective's own arm gains for certain.
    let size = Size { trained: 150, judged: 150, steps: 100 };
    let plan = Plan { cells: &CELLS[7..9], size, choosing: 5, fresh: 5 };
    let outcome = super::run(&plan, &experiment(), "0000000", &|_| ()).unwrap();
    for arm in &ARMS {
        assert!(outcome.markdown.matches(&format!("| {} |", arm.name)).count() >= 2, "{}", arm.name);
    }
    for contrast in &experiment().contrasts {
        assert!(outcome.markdown.contains(&format!("| {} | {} |", contrast.name, contrast.metric)));
    }
    assert!(outcome.markdown.contains("**Default: ") && !outcome.markdown.contains("NaN"));
    assert!(outcome.pictures.iter().all(|(_, svg)| svg.starts_with("<svg xmlns=") && !svg.contains("NaN")));
    let arms = outcome.row["arms"].as_array().unwrap();
    assert_eq!((arms.len(), arms[0]["gains"]["conflict 80"].as_array().unwrap().len()), (ARMS.len(), 5));
}

#[test]
fn the_same_seed_makes_the_same_runs_whatever_else_is_run() {
    let kind = |arm: usize| Kind { cell: 0, arm, setting: 0, factor: 1 };
    let all: Vec<Kind> = (0..ARMS.len()).map(kind).collect();
    let of = |kinds: &[Kind]| measured(&CELLS[12..], kinds, SIZE, &[3, 4]).unwrap();
    let whole = of(&all);
    for arm in [0, 7, 16, 17] {
        let alone = of(&[kind(arm)]);
        let (one, other) = (&alone[&kind(arm)], &whole[&kind(arm)]);
        for (left, right) in one.iter().zip(other) {
            assert_eq!((left.gains, &left.trace), (right.gains, &right.trace), "{}", ARMS[arm].name);
        }
        assert_ne!(one[0].gains, one[1].gains);
    }
}

#[test]
fn scale_free_arms_and_their_own_objective_gain_over_greedy_sft() {
    let at = |name: &str| ARMS.iter().position(|arm| arm.name == name).unwrap();
    let middle = |arm: usize| ARMS[arm].settings.len() / 2;
    let kinds: Vec<Kind> = ["similarity-alone", "ctcvr-alone", "calibrated", "nash"]
        .map(at)
        .map(|arm| Kind { cell: 0, arm, setting: middle(arm), factor: 1 })
        .to_vec();
    let figures = measured(&CELLS[..1], &kinds, Size { steps: 200, ..SIZE }, &[7, 8]).unwrap();
    let mean = |kind: &Kind, objective: usize| {
        let runs = &figures[kind];
        runs.iter().map(|run| run.gains[objective]).sum::<f64>() / runs.len() as f64
    };
    assert!(mean(&kinds[0], 0) > 0.0, "{}", mean(&kinds[0], 0));
    assert!(mean(&kinds[1], 1) > 0.0, "{}", mean(&kinds[1], 1));
    for kind in &kinds[2..] {
        let weight = figures[kind][0].weight;
        assert!((0.1..=0.9).contains(&weight) && mean(kind, 0) > 0.0 && mean(kind, 1) > 0.0, "{kind:?} {weight}");
    }
}

#[test]
fn tables_go_between_the_marks_of_a_page_or_nowhere() {
    let page = "a\n<!-- pareto:begin -->\nold\n<!-- pareto:end -->\nb\n";
    assert_eq!(crate::stats::put_into(page, "pareto", "new\n").unwrap(), page.replace("old", "new"));
    assert_eq!(crate::stats::put_into("a\n", "pareto", "new\n"), None);
}

#[test]
fn metrics_are_shares_of_what_each_objective_alone_gains() {
    // Two cells, three arms (both alone, one of both), two seeds.
    let cell = |both: [f64; 2]| vec![vec![[2.0, 0.0]; 2], vec![[0.0, 4.0]; 2], vec![both; 2]];
    let gains = Gains::new(vec![cell([1.0, 3.0]), cell([-1.0, 4.0])]);
    let whole = gains.whole();
    let of = |metric| gains.metric(metric, &[0, 1], 2, &whole);
    assert_eq!(gains.shares(0, 2, &whole), [0.5, 0.75]);
    assert_eq!((of(Metric::Balanced), of(Metric::Smallest)), (0.0, -0.5));
    assert_eq!((of(Metric::Sum), of(Metric::Volume)), (0.4375, 0.1875));
    // Gains that may be 0 divide nothing.
    let unsure = vec![vec![[1.0, 0.0], [-1.0, 0.0]], vec![[0.0, 4.0], [0.0, 4.1]]];
    assert_eq!(Gains::new(vec![unsure]).accepted().unwrap(), Vec::<usize>::new());
}
