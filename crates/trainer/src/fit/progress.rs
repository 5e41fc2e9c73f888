//! What a training run says while it runs.

use serde::Serialize;

use super::curve::CurvePoint;
use crate::progress::Progress;

/// State of a run after a step.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainEvent {
    /// Steps in all.
    pub steps: u64,
    /// This step's figures.
    pub point: CurvePoint,
    /// This step is an entry of the curve; others only move the bar.
    pub curve: bool,
    /// Nothing follows: all steps are done, or the run stops early.
    pub last: bool,
}

/// One line of figures.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    point: &'a CurvePoint,
    steps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_s: Option<f64>,
}

/// A bar on a terminal, otherwise one JSON line for each entry of the curve.
pub fn training_progress(progress: &Progress) -> Box<dyn FnMut(&TrainEvent) + Send> {
    let progress = progress.clone();
    let mut bar = None;
    Box::new(move |event| {
        let TrainEvent { steps, point, curve, last } = event;
        let bar_of = || {
            let mut bar = progress.bar("steps", *steps);
            bar.begin_at(point.step.saturating_sub(1));
            bar
        };
        let shown = bar.get_or_insert_with(bar_of);
        let loss = point.train_loss.map_or_else(|| "-".to_string(), |loss| format!("{loss:.3}"));
        let skipped = match point.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} skipped"),
        };
        shown.draw(point.step, &format!("steps, loss {loss}, {:.0} tokens/s{skipped}", point.tokens_per_s));
        if *curve {
            let eta_s = shown.eta_s().map(f64::round);
            progress.figures(&Line { point, steps: *steps, eta_s });
        }
        if *last {
            bar = None;
        }
    })
}
