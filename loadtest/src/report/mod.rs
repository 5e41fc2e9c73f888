//! What a scenario found, as a page: Markdown, its pictures beside it, and its figures.
//!
//! In: rows, curves. Out: `NAME.md`, SVG files, `NAME.json` in a folder. A row that was held to something says whether it kept to it.

pub mod curves;
pub mod svg;

use crate::figures::{Figure, Figures, FiguresError};
use crate::provenance;
use std::path::{Path, PathBuf};

/// What a value is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

/// One finding.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Its value.
    pub value: f64,
    /// Of the value.
    pub unit: &'static str,
    /// If it is held to something.
    pub wanted: Option<Wanted>,
}

/// A drawing of the page.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Of its file, after the report's name; empty for the first.
    pub suffix: &'static str,
    /// What it shows, for who cannot see it.
    pub shows: &'static str,
    /// The whole file.
    pub svg: String,
}

/// A scenario's findings.
#[derive(Debug, Clone)]
pub struct Report {
    /// The scenario's.
    pub name: &'static str,
    /// What was done, in one line.
    pub setting: String,
    /// In the order of the page.
    pub rows: Vec<Row>,
    /// Below the table.
    pub pictures: Vec<Picture>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The folder, or a file in it.
    #[error("{}: {cause}; choose another folder with --out", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The figures are not kept.
    #[error(transparent)]
    Figures(#[from] FiguresError),
}

impl Row {
    /// A finding that is held to nothing.
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Row {
        Row { what: what.into(), value, unit, wanted: None }
    }

    /// The same, held to something.
    pub fn held_to(self, wanted: Wanted) -> Row {
        Row { wanted: Some(wanted), ..self }
    }

    /// `None` where it is held to nothing.
    pub fn is_kept(&self) -> Option<bool> {
        Some(match self.wanted? {
            Wanted::AtLeast(bound) => self.value >= bound,
            Wanted::AtMost(bound) => self.value <= bound,
        })
    }

    fn line(&self) -> String {
        let wanted = match self.wanted {
            None => String::new(),
            Some(Wanted::AtLeast(bound)) => format!("≥ {}", number(bound)),
            Some(Wanted::AtMost(bound)) => format!("≤ {}", number(bound)),
        };
        let verdict = self.is_kept().map_or("", |is_kept| if is_kept { "kept" } else { "missed" });
        let unit = if self.unit == RATIO { "" } else { self.unit };
        format!("| {} | {} {unit} | {wanted} | {verdict} |", self.what, number(self.value)).replace("  ", " ")
    }
}

/// The unit of what has none.
pub const RATIO: &str = "ratio";

/// As people read numbers: three digits or more, with separators.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "–".to_string();
    }
    if size < 100.0 {
        let digits = if size >= 10.0 || value.fract() == 0.0 {
            1
        } else if size >= 0.1 {
            2
        } else {
            4
        };
        let text = format!("{value:.digits$}");
        return match digits {
            _ if value.fract() == 0.0 => format!("{value:.0}"),
            4 => text.trim_end_matches('0').to_string(),
            _ => text,
        };
    }
    let whole = format!("{:.0}", size);
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0.0 { format!("-{grouped}") } else { grouped }
}

impl Report {
    /// Rows that were held to something and did not keep to it.
    pub fn missed(&self) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.is_kept() == Some(false)).collect()
    }

    /// The page.
    pub fn markdown(&self, command: &str) -> String {
        let commit = provenance::commit().unwrap_or_else(|| "unknown".to_string());
        let mut page = format!("# Load test: {}\n\n", self.name);
        let (day, machine) = (provenance::today(), provenance::machine());
        page.push_str(&format!("`{command}` at commit {commit}, {day}; {machine}.\n\n{}\n\n", self.setting));
        page.push_str("| what | measured | wanted | |\n|---|---|---|---|\n");
        for row in &self.rows {
            page.push_str(&row.line());
            page.push('\n');
        }
        for picture in &self.pictures {
            page.push_str(&format!("\n![{}]({})\n", picture.shows, self.file(picture)));
        }
        page
    }

    fn file(&self, picture: &Picture) -> String {
        format!("{}{}.svg", self.name, picture.suffix)
    }

    /// The form in which benches keep what they measured; `None` where the commit is not known or changed since.
    pub fn figures(&self, command: &str) -> Option<Figures> {
        let figures = Figures {
            name: format!("loadtest-{}", self.name),
            commit: provenance::commit()?,
            machine: provenance::machine(),
            date: provenance::today(),
            command: command.to_string(),
            figures: self.rows.iter().filter_map(|row| Figure::of(row.what.as_str(), row.unit, &[row.value])).collect(),
        };
        figures.check().is_ok().then_some(figures)
    }

    /// Writes everything into a folder; the page's path.
    pub fn write(&self, folder: &Path, command: &str) -> Result<PathBuf, ReportError> {
        let put = |path: PathBuf, text: &str| match std::fs::write(&path, text) {
            Ok(()) => Ok(path),
            Err(cause) => Err(ReportError::File { path, cause }),
        };
        let refused = |cause| ReportError::File { path: folder.to_path_buf(), cause };
        std::fs::create_dir_all(folder).map_err(refused)?;
        for picture in &self.pictures {
            put(folder.join(self.file(picture)), &picture.svg)?;
        }
        if let Some(figures) = self.figures(command) {
            figures.write(&folder.join(format!("{}.json", figures.name)))?;
        }
        put(folder.join(format!("{}.md", self.name)), &self.markdown(command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let rows = vec![
            Row::new("goodput", 12_345.6, "1/s"),
            Row::new("goodput / capacity", 0.95, RATIO).held_to(Wanted::AtLeast(0.9)),
            Row::new("p99 / p99 at 60 %", 3.5, RATIO).held_to(Wanted::AtMost(3.0)),
        ];
        let picture = Picture { suffix: "", shows: "latencies", svg: "<svg/>".into() };
        Report { name: "overload", setting: "Three times the capacity.".into(), rows, pictures: vec![picture] }
    }

    #[test]
    fn a_page_says_what_was_kept_and_what_was_missed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = report().write(&folder.path().join("new"), "make loadtest").expect("written");
        let page = std::fs::read_to_string(&path).expect("page");
        for line in [
            "| goodput | 12,346 1/s | | |",
            "| goodput / capacity | 0.95 | ≥ 0.90 | kept |",
            "| p99 / p99 at 60 % | 3.50 | ≤ 3 | missed |",
            "![latencies](overload.svg)",
            "`make loadtest` at commit ",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        assert_eq!(std::fs::read_to_string(path.with_extension("svg")).expect("picture"), "<svg/>");
        assert_eq!(report().missed().len(), 1);
        // A tree with changes has no figures, any other has these.
        if let Some(figures) = report().figures("make loadtest") {
            assert_eq!((figures.name.as_str(), figures.figures.len()), ("loadtest-overload", 3));
        }
    }

    #[test]
    fn numbers_are_read_by_people() {
        let shown =
            [0.0, 0.0123, 0.5, 3.0, 9.876, 12.34, 99.99, 100.0, 1234.5, 1_234_567.0, -4000.0, f64::NAN].map(number);
        let wanted = ["0", "0.0123", "0.50", "3", "9.88", "12.3", "100.0", "100", "1,234", "1,234,567", "-4,000", "–"];
        assert_eq!(shown, wanted);
    }
}
