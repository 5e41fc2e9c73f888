//! What a run writes down about itself over time.

use serde::{Deserialize, Serialize};

/// One entry of the curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Mean training loss of the steps taken since the entry before (nats); none if all were skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Validation loss, where measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Learning rate of this step.
    pub lr: f64,
    /// Norm of this step's unclipped gradient; none if it is not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Tokens per second since the start or resume.
    pub tokens_per_s: f64,
    /// Steps skipped so far, for their gradients were not finite.
    pub skipped: u64,
}
