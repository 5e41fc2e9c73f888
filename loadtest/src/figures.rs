//! Measured figures, as every bench of the project keeps them: `docs/measured/<name>.json`.
//!
//! In: a bench's findings, or a file. Out: the checked [`Figures`], or what is wrong with them. A tool that sizes an installation reads
//! these files, so nothing doubtful gets in: no dirty commit, no figure without its spread.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What one bench found in one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// The bench's, and the file's without `.json`.
    pub name: String,
    /// All 40 digits of the commit that was measured.
    pub commit: String,
    /// Cores, processor, memory, system.
    pub machine: String,
    /// Year, month and day: `2026-11-28`.
    pub date: String,
    /// What measures it again.
    pub command: String,
    /// At least one.
    pub figures: Vec<Figure>,
}

/// One figure: the median, or the only value, of `n` measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// What was measured; no other figure of the file has this name.
    pub name: String,
    /// Between `low` and `high`.
    pub value: f64,
    /// Of all three numbers.
    pub unit: String,
    /// The lowest measurement.
    pub low: f64,
    /// The highest measurement.
    pub high: f64,
    /// How many measurements there were.
    pub n: u64,
}

/// Why figures are not taken.
#[derive(Debug, thiserror::Error)]
pub enum FiguresError {
    /// The file, or the folder, cannot be read or written.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// It is not the JSON of [`Figures`].
    #[error(
        "{path}: {cause}; wanted is {{name, commit, machine, date, command, figures: [{{name, value, unit, low, high, n}}]}}"
    )]
    Shape {
        /// Which file.
        path: String,
        /// What the parser says.
        cause: serde_json::Error,
    },
    /// The shape is right and the content is not.
    #[error("{path}: {what}")]
    Content {
        /// Which file.
        path: String,
        /// The field at fault, then the remedy.
        what: String,
    },
}

impl Figure {
    /// Median and spread of measurements; `None` where there are none.
    pub fn of(name: impl Into<String>, unit: &str, measured: &[f64]) -> Option<Figure> {
        let mut sorted = measured.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let (name, unit) = (name.into(), unit.to_string());
        Some(Figure { name, value: median(&sorted), unit, low, high, n: sorted.len() as u64 })
    }

    fn fault(&self) -> Option<String> {
        let name = &self.name;
        if name.trim().is_empty() {
            return Some("a figure's name is empty; say what was measured".to_string());
        }
        if self.unit.trim().is_empty() {
            return Some(format!("{name}: unit is empty; a ratio's is \"ratio\", a count's what is counted"));
        }
        if self.n == 0 {
            return Some(format!("{name}: n is 0; leave out what was not measured"));
        }
        if let Some(number) = [self.value, self.low, self.high].into_iter().find(|number| !number.is_finite()) {
            return Some(format!("{name}: {number} is not finite; leave out what was not measured"));
        }
        if self.low > self.value || self.value > self.high {
            let (low, value, high) = (self.low, self.value, self.high);
            return Some(format!("{name}: wanted is low ≤ value ≤ high, not {low} ≤ {value} ≤ {high}"));
        }
        None
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

impl Figures {
    /// What is wrong, if anything is.
    pub fn check(&self) -> Result<(), String> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if self.name.is_empty() || !self.name.bytes().all(is_plain) {
            return Err(format!("name: {:?} is no file's name; use a-z, 0-9 and -", self.name));
        }
        if self.commit.len() != 40 || !self.commit.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("commit: {:?} is not 40 hex digits; commit what is measured first", self.commit));
        }
        if !is_date(&self.date) {
            return Err(format!("date: {:?} is no day; wanted is the form 2026-11-28", self.date));
        }
        for (field, text) in [("machine", &self.machine), ("command", &self.command)] {
            if text.trim().is_empty() {
                return Err(format!("{field}: is empty"));
            }
        }
        if self.figures.is_empty() {
            return Err("figures: is empty; a bench that found nothing keeps nothing".to_string());
        }
        let mut names = BTreeSet::new();
        for figure in &self.figures {
            figure.fault().map_or(Ok(()), Err)?;
            if !names.insert(&figure.name) {
                return Err(format!("{}: stands twice; every figure has a name of its own", figure.name));
            }
        }
        Ok(())
    }

    /// Figures out of text that is, or shall be, that file's.
    pub fn parse(path: &Path, text: &str) -> Result<Figures, FiguresError> {
        let shape = |cause| FiguresError::Shape { path: path.display().to_string(), cause };
        let figures: Figures = serde_json::from_str(text).map_err(shape)?;
        figures.check_for(path)?;
        Ok(figures)
    }

    /// The figures of a file.
    pub fn read(path: &Path) -> Result<Figures, FiguresError> {
        let text = std::fs::read_to_string(path).map_err(|cause| file_error(path, cause))?;
        Figures::parse(path, &text)
    }

    /// Writes them, if they are good, by way of a file beside it: a reader sees the former ones or these.
    pub fn write(&self, path: &Path) -> Result<(), FiguresError> {
        self.check_for(path)?;
        let shape = |cause| FiguresError::Shape { path: path.display().to_string(), cause };
        let text = serde_json::to_string_pretty(self).map_err(shape)? + "\n";
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|cause| file_error(folder, cause))?;
        let fresh = path.with_extension("json.new");
        std::fs::write(&fresh, text).map_err(|cause| file_error(&fresh, cause))?;
        std::fs::rename(&fresh, path).map_err(|cause| file_error(path, cause))
    }

    fn check_for(&self, path: &Path) -> Result<(), FiguresError> {
        let wrong = |what| FiguresError::Content { path: path.display().to_string(), what };
        self.check().map_err(wrong)?;
        let wanted = format!("{}.json", self.name);
        if path.file_name().is_none_or(|name| name != wanted.as_str()) {
            return Err(wrong(format!("name: {:?} belongs into {wanted}", self.name)));
        }
        Ok(())
    }
}

