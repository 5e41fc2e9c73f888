//! What a training run says while it runs: a bar on a terminal, JSON lines otherwise.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::curve::CurvePoint;

/// State of a run after a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainEvent {
    /// What is trained: `sft`, ….
    pub stage: &'static str,
    /// Steps in all.
    pub steps: u64,
    /// This step's figures.
    #[serde(flatten)]
    pub point: CurvePoint,
    /// This step is an entry of the curve; others only move the bar.
    pub curve: bool,
    /// Nothing follows: all steps are done, or the run stops early.
    pub last: bool,
}

/// A bar on standard error if that is a terminal, otherwise one JSON line on standard error per entry of the curve.
pub fn default_progress() -> Box<dyn FnMut(&TrainEvent) + Send> {
    if !std::io::stderr().is_terminal() {
        return Box::new(|event| {
            if let (true, Ok(line)) = (event.curve, serde_json::to_string(event)) {
                eprintln!("{line}");
            }
        });
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {elapsed}<{eta} {msg}") {
        bar.set_style(style);
    }
    Box::new(move |event| {
        bar.set_prefix(event.stage);
        bar.set_length(event.steps);
        bar.set_position(event.point.step);
        let loss = event.point.train_loss.unwrap_or(f64::NAN);
        let skipped = match event.point.skipped {
            0 => String::new(),
            steps => format!(", {steps} steps skipped"),
        };
        bar.set_message(format!("loss {loss:.3}, {:.0} tokens/s{skipped}", event.point.tokens_per_s));
        if event.last {
            bar.finish();
        }
    })
}
