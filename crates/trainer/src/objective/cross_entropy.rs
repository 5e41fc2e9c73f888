//! Weighted cross-entropy: supervised fine-tuning, and the plain policy gradient with advantages as weights.

use super::{Evaluation, Objective, ObjectiveError, check_normaliser, same_rows};

/// -Σ weight·log-likelihood / normaliser.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// -weight / normaliser of each row.
    slopes: Vec<f64>,
    smoothing: f64,
}

impl CrossEntropy {
    /// Sum over the rows of non-zero weight, divided by `normaliser`. Weights may have any sign: a policy gradient has its
    /// advantages here.
    pub fn sum(weights: &[f32], normaliser: f64) -> Result<Self, ObjectiveError> {
        let normaliser = check_normaliser(normaliser)?;
        let learned = weights.iter().filter(|weight| **weight != 0.0);
        Ok(Self { slopes: learned.map(|weight| -f64::from(*weight) / normaliser).collect(), smoothing: 0.0 })
    }

    /// Weighted mean: the normaliser is Σ weight. For weights that are not negative.
    pub fn mean(weights: &[f32]) -> Result<Self, ObjectiveError> {
        if let Some(weight) = weights.iter().find(|weight| weight.is_nan() || **weight < 0.0) {
            let message = format!("must not be negative in a mean, got {weight}: give a sum its own normaliser");
            return Err(ObjectiveError::Setting { field: "weights", message });
        }
        Self::sum(weights, weights.iter().map(|weight| f64::from(*weight)).sum())
    }

    /// The same with label smoothing: the wanted distribution is (1 - ε)·target + ε·uniform over the vocabulary.
    pub fn smoothed(self, smoothing: f64) -> Result<Self, ObjectiveError> {
        if !(0.0..1.0).contains(&smoothing) {
            let message = format!("must be at least 0 and below 1, got {smoothing}");
            return Err(ObjectiveError::Setting { field: "label_smoothing", message });
        }
        Ok(Self { smoothing, ..self })
    }
}

impl Objective for CrossEntropy {
    fn evaluate(&self, log_likelihoods: &[f64]) -> Result<Evaluation, ObjectiveError> {
        same_rows("weights", &self.slopes, log_likelihoods)?;
        let value = self.slopes.iter().zip(log_likelihoods).map(|(slope, likelihood)| slope * likelihood).sum();
        Ok(Evaluation { value, derivatives: self.slopes.clone() })
    }

    fn fixed_derivatives(&self) -> Option<&[f64]> {
        Some(&self.slopes)
    }

    fn label_smoothing(&self) -> f64 {
        self.smoothing
    }
}