/// What says what the folder is.
const PAGE: &str = "README.md";

/// Every file of a folder but its page, in the order of names: its figures, or what is wrong with it.
pub fn read_folder(folder: &Path) -> Result<Vec<Result<Figures, FiguresError>>, FiguresError> {
    let entries = std::fs::read_dir(folder).map_err(|cause| file_error(folder, cause))?;
    let paths: Result<Vec<PathBuf>, FiguresError> =
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(|cause| file_error(folder, cause))).collect();
    let mut paths = paths?;
    paths.retain(|path| path.file_name().is_none_or(|name| name != PAGE));
    paths.sort();
    Ok(paths.iter().map(|path| Figures::read(path)).collect())
}

/// Four, two and two digits, and a month and a day that there are.
fn is_date(text: &str) -> bool {
    chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok_and(|date| date.to_string() == text)
}

fn file_error(path: &Path, cause: std::io::Error) -> FiguresError {
    FiguresError::File { path: path.display().to_string(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn good() -> Figures {
        Figures {
            name: "bench-read".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
            machine: "2 cores".into(),
            date: "2026-11-28".into(),
            command: "make bench-read".into(),
            figures: vec![Figure { name: "reads".into(), value: 2.0, unit: "1/s".into(), low: 1.0, high: 3.0, n: 7 }],
        }
    }

    /// A change that must be refused, and a word of the refusal.
    type Fault = (&'static str, fn(&mut Figures));

    #[test]
    fn what_is_doubtful_is_refused_and_named() {
        let faults: [Fault; 18] = [
            ("name", |all| all.name = String::new()),
            ("name", |all| all.name = "../bench-read".into()),
            ("commit", |all| all.commit = "0123456".into()),
            ("commit", |all| all.commit.push_str("-dirty")),
            ("commit", |all| all.commit = all.commit.to_uppercase()),
            ("date", |all| all.date = "2026-02-30".into()),
            ("date", |all| all.date = "2026-2-3".into()),
            ("machine", |all| all.machine = " ".into()),
            ("command", |all| all.command = String::new()),
            ("figures", |all| all.figures.clear()),
            ("name is empty", |all| all.figures[0].name = String::new()),
            ("unit", |all| all.figures[0].unit = String::new()),
            ("n is 0", |all| all.figures[0].n = 0),
            ("not finite", |all| all.figures[0].value = f64::NAN),
            ("not finite", |all| all.figures[0].high = f64::INFINITY),
            ("low ≤ value", |all| all.figures[0].low = 2.5),
            ("low ≤ value", |all| all.figures[0].high = 1.5),
            ("twice", |all| all.figures.push(all.figures[0].clone())),
        ];
        assert_eq!(good().check(), Ok(()));
        for (word, break_it) in faults {
            let mut figures = good();
            break_it(&mut figures);
            let said = figures.check().expect_err(word);
            assert!(said.contains(word), "{word}: {said}");
        }
    }

    #[test]
    fn a_file_is_written_and_read_as_it_is_called_or_not_at_all() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("measured/bench-read.json");
        good().write(&path).expect("written");
        assert_eq!(Figures::read(&path).expect("read"), good());
        let all = read_folder(&folder.path().join("measured")).expect("folder");
        assert_eq!(all.len(), 1, "nothing else is left there");

        let other = path.with_file_name("bench-write.json");
        let said = good().write(&other).expect_err("another's name").to_string();
        assert!(said.contains("bench-read.json") && !other.exists(), "{said}");
        let text = std::fs::read_to_string(&path).expect("text");
        for (what, changed) in [
            ("unknown field", text.replace("\"n\": 7", "\"n\": 7, \"best\": 9.0")),
            ("missing field", text.replace(",\n      \"n\": 7", "")),
            ("out of range", text.replace("2.0", "1e999")),
        ] {
            assert_ne!(changed, text, "{what}");
            let said = Figures::parse(&path, &changed).expect_err(what).to_string();
            assert!(said.contains(": [{name, value, unit, low, high, n}]"), "{what}: {said}");
        }
    }

    /// The files of this project: each can be read by whoever sizes an installation.
    #[test]
    fn all_that_was_measured_is_good() {
        let folder = testkit::in_repository("docs/measured");
        for figures in read_folder(&folder).expect("docs/measured") {
            figures.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    proptest! {
        #[test]
        fn a_figure_of_measurements_is_a_good_one(measured in proptest::collection::vec(-1e9..1e9f64, 1..30)) {
            let figure = Figure::of("x", "ms", &measured).expect("some");
            prop_assert_eq!(figure.fault(), None);
            prop_assert_eq!(figure.n as usize, measured.len());
            let below = measured.iter().filter(|one| **one <= figure.value).count();
            prop_assert!(2 * below >= measured.len(), "half are at most the median");
        }
    }
}
