//! What a run writes down about itself over time. Names are those that TRL's trainers log, where they log the same.

use serde::{Deserialize, Serialize};

/// One entry of the curve.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Passes over the examples; none where there is no fixed set of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<f64>,
    /// Mean training loss of the steps taken since the entry before (nats); none if all were skipped.
    #[serde(default, rename = "loss", alias = "train_loss", skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Validation loss, where measured.
    #[serde(default, rename = "eval_loss", alias = "validation_loss", skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Share of validation tokens that are the most likely ones to the model, where measured.
    #[serde(default, rename = "eval_mean_token_accuracy", skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
    /// Learning rate of this step.
    #[serde(rename = "learning_rate", alias = "lr")]
    pub lr: f64,
    /// Norm of this step's unclipped gradient; none if it is not finite.
    #[serde(default, rename = "grad_norm", alias = "gradient_norm", skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Tokens trained on so far.
    #[serde(default)]
    pub num_tokens: u64,
    /// Tokens per second since the start or resume.
    pub tokens_per_s: f64,
    /// Steps skipped so far, for their gradients were not finite.
    pub skipped: u64,
}
