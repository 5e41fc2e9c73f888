//! The model beside rules that were fitted to the prompts of its world, user by user.
//!
//! In: what the model and each rule say of every judged user's next leaf. Out: [`RuleFigure`]s, a part of `report.json`. Caller: `judge`.

use crate::stats::{Interval, Sample, StatsError, interval};
use serde::{Deserialize, Serialize};

/// One rule; intervals are 95 %, over users, of this one training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleFigure {
    /// Its name.
    pub rule: String,
    /// Share of the users whose next leaf (L3) it names.
    pub l3: Interval,
    /// Paired: above 0, the model names more.
    pub model_minus_rule: Interval,
}

/// `model` and each rule's hits: whether the leaf is right, user by user in one order.
pub fn compare_with_fitted(model: &[bool], rules: &[(&str, Vec<bool>)]) -> Result<Vec<RuleFigure>, StatsError> {
    let values = |hits: &[bool]| hits.iter().map(|hit| f64::from(*hit)).collect::<Vec<f64>>();
    let model = Sample::of_users(&values(model))?;
    let figure = |(rule, hits): &(&str, Vec<bool>)| -> Result<RuleFigure, StatsError> {
        let own = Sample::of_users(&values(hits))?;
        Ok(RuleFigure {
            rule: rule.to_string(),
            l3: interval(&own, 0.95)?,
            model_minus_rule: interval(&model.minus(&own)?, 0.95)?,
        })
    };
    rules.iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_rule_is_compared_user_by_user() {
        let model: Vec<bool> = (0..1_000).map(|user| user % 4 != 0).collect();
        let worse: Vec<bool> = (0..1_000).map(|user| user % 4 == 1).collect();
        let figures = compare_with_fitted(&model, &[("same", model.clone()), ("worse", worse)]).unwrap();
        assert_eq!((figures[0].rule.as_str(), figures[0].l3.estimate), ("same", 0.75));
        assert_eq!((figures[0].model_minus_rule.low, figures[0].model_minus_rule.high), (0.0, 0.0));
        assert!((figures[1].model_minus_rule.estimate - 0.5).abs() < 1e-9 && figures[1].model_minus_rule.low > 0.4);
        assert!(compare_with_fitted(&model, &[("short", vec![true])]).is_err());
    }
}
