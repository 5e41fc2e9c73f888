//! What a step says about its rewards for nothing.

use super::Batch;

/// Figures of a batch and its advantages; one a reward where it is a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Mean over the groups of Cov(r_k, advantage), ddof 0: an objective improves if it is above 0 (CTWA, arXiv 2602.06869).
    pub covariances: Vec<f64>,
    /// Mean over the groups in which both differ of their correlation.
    pub correlations: Vec<f64>,
    /// Share of the roll-outs on which two rewards' normalised advantages differ in sign.
    pub conflicts: f64,
    /// Share of the groups in which the reward does not differ.
    pub without_deviation: Vec<f64>,
    /// [`Batch::pooled_deviation`] now; divided by the start's it says how far a reward is spent.
    pub deviations: Vec<f64>,
}

/// Of a batch and the advantages made of it.
pub fn telemetry(batch: &Batch, advantages: &[f64]) -> Telemetry {
    let rewards = 0..batch.rewards();
    let (mut covariances, mut correlations) = (Vec::new(), Vec::new());
    for reward in rewards.clone() {
        let (covariance, correlation) = with_advantage(&batch.centred(reward), advantages, batch.group());
        covariances.push(covariance);
        correlations.push(correlation);
    }
    let normalised: Vec<Vec<f64>> = rewards.clone().map(|reward| batch.normalised(reward)).collect();
    let differs =
        |at: &usize| normalised.iter().any(|one| one[*at] > 0.0) && normalised.iter().any(|one| one[*at] < 0.0);
    Telemetry {
        covariances,
        correlations,
        conflicts: (0..batch.rollouts()).filter(differs).count() as f64 / batch.rollouts() as f64,
        without_deviation: rewards.clone().map(|reward| batch.share_without_deviation(reward)).collect(),
        deviations: rewards.map(|reward| batch.pooled_deviation(reward)).collect(),
    }
}

/// Means over the groups of covariance and, where it exists, correlation.
fn with_advantage(centred: &[f64], advantages: &[f64], group: usize) -> (f64, f64) {
    let (mut covariance, mut correlation, mut groups, mut defined) = (0.0, 0.0, 0usize, 0usize);
    for (rewards, values) in centred.chunks(group).zip(advantages.chunks(group)) {
        let mean = values.iter().sum::<f64>() / group as f64;
        let joint = rewards.iter().zip(values).map(|(reward, value)| reward * (value - mean)).sum::<f64>();
        let own = rewards.iter().map(|reward| reward * reward).sum::<f64>();
        let other = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        groups += 1;
        covariance += joint / group as f64;
        let norms = (own * other).sqrt();
        if norms > 0.0 {
            defined += 1;
            correlation += joint / norms;
        }
    }
    (covariance / groups as f64, correlation / defined.max(1) as f64)
}
