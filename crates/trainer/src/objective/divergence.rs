//! Estimators of a policy's divergence from a reference, per sampled token (Schulman, "Approximating KL Divergence", 2020).
//!
//! As a loss, k2 has the gradient of KL(policy ‖ reference) and k3 that of KL(reference ‖ policy) (arXiv 2506.09477); k1 as a
//! loss has expected gradient 0 and is therefore not offered.

/// log reference - log policy beyond which k3 goes on as a straight line: at 11 the exponential alone is 60,000.
const LONGEST_LOG_RATIO: f64 = 5.0;

/// Which estimator of the divergence is added to an objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KlEstimator {
    /// ½·(log policy - log reference)².
    K2,
    /// reference/policy - 1 - log(reference/policy): never negative, the one of GRPO (arXiv 2402.03300).
    K3,
}

impl KlEstimator {
    /// (value, derivative with respect to the policy's log-likelihood).
    pub fn at(self, policy: f64, reference: f64) -> (f64, f64) {
        match self {
            Self::K2 => k2(policy, reference),
            Self::K3 => k3(policy, reference),
        }
    }
}

/// ½·(policy - reference)² of log-likelihoods, and its derivative with respect to the first.
pub fn k2(policy: f64, reference: f64) -> (f64, f64) {
    let difference = policy - reference;
    (0.5 * difference * difference, difference)
}

/// e^d - d - 1 with d = reference - policy (log-likelihoods), and its derivative with respect to `policy`. Beyond d = 5 the
/// tangent, so that one token that fell far keeps its pull and does not drown the rest.
pub fn k3(policy: f64, reference: f64) -> (f64, f64) {
    let difference = reference - policy;
    let bounded = difference.min(LONGEST_LOG_RATIO);
    let slope = bounded.exp_m1();
    (slope - bounded + slope * (difference - bounded), -slope)
}
