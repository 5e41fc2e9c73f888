//! What is compared: every rule of `weighting` as an arm, with the settings tried for it.

use super::LabError;
use crate::weighting::{
    CalibratedSum, ConflictFilter, CovarianceTargets, Dvao, Gdpo, GradientNorms, GuardedPopo, Guards, MinNorm, Nash,
    Popo, PopoForm, PopoLight, RandomWeights, Saw, Sum, Weighting,
};

/// Weights of similarity that are tried; 0 and 1 are the arms of one objective.
pub(super) const WEIGHTS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// η/μ of POPO as published, which the paper does not give.
const RATES: [f64; 3] = [0.1, 1.0, 10.0];
/// η/μ of guarded POPO, whose indicator has no unit.
const GUARDED_RATES: [f64; 3] = [0.05, 0.1, 0.3];
/// Correlation that CTWA asks for.
const TARGET: f64 = 0.3;
const HALF: [f64; 2] = [0.5, 0.5];

/// What an arm is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// May become the default; the number says how simple it is, simplest first.
    Candidate(usize),
    /// Compared with, never a default.
    Control,
    /// One objective alone: what gains are divided by.
    Alone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Alone(usize),
    Sum,
    Half,
    Calibrated,
    Gdpo,
    Dvao,
    Nash,
    PopoRewards,
    PopoAdvantages,
    PopoGuarded,
    PopoReversed,
    PopoLight,
    Saw,
    MinNorm,
    Gd2po,
    Ctwa,
    Random,
    Frozen,
    GradientNorms,
}

/// A rule with the settings tried for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arm {
    /// In tables and in the declaration.
    pub name: &'static str,
    pub(super) rule: Rule,
    /// What it is there for.
    pub role: Role,
    /// Weights of similarity or rates; one entry that means nothing where the arm has no setting.
    pub(super) settings: &'static [f64],
}

const fn arm(name: &'static str, rule: Rule, role: Role, settings: &'static [f64]) -> Arm {
    Arm { name, rule, role, settings }
}

const NONE: [f64; 1] = [f64::NAN];

/// All arms. Those of one objective stand first, in the objectives' order.
pub const ARMS: [Arm; 20] = [
    arm("similarity-alone", Rule::Alone(0), Role::Alone, &NONE),
    arm("ctcvr-alone", Rule::Alone(1), Role::Alone, &NONE),
    arm("calibrated", Rule::Calibrated, Role::Candidate(0), &WEIGHTS),
    arm("gdpo", Rule::Gdpo, Role::Candidate(1), &WEIGHTS),
    arm("fixed", Rule::Sum, Role::Candidate(2), &WEIGHTS),
    arm("nash", Rule::Nash, Role::Candidate(3), &WEIGHTS),
    arm("min-norm", Rule::MinNorm, Role::Candidate(4), &NONE),
    arm("dvao", Rule::Dvao, Role::Candidate(5), &WEIGHTS),
    arm("popo-light", Rule::PopoLight, Role::Candidate(6), &NONE),
    arm("saw", Rule::Saw, Role::Candidate(7), &NONE),
    arm("gd2po", Rule::Gd2po, Role::Candidate(8), &NONE),
    arm("ctwa", Rule::Ctwa, Role::Candidate(9), &NONE),
    arm("popo-rewards", Rule::PopoRewards, Role::Candidate(10), &RATES),
    arm("popo-advantages", Rule::PopoAdvantages, Role::Candidate(11), &RATES),
    arm("popo-guarded", Rule::PopoGuarded, Role::Candidate(12), &GUARDED_RATES),
    arm("fixed-half", Rule::Half, Role::Control, &NONE),
    arm("frozen", Rule::Frozen, Role::Control, &GUARDED_RATES),
    arm("random", Rule::Random, Role::Control, &NONE),
    arm("gradient-norms", Rule::GradientNorms, Role::Control, &NONE),
    arm("popo-reversed", Rule::PopoReversed, Role::Control, &NONE),
];

impl Arm {
    /// By its name.
    pub fn named(name: &str) -> Option<&'static Arm> {
        ARMS.iter().find(|arm| arm.name == name)
    }

    /// The rule of a run. `deviations`: of both rewards at the start; `frozen`: the weights that [`Rule::Frozen`] keeps.
    pub(super) fn weighting(
        &self,
        setting: f64,
        deviations: &[f64],
        frozen: &[f64],
        seed: u64,
    ) -> Result<Box<dyn Weighting>, LabError> {
        let weights = [setting, 1.0 - setting];
        let guarded = |sign: f64, rate: f64| GuardedPopo::new(&HALF, Guards { sign, rate, ..Guards::default() });
        Ok(match self.rule {
            Rule::Alone(0) => Box::new(Gdpo::new(&[1.0, 0.0])?),
            Rule::Alone(_) => Box::new(Gdpo::new(&[0.0, 1.0])?),
            Rule::Sum => Box::new(Sum::new(&weights)?),
            Rule::Half => Box::new(Sum::new(&HALF)?),
            Rule::Calibrated => Box::new(CalibratedSum::new(&weights, deviations)?),
            Rule::Gdpo => Box::new(Gdpo::new(&weights)?),
            Rule::Dvao => Box::new(Dvao::new(&weights)?),
            Rule::Nash => Box::new(Nash::new(&weights, deviations)?),
            Rule::PopoRewards => Box::new(Popo::new(PopoForm::Rewards, &HALF, setting)?),
            Rule::PopoAdvantages => Box::new(Popo::new(PopoForm::Advantages, &HALF, setting)?),
            Rule::PopoGuarded => Box::new(guarded(1.0, setting)?),
            Rule::PopoReversed => Box::new(guarded(-1.0, Guards::default().rate)?),
            Rule::PopoLight => Box::new(PopoLight::default()),
            Rule::Saw => Box::new(Saw::default()),
            Rule::MinNorm => Box::new(MinNorm::default()),
            Rule::Gd2po => Box::new(ConflictFilter),
            Rule::Ctwa => Box::new(CovarianceTargets::new(&HALF, TARGET)?),
            Rule::Random => Box::new(RandomWeights::new(seed)),
            Rule::Frozen => Box::new(Gdpo::new(frozen)?),
            Rule::GradientNorms => Box::new(GradientNorms::default()),
        })
    }
}
