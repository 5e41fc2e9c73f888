//! How far a program is: bars on a terminal, lines otherwise, with the name of the stage that tells.
//!
//! In: a stage's name, sentences, counts. Out: standard error. Callers: `recipe` (one [`Console`] a run), `stage` (each stage is given its
//! [`Progress`]), whatever takes long. Several stages may tell at once: a line is written in one piece.
//!
//! ```text
//! terminal: a bar for each thing under way, rate and time left; sentences above the bars
//! else:     sentences as `stage: words`, counts as one JSON object a line, with "stage"
//! ```

mod bar;
#[cfg(test)]
mod tests;

pub use bar::Bar;

use indicatif::MultiProgress;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Where progress is told.
#[derive(Clone)]
pub struct Console(Arc<Form>);

enum Form {
    Terminal(MultiProgress),
    Lines(Mutex<Box<dyn Write + Send>>),
}

impl std::fmt::Debug for Console {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match &*self.0 {
            Form::Terminal(_) => "Console(terminal)",
            Form::Lines(_) => "Console(lines)",
        })
    }
}

impl Console {
    /// Standard error, as a terminal if it is one.
    pub fn stderr() -> Console {
        match std::io::stderr().is_terminal() {
            true => Console::terminal(MultiProgress::new()),
            false => Console::lines(Box::new(std::io::stderr())),
        }
    }

    /// Bars.
    pub fn terminal(bars: MultiProgress) -> Console {
        Console(Arc::new(Form::Terminal(bars)))
    }

    /// Lines.
    pub fn lines(target: Box<dyn Write + Send>) -> Console {
        Console(Arc::new(Form::Lines(Mutex::new(target))))
    }

    /// What a stage tells through.
    pub fn stage(&self, label: &str) -> Progress {
        Progress { console: self.clone(), label: label.to_string() }
    }

    /// Writes a line in one piece, above the bars.
    pub fn say(&self, words: &str) {
        match &*self.0 {
            // Words of a bar's own target would not be seen where that is hidden.
            Form::Terminal(bars) => bars.suspend(|| eprintln!("{words}")),
            Form::Lines(target) => write_line(target, words),
        }
    }

    /// Takes the bars away, runs `last` and ends the program: nothing is drawn any more.
    pub fn end(&self, last: impl FnOnce() -> i32) {
        match &*self.0 {
            Form::Terminal(bars) => bars.suspend::<_, ()>(|| std::process::exit(last())),
            Form::Lines(_) => std::process::exit(last()),
        }
    }
}

fn write_line(target: &Mutex<Box<dyn Write + Send>>, line: &str) {
    let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
    // Who has closed standard error does not want to hear of it; the work goes on.
    let _ = target.write_all(format!("{line}\n").as_bytes()).and_then(|()| target.flush());
}

/// What one stage tells through.
#[derive(Clone)]
pub struct Progress {
    console: Console,
    label: String,
}

impl Default for Progress {
    /// For work outside of a recipe.
    fn default() -> Self {
        Console::stderr().stage("taiji-trainer")
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Progress({})", self.label)
    }
}

impl Progress {
    /// The stage's name.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Tells a sentence.
    pub fn say(&self, words: &str) {
        self.console.say(&format!("{}: {words}", self.label));
    }

    /// Tells figures where nobody draws bars: one JSON object a line.
    pub fn figures(&self, figures: &impl Serialize) {
        #[derive(Serialize)]
        struct Line<'a, F> {
            stage: &'a str,
            #[serde(flatten)]
            figures: &'a F,
        }
        if let (Form::Lines(target), Ok(line)) =
            (&*self.console.0, serde_json::to_string(&Line { stage: &self.label, figures }))
        {
            write_line(target, &line);
        }
    }

    /// A bar over `total` of something, e.g. `texts`.
    pub fn bar(&self, unit: &'static str, total: u64) -> Bar {
        Bar::new(self.clone(), unit, total)
    }
}
