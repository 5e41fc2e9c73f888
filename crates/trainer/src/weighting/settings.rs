//! Rules as a recipe names them.

use super::{
    CalibratedSum, ConflictFilter, CovarianceTargets, Dvao, Gdpo, GradientNorms, GuardedPopo, Guards, MinNorm, Nash,
    Popo, PopoForm, PopoLight, RandomWeights, Saw, Sum, Weighting, WeightingError,
};
use serde::{Deserialize, Serialize};

/// Which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// [`Sum`]
    Sum,
    /// [`CalibratedSum`]
    Calibrated,
    /// [`Gdpo`]
    Gdpo,
    /// [`Dvao`]
    Dvao,
    /// [`Nash`], the lab's choice (docs/results.md).
    #[default]
    Nash,
    /// [`Popo`] on rewards, as published.
    PopoRewards,
    /// [`Popo`] on advantages.
    PopoAdvantages,
    /// [`GuardedPopo`]
    PopoGuarded,
    /// The same with its sign turned round: a placebo.
    PopoReversed,
    /// [`PopoLight`]
    PopoLight,
    /// [`Saw`]
    Saw,
    /// [`MinNorm`]
    MinNorm,
    /// [`ConflictFilter`]
    Gd2po,
    /// [`CovarianceTargets`]
    Ctwa,
    /// [`RandomWeights`]: a placebo.
    Random,
    /// [`GradientNorms`]: a placebo.
    GradientNorms,
}

/// Recipe block `[stage.weighting]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightingSettings {
    /// Which.
    pub rule: RuleKind,
    /// One a reward, in the rewards' order, sum 1; equal ones where none are given. Of the rules that take weights; POPO begins with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f64>>,
    /// η/μ of POPO: .1 where nothing else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Correlation that CTWA asks for: .3 where nothing else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
}

impl WeightingSettings {
    /// Refuses a setting that the rule does not read.
    fn check_used(&self) -> Result<(), WeightingError> {
        use RuleKind::{
            Calibrated, Ctwa, Dvao, Gdpo, Nash, PopoAdvantages, PopoGuarded, PopoReversed, PopoRewards, Sum,
        };
        let popo = [PopoRewards, PopoAdvantages, PopoGuarded, PopoReversed].contains(&self.rule);
        let weighted = popo || [Sum, Calibrated, Gdpo, Dvao, Nash, Ctwa].contains(&self.rule);
        let unused = [
            ("weights", self.weights.is_some() && !weighted),
            ("rate", self.rate.is_some() && !popo),
            ("target", self.target.is_some() && self.rule != Ctwa),
        ];
        match unused.into_iter().find(|(_, unused)| *unused) {
            Some((setting, _)) => Err(WeightingError::Unused { setting }),
            None => Ok(()),
        }
    }

    /// Whether the rule needs the rewards' deviations under the policy of the start.
    pub fn needs_start(&self) -> bool {
        matches!(self.rule, RuleKind::Calibrated | RuleKind::Nash)
    }

    /// The rule for so many rewards. `deviations`: [`super::Batch::pooled_deviation`] of the start's roll-outs, where [`Self::needs_start`].
    pub fn build(
        &self,
        rewards: usize,
        deviations: &[f64],
        seed: u64,
    ) -> Result<Box<dyn Weighting + Send>, WeightingError> {
        self.check_used()?;
        let equal = vec![1.0 / rewards.max(1) as f64; rewards];
        let weights = self.weights.as_ref().unwrap_or(&equal);
        let (found, expected) = (weights.len(), rewards);
        if found != expected {
            return Err(WeightingError::Rewards { what: "weights", expected, found });
        }
        let rate = self.rate.unwrap_or(Guards::default().rate);
        let guarded = |sign: f64| GuardedPopo::new(weights, Guards { sign, rate, ..Guards::default() });
        Ok(match self.rule {
            RuleKind::Sum => Box::new(Sum::new(weights)?),
            RuleKind::Calibrated => Box::new(CalibratedSum::new(weights, deviations)?),
            RuleKind::Gdpo => Box::new(Gdpo::new(weights)?),
            RuleKind::Dvao => Box::new(Dvao::new(weights)?),
            RuleKind::Nash => Box::new(Nash::new(weights, deviations)?),
            RuleKind::PopoRewards => Box::new(Popo::new(PopoForm::Rewards, weights, rate)?),
            RuleKind::PopoAdvantages => Box::new(Popo::new(PopoForm::Advantages, weights, rate)?),
            RuleKind::PopoGuarded => Box::new(guarded(1.0)?),
            RuleKind::PopoReversed => Box::new(guarded(-1.0)?),
            RuleKind::PopoLight => Box::new(PopoLight::default()),
            RuleKind::Saw => Box::new(Saw::default()),
            RuleKind::MinNorm => Box::new(MinNorm::default()),
            RuleKind::Gd2po => Box::new(ConflictFilter),
            RuleKind::Ctwa => Box::new(CovarianceTargets::new(weights, self.target.unwrap_or(0.3))?),
            RuleKind::Random => Box::new(RandomWeights::new(seed)),
            RuleKind::GradientNorms => Box::new(GradientNorms::default()),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::{Batch, Products};
    use super::*;

    /// Each rule by its name, and what it makes of a batch.
    #[test]
    fn every_rule_can_be_named_in_a_recipe() {
        let rewards = vec![vec![0.1, 0.4, 0.2, 0.9, 0.3, 0.3, 0.8, 0.0], vec![3.0, 1.0, 2.0, 0.0, 1.0, 5.0, 2.0, 2.0]];
        let batch = Batch::new(&["one", "two"], &rewards, &[0.2, 1.0], 4).unwrap();
        let products = Products::of_halves(&[vec![1.0, 0.0], vec![0.5, 2.0]], &[vec![0.8, 0.1], vec![0.2, 1.5]]);
        for name in [
            "sum",
            "calibrated",
            "gdpo",
            "dvao",
            "nash",
            "popo_rewards",
            "popo_advantages",
            "popo_guarded",
            "popo_reversed",
            "popo_light",
            "saw",
            "min_norm",
            "gd2po",
            "ctwa",
            "random",
            "gradient_norms",
        ] {
            let settings: WeightingSettings = toml::from_str(&format!("rule = {name:?}")).unwrap();
            let mut rule = settings.build(2, &[0.3, 1.5], 7).unwrap();
            let combined = rule.combine(&batch, Some(&products)).unwrap();
            assert_eq!(combined.advantages.len(), 8, "{name}");
            assert!((combined.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{name}: {:?}", combined.weights);
            assert_eq!(settings.needs_start(), ["calibrated", "nash"].contains(&name), "{name}");
        }
        assert!(toml::from_str::<WeightingSettings>("rule = \"best\"").is_err());
        let unused = WeightingSettings { rule: RuleKind::MinNorm, rate: Some(0.1), ..WeightingSettings::default() };
        assert!(unused.build(2, &[1.0, 1.0], 1).err().unwrap().to_string().contains("rate is not read"));
        let three = WeightingSettings { weights: Some(vec![0.2, 0.3, 0.5]), ..WeightingSettings::default() };
        assert!(three.build(2, &[1.0, 1.0], 1).err().unwrap().to_string().contains("weights: 2 expected, 3 found"));
    }
}
