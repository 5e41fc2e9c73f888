//! What a training run says while it runs: a bar on a terminal, JSON lines otherwise.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// State of a run after a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainEvent {
    /// `sft`.
    pub stage: &'static str,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Mean weighted training loss since the last entry of the curve (nats per weight).
    pub train_loss: f64,
    /// Loss on validation completions (nats per token), where this step measured it.
    pub validation_loss: Option<f64>,
    /// Learning rate of this step.
    pub lr: f64,
    /// Norm of the unclipped gradient.
    pub gradient_norm: f64,
    /// Tokens per second since the start or resume.
    pub tokens_per_s: f64,
    /// This step is an entry of the loss curve; others only move the bar.
    pub curve: bool,
}

/// A bar on standard error if that is a terminal, otherwise one JSON line on standard error per entry of the loss curve.
pub fn default_progress() -> Box<dyn FnMut(&TrainEvent) + Send> {
    if !std::io::stderr().is_terminal() {
        return Box::new(|event| {
            if let (true, Ok(line)) = (event.curve, serde_json::to_string(event)) {
                eprintln!("{line}");
            }
        });
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("sft {bar:30} {pos}/{len} {elapsed}<{eta} {msg}") {
        bar.set_style(style);
    }
    Box::new(move |event| {
        bar.set_length(event.steps);
        bar.set_position(event.step);
        bar.set_message(format!("loss {:.3}, {:.0} tokens/s", event.train_loss, event.tokens_per_s));
        if event.step == event.steps {
            bar.finish();
        }
    })
}
