//! Counts on their way to a total.

use super::{Form, Progress};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;
use std::fmt::Write;
use std::time::Instant;

/// Lines told of one bar where there is no terminal, about.
const LINES: u64 = 10;
/// The bar takes what the words leave of the line.
const TEMPLATE: &str = "{prefix} {wide_bar} {pos}/{len} {msg}, {rate}, {eta} left";

/// A count that rises to a total. Dropped, it goes away.
pub struct Bar {
    progress: Progress,
    unit: &'static str,
    total: u64,
    done: u64,
    /// Where the count began: a resumed run has not done what was done before.
    began_at: u64,
    began: Instant,
    /// Lines told so far.
    told: u64,
    /// On a terminal.
    drawn: Option<ProgressBar>,
}

/// One line about a bar.
#[derive(Serialize)]
struct Line {
    unit: &'static str,
    step: u64,
    steps: u64,
    per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_s: Option<f64>,
}

impl Bar {
    pub(super) fn new(progress: Progress, unit: &'static str, total: u64) -> Bar {
        let drawn = match &*progress.console.0 {
            Form::Lines(_) => None,
            Form::Terminal(bars) => {
                let bar = bars.add(ProgressBar::new(total));
                bar.set_prefix(progress.label.clone());
                bar.set_message(unit);
                if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                    bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
                        // A string cannot fail.
                        let _ = write!(out, "{:.1}/s", state.per_sec());
                    }));
                }
                Some(bar)
            }
        };
        Bar { progress, unit, total, done: 0, began_at: 0, began: Instant::now(), told: 0, drawn }
    }

    /// What is done already, when a run goes on.
    pub fn begin_at(&mut self, done: u64) {
        (self.done, self.began_at, self.began) = (done, done, Instant::now());
        if let Some(bar) = &self.drawn {
            bar.set_position(done);
            bar.reset_eta();
        }
    }

    /// So much more is done.
    pub fn add(&mut self, more: u64) {
        self.set(self.done + more);
    }

    /// So much is done in all.
    pub fn set(&mut self, done: u64) {
        self.done = done;
        if let Some(bar) = &self.drawn {
            bar.set_position(done);
            return;
        }
        let tenth = done * LINES / self.total.max(1);
        if tenth > self.told {
            self.told = tenth;
            let line = Line {
                unit: self.unit,
                step: done,
                steps: self.total,
                per_s: tenths(self.per_s()),
                eta_s: self.eta_s().map(tenths),
            };
            self.progress.figures(&line);
        }
    }

    /// Moves a drawn bar and tells no line: whoever has figures of its own tells them.
    pub(crate) fn draw(&mut self, done: u64, message: &str) {
        self.done = done;
        if let Some(bar) = &self.drawn {
            bar.set_position(done);
            bar.set_message(message.to_string());
        }
    }

    /// Per second, since it began.
    fn per_s(&self) -> f64 {
        (self.done - self.began_at.min(self.done)) as f64 / self.began.elapsed().as_secs_f64().max(1e-9)
    }

    /// Seconds to the end, if it goes on as it went; none before anything is done.
    pub fn eta_s(&self) -> Option<f64> {
        let per_s = self.per_s();
        (per_s > 0.0).then(|| self.total.saturating_sub(self.done) as f64 / per_s)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.drawn {
            bar.finish_and_clear();
        }
    }
}

/// Rounded: nobody reads more digits of a rate.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
